"""A synthetic cohort with the numbers of slides of the paper (section 2.1 and table 3).

500 patients have one HER2 slide each: 125 of score 0, 142 of 1+, 118 of 2+ (96 with a negative and 22 with a positive
ISH) and 115 of 3+. 385 of them have an ER slide (240 positive), 387 a PR slide (189 positive): 1,272 slides. HER2
slides are painted at 0.25 µm/px, which patches of the high resolution need, the others at 0.5 µm/px, that of the tiles.

Results on these slides describe the software, not medicine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from her2batch.errors import InputError
from her2batch.synthetic.cell_layout import Stain
from her2batch.synthetic.cohort import (
    MIN_SLIDE_PX,
    PATIENT_NAMES,
    CohortOptions,
    draw_mix,
    draw_nuclei,
    write_cohort,
)
from her2batch.synthetic.laboratory import laboratory_of
from her2batch.synthetic.outlines import ARTEFACTS, rng_for
from her2batch.synthetic.specimen import CellMix, SlideTruth

HER2_COUNTS: Final[Mapping[tuple[str, str | None], int]] = {
    ("0", None): 125,
    ("1+", None): 142,
    ("2+", "-"): 96,
    ("2+", "+"): 22,
    ("3+", None): 115,
}
"""IHC score and ISH → number of the paper's HER2 slides (table 3)."""

RECEPTOR_COUNTS: Final[Mapping[Stain, Mapping[bool, int]]] = {
    "er": {False: 145, True: 240},
    "pr": {False: 198, True: 189},
}
"""Stain → number of the paper's negative and positive slides (section 2.1)."""

PAPER_SLIDES: Final = sum(HER2_COUNTS.values())

PAPER_SIZE: Final = (4800, 4200)
"""Typical width and height of HER2 slides, px at 0.25 µm/px: a fifth of the paper's slides."""

HER2_MPP, RECEPTOR_MPP = 0.25, 0.5
"""µm/px of the slides."""

ISH_SPREAD = 0.1
"""σ of what else decides the ISH of a 2+ tumour, beside the share of moderate cells (0.12 to 0.6)."""

RECEPTOR_SHARE = 0.3
"""Edges of ER and PR slides as a share of those of HER2 slides, in px; in µm twice as much."""


def make_paper_cohort(
    out: Path,
    slides: int = PAPER_SLIDES,
    seed: int = 0,
    size: tuple[int, int] = PAPER_SIZE,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    options: CohortOptions | None = None,
) -> int:
    """Write the cohort under `out`, with the files of `cohort.make_cohort`, and return the number of its slides.

    slides: number of HER2 slides; the classes have the paper's shares of them, exactly for 500.  options: the
    laboratories, and `stain` to write the slides of one stain only.  The other arguments are those of `make_cohort`.
    Raises InputError.
    """
    if slides < 1 or min(size) < MIN_SLIDE_PX:
        remedy = f"ask for 1 or more of {MIN_SLIDE_PX} px or more"
        raise InputError(f"{slides} slides of {size[0]} × {size[1]} px", None, remedy)
    truths = plan_paper_cohort(slides, seed, size, options)
    write_cohort(out, truths, seed, workers, progress)
    return len(truths)


def plan_paper_cohort(
    slides: int, seed: int, size: tuple[int, int], options: CohortOptions | None = None
) -> list[SlideTruth]:
    """Draw the ground truth of every slide. Raises InputError for a stain or a kind that the paper does not have."""
    options = options or CohortOptions()
    if options.kind != "usual" or options.stain not in (None, "her2", *RECEPTOR_COUNTS):
        what = f"the paper's cohort has no slides of the kind {options.kind} and the stain {options.stain or 'any'}"
        raise InputError(what, None, "omit --kind, and give her2, er or pr as --stain, or omit it")
    laboratories = [laboratory_of(name).name for name in options.laboratories]
    sites = np.resize(laboratories, slides)[rng_for(seed, "paper", "sites").permutation(slides)].tolist()
    her2 = _draw_her2(slides, seed)
    receptors = {stain: _draw_receptor(stain, slides, seed) for stain in RECEPTOR_COUNTS}
    truths: list[SlideTruth] = []
    for patient in range(slides):
        stains: list[tuple[Stain, CellMix, str | None]] = [("her2", *her2[patient])]
        stains += [(stain, mixes[patient], None) for stain, mixes in receptors.items() if patient in mixes]
        for number, (stain, mix, ish) in enumerate(stains, start=1):
            truths.append(_slide_truth(patient, number, stain, mix, ish, sites[patient], seed, size))
    return [truth for truth in truths if options.stain in (None, truth.stain)]


