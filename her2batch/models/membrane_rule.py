"""The ASCO/CAP wording for HER2 IHC, as a rule over membrane figures. It needs no weights.

It works on area, not on segmented tumour cells: '> 10 % of tumour cells' becomes '> 10 % of the cellular area of the
tissue'. Stroma with many nuclei dilutes that: on synthetic slides the shares are about 0.8 of those of tumour cells. A
research result with its evidence, never a diagnosis.  Source: ASCO/CAP 2018, affirmed 2023; ultralow: DESTINY-Breast06.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.tasks import CLASSES, HER2_TASKS, IHC_SCORES, MEMBRANE_RULE, her2_class

TEN_PERCENT = 0.10
"""The guideline's own threshold, for every step of the ladder."""

TRACE = 0.01
"""Share of intense, complete staining from which 'intense complete in ≤ 10 %' holds; below it is noise."""

DOUBT = 0.7
"""σ of the natural logarithm of a share. Known parts: 0.32 against the truth of 160 synthetic slides, 0.14 when other
tiles of a real core are drawn for the stain vectors, 0.33 when it is written as JPEG again, 0.35 between two
pathologists; 0.6 together. The rest is for laboratories, between which it is not known."""

SCORE_DOUBT = 0.9
"""The same for the continuous score: wider, so that it still tells slides apart far from 10 %."""

NEAR = 1.5
"""A share within this factor of 10 % is near it."""

FEW_CELLS = 0.05
"""Mean cellular share of the tissue below which there is little to score."""

PLAUSIBLE = 0.10
"""A class with at least this probability can't be ruled out."""

ISH_POSITIVE = 22 / 118
"""Share of 2+ slides with a positive ISH in the paper's cohort (table 3)."""


@dataclass(frozen=True)
class RuleResult:
    """One slide's HER2 score by the rule.

    score: continuous, 0–3.  distance: factor by which the nearest share misses 10 %, natural logarithm.  shares: of
    the cellular area, by intensity.  p: of 0, 1+, 2+, 3+.
    """

    category: str
    score: float
    distance: float
    ultralow: bool
    shares: dict[str, float]
    p: tuple[float, float, float, float]
    reasons: tuple[str, ...]


