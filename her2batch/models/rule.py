"""The ASCO/CAP wording for HER2 IHC, as a rule over membrane figures. It needs no weights.

It works on area, not on segmented tumour cells: '> 10 % of tumour cells' becomes '> 10 % of the cellular area of the
tissue'. A research result with its evidence, never a diagnosis.  Source: ASCO/CAP 2018, affirmed 2023; ultralow:
DESTINY-Breast06.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2batch.tasks import CLASSES, IHC, MEMBRANE, her2_class

TEN_PERCENT = 0.10
"""The guideline's own threshold, for every step of the ladder."""

TRACE = 0.01
"""Share of intense, complete staining from which 'intense complete in ≤ 10 %' holds; below it is noise."""

DOUBT = 0.35
"""Spread (natural logarithm) of a share between two readings of one slide: near 10 % the rule says so. Two pathologists
agree on shares within a factor of about 1.4."""

NEAR = 1.5
"""A share within this factor of 10 % is near it."""

FEW_CELLS = 0.05
"""Mean cellular share of the tissue below which there is little to score."""

PLAUSIBLE = 0.10
"""A class with at least this probability can't be ruled out."""


@dataclass(frozen=True)
class Verdict:
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
    total = max(float(weight.sum()), 1e-9)
    shares = {name: float((weight * values).sum() / total) for name, values in table.items() if name != "cells"}
    return {"cells": float(weight.mean()), **shares}


def judge(table: Mapping[str, NDArray[np.float32]]) -> Verdict:
    """The rule over a slide's membrane table: columns `cells`, `faint`, … as `vision.membrane.MEMBRANE` names them.

    3+: complete, intense in > 10 %.  2+: complete, moderate or more in > 10 %, or complete, intense in less.
    1+: faint or incomplete in > 10 %.  0: less.  Raises ValueError for a table without tiles.
    """
    if not len(table["cells"]):
        raise ValueError("a slide without tiles can't be scored")
    shares = slide_shares(table)
    ladder = [shares["faint"], shares["moderate_complete"], shares["intense_complete"]]
    if ladder[2] > TEN_PERCENT:
        category = "3+"
    elif ladder[1] > TEN_PERCENT or ladder[2] > TRACE:
        category = "2+"
    else:
        category = "1+" if ladder[0] > TEN_PERCENT else "0"
    p = _probabilities(ladder)
    distance = min(abs(_log_ratio(share)) for share in ladder)
    ultralow = category == "0" and ladder[0] > TRACE
    reasons = []
    if distance < np.log(NEAR):
        reasons.append("near-10-percent")
    if shares["cells"] < FEW_CELLS:
        reasons.append("low-cellularity")
    if ultralow:
        reasons.append("ultralow")
    return Verdict(category, _score(ladder), distance, ultralow, shares, p, tuple(reasons))


def _score(ladder: list[float]) -> float:
    """0–3, rising with every share: 10 % is half a step of the ladder, a third of that a tenth, ten times that all."""
    return float(sum(share**2 / (share**2 + TEN_PERCENT**2) for share in ladder))


def _log_ratio(share: float) -> float:
    return float(np.log(max(share, 1e-4) / TEN_PERCENT))


def _probabilities(ladder: list[float]) -> tuple[float, float, float, float]:
    """Of 0, 1+, 2+, 3+: each step of the ladder is reached with a logistic chance of its share's distance to 10 %."""
    faint, complete, intense = (1 / (1 + np.exp(-_log_ratio(share) / (DOUBT * 0.55))) for share in ladder)
    trace = 1 / (1 + np.exp(-float(np.log(max(ladder[2], 1e-4) / TRACE)) / (DOUBT * 0.55)))
    at_least_two = max(float(complete), float(trace), float(intense))
    at_least_one = max(float(faint), at_least_two)
    three = float(intense)
    return 1 - at_least_one, at_least_one - at_least_two, at_least_two - three, three


def predictions(verdict: Verdict, presumed: bool) -> list[dict[str, Any]]:
    """Rows of the predictions table without slide and patient: the three HER2 tasks.

    presumed: nobody said that the slide is HER2.  2+ without ISH: `low` and `negative` are only the likelier half, so
    both classes stay plausible and the slide is for review.
    """
    rows = []
    for task in ("her2-4way", "her2-3way", "her2-binary"):
        classes = CLASSES[task]
        p = dict.fromkeys(classes, 0.0)
        for ihc, chance in zip(IHC, verdict.p, strict=True):
            for ish, part in (("-", 1 - ISH_POSITIVE), ("+", ISH_POSITIVE)):
                p[str(her2_class(task, ihc, ish))] += chance * part
        open_question = task != "her2-4way" and verdict.category == "2+"
        predicted = str(her2_class(task, verdict.category, "-"))
        plausible = [one for one in classes if p[one] >= PLAUSIBLE or one == predicted]
        if open_question:
            plausible = [one for one in classes if one in plausible or one in ("low", "high", "negative", "positive")]
        reasons = [
            *verdict.reasons,
            *(["needs-ish"] if open_question else []),
            *(["marker-presumed"] if presumed else []),
        ]
        review = (
            open_question or verdict.category == "2+" or bool({"near-10-percent", "low-cellularity"} & set(reasons))
        )
        rows.append(
            {
                "task": task, "method": MEMBRANE, "classes": list(classes), "p": [p[one] for one in classes],
                "predicted": predicted, "plausible": plausible, "review": review, "reasons": reasons,
                "score": verdict.score,
            }
        )  # fmt: skip
    return rows


ISH_POSITIVE = 22 / 118
"""Share of 2+ slides with a positive ISH in the paper's cohort (table 3)."""
