"""The HER2 guideline applied to single tumour cells, by the wording of ASCO/CAP 2018 (affirmed 2023).

Each tumour cell has a category: 0 no membrane staining, 1 faint and incomplete, 2 weak to moderate and complete,
3 intense and complete. The score follows from their shares. The subdivision of 0 (null, ultralow) is that of
DESTINY-Breast06. A research result with its evidence, never a diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2batch.models.guideline.steps import (
    TEN_PERCENT,
    TRACE,
    GuidelineStep,
    StepShares,
    log_ratio,
    step_probabilities,
)
from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD

MAX_NULL_SHARE = 0.03
"""Share of stained cells up to which a slide is null rather than ultralow. Of 43 synthetic slides with at most 1.5 % of
stained cells (laboratories 1 to 99), 36 show less; the others, of laboratories with brown cytoplasm, 3.1 to 7.1 %, and
one 23.8 %."""

SHARE_SIGMA = 0.6
"""Standard deviation of the natural logarithm of a share between laboratories and readers, without chance of counts."""

SCORE_SIGMA = 0.9
"""The same for the continuous score: wider, so that the score still separates slides far from 10 %."""

NEAR_FACTOR = 1.5
"""A share within this factor of 10 % is near 10 %."""


@dataclass(frozen=True)
class CellRuleResult:
    """The HER2 score of a slide by its tumour cells.

    category: '0' … '3+'.  detail: 'null' or 'ultralow' for 0, else None.  score: continuous, 0–3.  distance: natural
    logarithm of the factor between 10 % and the nearest share.  percent: share of the tumour cells of category 0 … 3,
    in percent.  p: probabilities of 0, 1+, 2+, 3+.  steps: of the guideline, with share and threshold, from 3+ down.
    """

    category: str
    detail: str | None
    score: float
    distance: float
    percent: tuple[float, float, float, float]
    n_cells: int
    n_tumour: int
    p: tuple[float, float, float, float]
    reasons: tuple[str, ...]
    steps: tuple[GuidelineStep, ...]


def score_cells(category: NDArray[np.uint8], tumour: NDArray[np.float32]) -> CellRuleResult:
    """Score a slide by its cells: category (n,), 0 to 3, and likelihood of tumour (n,).

    Raises ValueError for a slide without tumour cells, which has no score.
    """
    of_tumour = category[tumour >= TUMOUR_LIKELIHOOD]
    n = len(of_tumour)
    if not n:
        raise ValueError("a slide without tumour cells cannot be scored")
    shares = np.bincount(of_tumour, minlength=4)[:4] / n
    none, faint, complete, intense = shares.tolist()
    at_least = StepShares(stained=1 - none, complete=complete + intense, intense=intense)
    steps = cell_steps(at_least)
    grade = next((step.category for step in steps if step.reached), "0")
    chance = (1 - TEN_PERCENT) / (TEN_PERCENT * n)  # variance of the logarithm of a share of 10 % of n cells
    one, two, three = step_probabilities(at_least, float(np.hypot(SHARE_SIGMA, np.sqrt(chance))))
    detail = None
    if grade == "ultralow" or grade == "0":
        detail, grade = ("ultralow" if grade == "ultralow" else "null"), "0"
    distance = min(abs(log_ratio(share, TEN_PERCENT)) for share in at_least)
    flags = {"near-10-percent": distance < np.log(NEAR_FACTOR), "ultralow": detail == "ultralow"}
    return CellRuleResult(
        grade, detail, sum(step_probabilities(at_least, SCORE_SIGMA)), distance,
        (100 * none, 100 * faint, 100 * complete, 100 * intense), len(category), n,
        (1 - one, one - two, two - three, three), tuple(name for name in flags if flags[name]), steps,
    )  # fmt: skip


def cell_steps(shares: StepShares) -> tuple[GuidelineStep, ...]:
    """Return the steps of the guideline from 3+ down to ultralow. The first step that is reached is the class."""
    ten, trace = TEN_PERCENT, TRACE
    stained, complete, intense = shares
    return (
        GuidelineStep("3+", "complete, intense in more than 10 % of tumour cells", "intense", intense, ten),
        GuidelineStep("2+", "complete, weak to moderate or stronger in more than 10 %", "complete", complete, ten),
        GuidelineStep("2+", "or complete, intense in 10 % or less, but more than a trace", "intense", intense, trace),
        GuidelineStep("1+", "faint or stronger, complete or not, in more than 10 %", "stained", stained, ten),
        GuidelineStep("ultralow", "faint, incomplete in 10 % or less", "stained", stained, MAX_NULL_SHARE),
    )