def slide_shares(table: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """A slide's figures: the tiles' shares, weighted by their cellular area; `cells` is the mean over tiles."""
    weight = table["cells"].astype(np.float64)
    total = fsum(weight)  # exact sums: the order of the tiles changes no bit
    shares = {name: fsum(weight * values) / max(total, 1e-9) for name, values in table.items() if name != "cells"}
    return {"cells": total / len(weight), **shares}


def apply_rule(table: Mapping[str, NDArray[np.float32]]) -> RuleResult:
    """Apply the rule to a slide's membrane table, whose columns are those of `vision.membrane.MEMBRANE_COLUMNS`.

    3+: complete, intense in > 10 %.  2+: complete, moderate or more in > 10 %, or complete, intense in less.
    1+: faint or incomplete in > 10 %.  0: less.  Raises ValueError for a table without tiles.
    """
    if not len(table["cells"]):
        raise ValueError("a slide without tiles can't be scored")
    shares = slide_shares(table)
    ladder = GuidelineShares(shares["faint"], shares["moderate_complete"], shares["intense_complete"])
    category = IHC_SCORES[sum(step > 0.5 for step in _steps(ladder, DOUBT))]
    distance = min(abs(_log_ratio(share, TEN_PERCENT)) for share in ladder)
    ultralow = category == "0" and ladder.faint > TRACE
    found = {
        "near-10-percent": distance < np.log(NEAR),
        "low-cellularity": shares["cells"] < FEW_CELLS,
        "ultralow": ultralow,
    }
    one, two, three = _steps(ladder, DOUBT)
    p = (1 - one, one - two, two - three, three)
    score = sum(_steps(ladder, SCORE_DOUBT))
    return RuleResult(category, score, distance, ultralow, shares, p, tuple(name for name in found if found[name]))


class GuidelineStep(NamedTuple):
    """One question of the guideline's ladder. reached: the share lies above its threshold."""

    category: str
    wording: str
    column: str  # of the membrane table
    share: float
    threshold: float

    @property
    def reached(self) -> bool:
        """Whether the wording holds."""
        return self.share > self.threshold


def guideline_steps(shares: Mapping[str, float]) -> list[GuidelineStep]:
    """What `judge` asks of a slide's shares, from 3+ down: the first step that is reached is the class; none: 0."""
    questions = (
        ("3+", "complete, intense in more than 10 %", "intense_complete", TEN_PERCENT),
        ("2+", "complete, moderate or stronger in more than 10 %", "moderate_complete", TEN_PERCENT),
        ("2+", "or complete, intense in 10 % or less, but more than a trace", "intense_complete", TRACE),
        ("1+", "faint or stronger, complete or not, in more than 10 %", "faint", TEN_PERCENT),
    )
    return [GuidelineStep(category, words, name, shares[name], limit) for category, words, name, limit in questions]


class GuidelineShares(NamedTuple):
    """The shares that the guideline's steps ask for."""

    faint: float  # or more, complete or not
    complete: float  # moderate or more
    intense: float  # and complete


def _steps(ladder: GuidelineShares, doubt: float) -> tuple[float, float, float]:
    """How far 1+, 2+ and 3+ are reached or passed: 0–1, above ½ where the wording holds, never rising from left to
    right.

    Each is the chance that a share with this much doubt lies above its threshold: logistic in its logarithm, of σ
    `doubt`. More of anything never lowers one.
    """  # fmt: skip
    three = _chance(ladder.intense, TEN_PERCENT, doubt)
    two = max(_chance(ladder.complete, TEN_PERCENT, doubt), _chance(ladder.intense, TRACE, doubt))
    return max(_chance(ladder.faint, TEN_PERCENT, doubt), two), two, three


def _chance(share: float, threshold: float, doubt: float) -> float:
    return float(1 / (1 + np.exp(-_log_ratio(share, threshold) * np.pi / (np.sqrt(3) * doubt))))


def _log_ratio(share: float, threshold: float) -> float:
    return float(np.log(max(share, 1e-4) / threshold))


def rule_predictions(verdict: RuleResult, presumed: bool) -> list[dict[str, Any]]:
    """Rows of the predictions table without slide and patient: the three HER2 tasks.

    presumed: nobody said that the slide is HER2.  2+ without ISH: `low` and `negative` are only the likelier half, so
    both classes stay plausible and the slide is for review.
    """
    rows = []
    for task in HER2_TASKS:
        chances = _chances(task, verdict.p)
        open_question = task != "her2-4way" and verdict.category == "2+"
        both = {str(her2_class(task, "2+", ish)) for ish in "-+"} if open_question else set()
        predicted = str(her2_class(task, verdict.category, "-"))
        asked = {"needs-ish": open_question, "marker-presumed": presumed}
        doubtful = verdict.category == "2+" or bool({"near-10-percent", "low-cellularity"} & set(verdict.reasons))
        rows.append(
            {
                "task": task,
                "method": MEMBRANE_RULE,
                "classes": list(chances),
                "p": list(chances.values()),
                "predicted": predicted,
                "plausible": [name for name, p in chances.items() if p >= PLAUSIBLE or name in {predicted, *both}],
                "review": doubtful,
                "reasons": [*verdict.reasons, *(name for name in asked if asked[name])],
                "score": verdict.score,
            }
        )
    return rows


def _chances(task: str, p: tuple[float, float, float, float]) -> dict[str, float]:
    """Probability of each class of a task, in order, from those of 0, 1+, 2+, 3+."""
    chances = dict.fromkeys(CLASSES[task], 0.0)
    for ihc, chance in zip(IHC_SCORES, p, strict=True):
        for ish, part in (("-", 1 - ISH_POSITIVE), ("+", ISH_POSITIVE)):
            chances[str(her2_class(task, ihc, ish))] += chance * part
    return chances
