"""The membrane rule: the ASCO/CAP wording for HER2 IHC applied to membrane measurements, without weights.

The rule works on area, not on segmented tumour cells: '> 10 % of tumour cells' becomes '> 10 % of the cellular area of
the tissue'. Stroma with many nuclei dilutes it: on synthetic slides the shares are about 0.8 of those of tumour cells.
A research result with its evidence, never a diagnosis. Source: ASCO/CAP 2018, affirmed 2023; ultralow:
DESTINY-Breast06.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2batch.assessment import IHC_TASK, prediction_review, quality_flags
from her2batch.models.guideline.cell_rule import CellRuleResult
from her2batch.models.guideline.steps import (
    TEN_PERCENT,
    TRACE,
    GuidelineStep,
    StepShares,
    log_ratio,
    step_probabilities,
)
from her2batch.tasks import CLASSES, IHC_SCORES, MEMBRANE_RULE, RULE_TASKS, her2_class

SHARE_SIGMA = 0.7
"""Standard deviation of the natural logarithm of a share. Known parts: 0.32 against the truth of 160 synthetic slides,
0.14 when other tiles of a real core are drawn for the stain vectors, 0.33 when the core is written as JPEG again, 0.35
between two pathologists; 0.6 together. The rest is for differences between laboratories, which are not known."""

LABORATORY_SIGMA = 1.04
"""The same for a laboratory that is not known: 0.6 within one, and 0.85 from 10 % to the thresholds that fit the slides
of six synthetic development laboratories (seeds 1 to 6, docs/calibration.md), which differ in DAB, counterstain,
section, colours and scanner."""

SCORE_SIGMA = 0.9
"""The same for the continuous score: wider, so that the score still separates slides far from 10 %."""

NEAR_FACTOR = 2.0
"""A share within this factor of 10 % is near 10 %: one standard deviation of its logarithm, e^SHARE_SIGMA. Scanner-like
shifts changed 106 classes of 68 synthetic development slides; 0.92 of them are then on slides for review, and 0.81 with
a factor of 1.5."""

LOW_CELLULARITY = 0.05
"""Mean cellular share of the tissue below which a slide is flagged."""

WEAK_COMPLETE_SHARE = 0.5
"""Share of complete, at least faint staining above which a slide below 2+ may be 2+ by weak, complete membranes. Area
can't tell at 10 %: the neighbouring membranes of broken rings are dense as well. Synthetic slides of 1+ have 0.20 to
0.46, those with weak, complete staining in 60 to 90 % of the cells 0.60 to 0.95."""

MIN_PLAUSIBLE = 0.10
"""A class of at least this probability cannot be ruled out."""

UNCONFIRMED = "unconfirmed-3-plus"
"""Reason of a 3+ by one rule alone, by the area of the membranes or by the cells."""

ISH_POSITIVE = 22 / 118
"""Share of 2+ slides with a positive ISH in the paper's cohort (table 3)."""


@dataclass(frozen=True)
class RuleResult:
    """The HER2 score of a slide by the membrane rule.

    score: continuous, 0–3.  distance: natural logarithm of the factor between 10 % and the nearest share.  shares: of
    the cellular area, by intensity.  p: probabilities of 0, 1+, 2+, 3+.
    """

    category: str
    score: float
    distance: float
    ultralow: bool
    shares: dict[str, float]
    p: tuple[float, float, float, float]
    reasons: tuple[str, ...]


