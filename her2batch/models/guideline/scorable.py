"""Reasons why a slide has no HER2 score: too few tumour cells, or staining that is not that of a membrane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.models.guideline.cell_rule import TUMOUR

MIN_TUMOUR_CELLS = 100
"""Least number of tumour cells for a score. With 100 cells, 10 % has a 95 % interval of 5 to 18 % (Clopper–Pearson); it
is also the least number for PD-L1 by the manual of 22C3 pharmDx. ASCO/CAP names no number for HER2."""


class NotScorable(NamedTuple):
    """Why a slide has no score. code: a short name.  reason: a sentence with its figures."""

    code: str
    reason: str


NUCLEAR_DAB_OD = 0.12
"""DAB of a nucleus, OD, from which its staining is nuclear if it exceeds that of the membrane."""

NUCLEAR_EXCESS = 1.2
"""Ratio of nuclear to membrane DAB from which staining is nuclear."""

MAX_NUCLEAR_SHARE = 0.10
"""Share of tumour cells with nuclear staining beyond which a slide is not a HER2 slide."""

CYTOPLASM_DAB_OD = 0.12
"""DAB of the cytoplasm, OD, from which it is brown."""

MAX_CYTOPLASM_SHARE = 0.50
"""Share of tumour cells with brown cytoplasm and no membrane beyond which staining is only cytoplasmic."""

MIN_HUE_SPREAD = 0.03
"""Standard deviation of the share of DAB in all stain, below which a picture has no colours (a grey copy)."""

MAX_FOREIGN_SHARE = 0.25
"""Share of light that neither haematoxylin nor DAB absorbs, beyond which a slide has another stain."""


def scorability(
    cells: Mapping[str, NDArray[Any]],
    *,
    stain: str = "ihc",
    hue_spread: float | None = None,
    foreign: float | None = None,
) -> NotScorable | None:
    """Return why a slide stained for HER2 cannot be scored, or None if it can.

    cells: columns of the cells' table (tumour, nuclear_dab, membrane_dab, cytoplasm_dab, faint), (n,) each.  stain:
    'he' or 'ihc' as of `vision.stain.guess_stain`.  hue_spread, foreign: as in `CellReference`, if known.
    """
    if stain == "he":
        return NotScorable("he", "the slide is stained with haematoxylin and eosin, not for HER2")
    if hue_spread is not None and hue_spread < MIN_HUE_SPREAD:
        return NotScorable(
            "no-colour", f"the picture has one hue only (spread {hue_spread:.3f}): not a stain, or a grey copy"
        )
    if foreign is not None and foreign > MAX_FOREIGN_SHARE:
        return NotScorable(
            "other-stain", f"{foreign:.0%} of the absorbed light belongs to neither haematoxylin nor DAB"
        )
    tumour = cells["tumour"] >= TUMOUR
    n, n_tumour = len(tumour), int(np.count_nonzero(tumour))
    if n_tumour < MIN_TUMOUR_CELLS:
        return NotScorable("few-tumour-cells", f"{n_tumour} tumour cells of {n} cells; {MIN_TUMOUR_CELLS} are needed")
    nuclear, membrane, cytoplasm, faint = (
        cells[name][tumour] for name in ("nuclear_dab", "membrane_dab", "cytoplasm_dab", "faint")
    )
    share = float(((nuclear >= NUCLEAR_DAB_OD) & (nuclear >= NUCLEAR_EXCESS * membrane)).mean())
    if share > MAX_NUCLEAR_SHARE:
        return NotScorable(
            "nuclear-staining", f"{share:.0%} of the tumour cells have DAB in the nucleus, as ER or PR has"
        )
    share = float(((cytoplasm >= CYTOPLASM_DAB_OD) & (faint < 0.25)).mean())
    if share > MAX_CYTOPLASM_SHARE:
        return NotScorable(
            "cytoplasmic-staining", f"{share:.0%} of the tumour cells are brown in the cytoplasm, without a membrane"
        )
    return None