def class_counts(counts: Mapping[Any, int], total: int) -> list[int]:
    """Return how many of `total` slides each class gets: in the shares of `counts`, by the largest remainders."""
    exact = np.array(list(counts.values())) * total / sum(counts.values())
    whole = np.floor(exact).astype(int)
    rest = np.argsort(whole - exact, kind="stable")[: total - whole.sum()]
    whole[rest] += 1
    return [int(n) for n in whole]


def _draw_her2(slides: int, seed: int) -> list[tuple[CellMix, str | None]]:
    """Draw mix and ISH of each patient's tumour. Of the 2+ tumours those with more moderate cells lean to positive."""
    rng = rng_for(seed, "paper", "her2")
    numbers = dict(zip(HER2_COUNTS, class_counts(HER2_COUNTS, slides), strict=True))
    scores = [score for (score, _), n in numbers.items() for _ in range(n)]
    mixes = [draw_mix(score, rng) for score in scores]
    equivocal = [k for k, score in enumerate(scores) if score == "2+"]
    leaning = [mixes[k].moderate + rng.normal(0, ISH_SPREAD) for k in equivocal]
    positive = {equivocal[k] for k in np.argsort(leaning)[len(equivocal) - numbers["2+", "+"] :]}
    ish = ["+" if k in positive else "-" if score == "2+" else None for k, score in enumerate(scores)]
    return [(mixes[k], ish[k]) for k in rng.permutation(slides)]


def _draw_receptor(stain: Stain, slides: int, seed: int) -> dict[int, CellMix]:
    """Draw which patients have a slide of this stain, and the mix of its nuclei."""
    rng = rng_for(seed, "paper", stain)
    total = round(slides * sum(RECEPTOR_COUNTS[stain].values()) / PAPER_SLIDES)
    numbers = class_counts(RECEPTOR_COUNTS[stain], total)
    states = [positive for positive, n in zip(RECEPTOR_COUNTS[stain], numbers, strict=True) for _ in range(n)]
    patients = rng.permutation(slides)[: len(states)].tolist()
    return {patient: draw_nuclei(positive, rng) for patient, positive in zip(patients, states, strict=True)}


def _slide_truth(
    patient: int, number: int, stain: Stain, mix: CellMix, ish: str | None, site: str, seed: int, size: tuple[int, int]
) -> SlideTruth:
    """Return a slide of a patient, with its size and artefacts drawn."""
    patient_id, name = f"P{patient + 1:03d}", PATIENT_NAMES[patient % len(PATIENT_NAMES)]
    slide_id = f"{patient_id}-{number}"
    rng = rng_for(seed, "paper", slide_id)
    share, mpp = (1.0, HER2_MPP) if stain == "her2" else (RECEPTOR_SHARE, RECEPTOR_MPP)
    width, height = (
        max(MIN_SLIDE_PX, round(share * edge * np.clip(rng.lognormal(0, 0.15), 0.6, 1.6))) for edge in size
    )
    pieces = 1 + int(rng.choice(3, p=[0.5, 0.35, 0.15])) if max(width, height) * mpp >= 750 else 1
    artefacts = tuple(artefact for artefact in ARTEFACTS if rng.random() < 0.2)
    return SlideTruth(slide_id, mix, stain, ish, patient_id, name, site, artefacts, pieces, width, height, mpp)