def slide_shares(table: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the shares of a slide: those of its tiles, weighted by cellular area; `cells` is the mean over tiles."""
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
        raise ValueError("a slide without tiles cannot be scored")
    shares = slide_shares(table)
    guideline = StepShares(shares["faint"], shares["moderate_complete"], shares["intense_complete"])
    one, two, three = step_probabilities(guideline, SHARE_SIGMA)
    category = IHC_SCORES[sum(step > 0.5 for step in (one, two, three))]
    distance = min(abs(log_ratio(share, TEN_PERCENT)) for share in guideline)
    ultralow = category == "0" and guideline.stained > TRACE
    flags = {
        "near-10-percent": distance < np.log(NEAR_FACTOR),
        "low-cellularity": shares["cells"] < LOW_CELLULARITY,
        "weak-complete": category in ("0", "1+") and shares["faint_complete"] > WEAK_COMPLETE_SHARE,
        "ultralow": ultralow,
    }
    p = (1 - one, one - two, two - three, three)
    score = sum(step_probabilities(guideline, SCORE_SIGMA))
    return RuleResult(category, score, distance, ultralow, shares, p, tuple(name for name in flags if flags[name]))


def guideline_steps(shares: Mapping[str, float]) -> list[GuidelineStep]:
    """Return the steps of the guideline from 3+ down. The first step that is reached is the class; if none is, 0."""
    steps = (
        ("3+", "complete, intense in more than 10 %", "intense_complete", TEN_PERCENT),
        ("2+", "complete, moderate or stronger in more than 10 %", "moderate_complete", TEN_PERCENT),
        ("2+", "or complete, intense in 10 % or less, but more than a trace", "intense_complete", TRACE),
        ("1+", "faint or stronger, complete or not, in more than 10 %", "faint", TEN_PERCENT),
    )
    return [GuidelineStep(category, wording, name, shares[name], limit) for category, wording, name, limit in steps]


def rule_predictions(
    result: RuleResult | CellRuleResult, presumed: bool, flags: Iterable[str] = (), method: str = MEMBRANE_RULE
) -> list[dict[str, Any]]:
    """Return rows of the predictions table without slide and patient, one for each HER2 task.

    presumed: the stain HER2 is assumed, not known.  flags: of the slide; those that concern its quality are reasons.
    method: the name of the rule.  With weak, complete staining the classes of 2+ stay plausible. 2+ without ISH: `low`
    and `negative` are only more likely, so both classes stay plausible and the slide is for review. 3+ is for review
    until the other rule confirms it, which the assessment of the slide decides.
    """
    rows = []
    wide = _wider_probabilities(result.p)
    for task in RULE_TASKS:
        probabilities = derived_probabilities(task, result.p)
        needs_ish = task != "her2-4way" and result.category == "2+"
        equivocal = needs_ish or "weak-complete" in result.reasons
        both = {str(her2_class(task, "2+", ish)) for ish in "-+"} if equivocal else set()
        predicted = str(her2_class(task, result.category, "-"))
        further = {
            "needs-ish": needs_ish,
            UNCONFIRMED: result.category == "3+",
            "marker-presumed": presumed,
            "uncalibrated": True,
        }
        reasons = [*quality_flags(flags), *result.reasons, *(name for name in further if further[name])]
        elsewhere = derived_probabilities(task, wide)
        rows.append(
            {
                "task": task,
                "method": method,
                "classes": list(probabilities),
                "p": list(probabilities.values()),
                "predicted": predicted,
                "plausible": plausible_uncalibrated(probabilities, elsewhere, {predicted, *both}),
                "review": prediction_review(IHC_TASK, result.category, reasons),
                "reasons": reasons,
                "score": result.score,
            }
        )
    return rows


def _wider_probabilities(p: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return the probabilities of 0, 1+, 2+, 3+ if nothing is known of the laboratory.

    The steps are logistic in the logarithms of shares, so that a larger standard deviation divides their logits.
    """
    above = np.clip(np.cumsum(p[::-1])[::-1][1:], 1e-12, 1 - 1e-12)
    logits = (np.log(above) - np.log1p(-above)) * SHARE_SIGMA / LABORATORY_SIGMA
    one, two, three = (1 / (1 + np.exp(-logits))).tolist()
    return 1 - one, one - two, two - three, three


def plausible_uncalibrated(p: Mapping[str, float], wide: Mapping[str, float], kept: Collection[str]) -> list[str]:
    """Return the classes that cannot be ruled out without a calibration, in order and without gaps.

    p: probability of each class, in order.  wide: the same if nothing is known of the laboratory.  kept: classes that
    stay anyway.  To the classes that are likely in a laboratory as those that the rule knows, one further class on each
    side is added where it is likely in another laboratory.
    """
    names = list(p)
    positions = [k for k, name in enumerate(names) if p[name] >= MIN_PLAUSIBLE or name in kept]
    low, high = min(positions), max(positions)
    low -= low > 0 and wide[names[low - 1]] >= MIN_PLAUSIBLE
    high += high + 1 < len(names) and wide[names[high + 1]] >= MIN_PLAUSIBLE
    return names[low : high + 1]


def derived_probabilities(task: str, p: tuple[float, float, float, float]) -> dict[str, float]:
    """Return the probability of each class of a task, in order, from those of 0, 1+, 2+, 3+."""
    probabilities = dict.fromkeys(CLASSES[task], 0.0)
    for ihc, probability in zip(IHC_SCORES, p, strict=True):
        for ish, part in (("-", 1 - ISH_POSITIVE), ("+", ISH_POSITIVE)):
            probabilities[str(her2_class(task, ihc, ish))] += probability * part
    return probabilities
