"""Reasons why a slide has no HER2 score: too few tumour cells, or staining that is not that of a membrane.

All limits were set on synthetic slides of laboratories 1 to 24 (51 that can be scored, 21 that cannot); the figures
beside them are from those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD

MIN_TUMOUR_CELLS = 100
"""Least number of tumour cells for a score. With 100 cells, 10 % has a 95 % interval of 5 to 18 % (Clopper–Pearson); it
is also the least number for PD-L1 by the manual of 22C3 pharmDx. ASCO/CAP names no number for HER2."""

MIN_TUMOUR_SHARE = 0.15
"""Least share of tumour cells in all cells. Where 1 % of the cells are tumour, 5 to 11 % are taken for tumour: below
this share, most of what is counted may be stroma."""

NUCLEAR_EXCESS_OD, NUCLEAR_RATIO = 0.10, 0.8
"""DAB of a nucleus above that of its cytoplasm, OD, and as a share of that of the membrane, from which a cell has
nuclear staining."""

MAX_NUCLEAR_SHARE = 0.03
"""Share of tumour cells with nuclear staining beyond which a slide is not a HER2 slide, if more cells have it than have
a membrane. Where more have it, HER2 slides with pen, bubbles and folds have at most 0.003 (73 slides); slides of ER and
Ki-67 with 15 % of positive nuclei or more have 0.04, as dark nuclei are not found by their haematoxylin. A slide with
fewer positive nuclei looks like HER2 0. Clumps of strong DAB look like nuclei."""

DOUBTFUL_NUCLEAR_SHARE = 0.10
"""Share of tumour cells with nuclear staining from which a slide of unknown marker may not be HER2, though more cells
have a membrane: of 109 synthetic HER2 slides none has more than 0.05, of 14 ER and Ki-67 slides with more membranes ten
have more; a real 3+ core has 0.15."""

MIN_RING_SHARE = 0.5
"""Share of the circumference with moderate membranes from which a cell has a membrane."""

CYTOPLASM_DAB_OD, CYTOPLASM_RATIO = 0.12, 1.6
"""DAB of the cytoplasm, OD, from which a cell is brown, and the ratio of its membrane to it below which no membrane
stands out."""

MAX_CYTOPLASM_SHARE = 0.5
"""Share of tumour cells that are brown without a membrane beyond which staining is only cytoplasmic: HER2 slides have
up to 0.33, in a laboratory with brown background, others 0.71 or more."""

MIN_HUE_SPREAD = 0.01
"""Spread of hue below which a picture has none: a grey copy has 0.000, HER2 0 without any DAB 0.026 or more."""

MAX_FOREIGN_SHARE = 0.12
"""Share of foreign colour beyond which a slide has another stain: HER2 slides have up to 0.08, random colours 0.16,
haematoxylin and eosin 0.37 or more."""


class NotScorable(NamedTuple):
    """Why a slide has no score. code: a short name.  reason: a sentence with its figures."""

    code: str
    reason: str


def scorability(
    cells: Mapping[str, NDArray[Any]],
    *,
    stain: str = "ihc",
    hue_spread: float | None = None,
    foreign: float | None = None,
    tumour_marked: bool = False,
) -> NotScorable | None:
    """Return why a slide stained for HER2 cannot be scored, or None if it can.

    cells: columns of the cells' table (tumour, moderate, nuclear_dab, membrane_dab,
    cytoplasm_dab), (n,) each.  stain: 'he' or
    'ihc' as of `vision.stain.guess_stain`.  hue_spread, foreign: as in `CellReference`, if known.  tumour_marked: the
    tumour is known by annotated regions, not by the model's likelihood.
    """
    if (colour := _colour_problem(stain, hue_spread, foreign)) is not None:
        return colour
    tumour = np.asarray(cells["tumour"]) >= TUMOUR_LIKELIHOOD
    n, n_tumour = len(tumour), int(np.count_nonzero(tumour))
    if n_tumour < MIN_TUMOUR_CELLS:
        return NotScorable("few-tumour-cells", f"{n_tumour} tumour cells of {n} cells; {MIN_TUMOUR_CELLS} are needed")
    if n_tumour < MIN_TUMOUR_SHARE * n and not tumour_marked:
        words = f"{n_tumour} of {n} cells ({n_tumour / n:.0%}) look like tumour; below {MIN_TUMOUR_SHARE:.0%} most of"
        return NotScorable("few-tumour-cells", f"{words} these may be stroma: mark the tumour as a region")
    return _staining_problem({name: np.asarray(values)[tumour] for name, values in cells.items()})


def _colour_problem(stain: str, hue_spread: float | None, foreign: float | None) -> NotScorable | None:
    """Return why the colours of a slide are not those of haematoxylin and DAB."""
    if stain == "he":
        return NotScorable("not-ihc", "the slide is stained with haematoxylin and eosin")
    if hue_spread is not None and hue_spread < MIN_HUE_SPREAD:
        return NotScorable("no-colour", f"the picture has one hue only (spread {hue_spread:.3f}), as a grey copy has")
    if foreign is not None and foreign > MAX_FOREIGN_SHARE:
        return NotScorable("other-stain", f"{foreign:.0%} of the absorbed light is of neither haematoxylin nor DAB")
    return None


def stained_shares(cells: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    """Return the share of cells with nuclear staining, and of the others those with a membrane.

    cells: columns of tumour cells (moderate, nuclear_dab, membrane_dab, cytoplasm_dab), (n,) each.
    """
    nuclear, membrane, cytoplasm = (cells[name] for name in ("nuclear_dab", "membrane_dab", "cytoplasm_dab"))
    in_nucleus = (nuclear - cytoplasm >= NUCLEAR_EXCESS_OD) & (nuclear >= NUCLEAR_RATIO * membrane)
    return float(in_nucleus.mean()), float(((cells["moderate"] >= MIN_RING_SHARE) & ~in_nucleus).mean())


def _staining_problem(cells: Mapping[str, NDArray[Any]]) -> NotScorable | None:
    """Return why the staining of tumour cells is not that of a membrane."""
    membrane, cytoplasm = cells["membrane_dab"], cells["cytoplasm_dab"]
    share = float(((cytoplasm >= CYTOPLASM_DAB_OD) & (membrane < CYTOPLASM_RATIO * cytoplasm)).mean())
    if share > MAX_CYTOPLASM_SHARE:
        return NotScorable(
            "cytoplasmic-staining", f"{share:.0%} of the tumour cells are brown without a membrane that stands out"
        )
    share, ringed = stained_shares(cells)
    if share > MAX_NUCLEAR_SHARE and share > ringed:
        words = f"{share:.0%} of the tumour cells have DAB in the nucleus, as ER has, and {ringed:.0%} a membrane"
        return NotScorable("nuclear-staining", words)
    return None
