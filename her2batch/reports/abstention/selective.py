"""Selective prediction: what it costs and gains to review the slides that are most likely wrong.

The risk–coverage curve shows the share of errors among the slides that are decided without a review against the share
of slides that are decided so, when the most certain ones are decided first (El-Yaniv & Wiener, JMLR 2010; Geifman &
El-Yaniv, NeurIPS 2017). The certainty is the calibrated probability of the predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from her2batch.training.statistics import exact_interval

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHARES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of slides to review that the table of the trade shows."""

EQUIVOCAL: Final = "2+"
"""IHC score that an ISH test follows."""


@dataclass(frozen=True)
class JudgedSlide:
    """A labelled slide with a calibrated prediction.

    error: probability that the predicted class is wrong, by the calibration.  plausible: the conformal set.  inside:
    the calibration applies to the slide.  uncalibrated: class by the same method without the calibration, None where it
    is not known.
    """

    slide_id: str
    patient: str
    truth: str
    predicted: str
    plausible: tuple[str, ...]
    error: float
    inside: bool = True
    uncalibrated: str | None = None

    @property
    def wrong(self) -> bool:
        """Return whether the predicted class is not that of the label."""
        return self.predicted != self.truth

    @property
    def decided(self) -> bool:
        """Return whether the set holds one class, and the calibration applies."""
        return self.inside and len(self.plausible) == 1


@dataclass(frozen=True)
class RiskCoverage:
    """The risk–coverage curve: a point for each distinct certainty, the most certain slides first.

    coverage: share of slides that are decided, (m,).  risk: share of errors among them, (m,).  expected: the same by
    the probabilities, (m,).
    """

    coverage: Floats
    risk: Floats
    expected: Floats

    @property
    def area(self) -> float:
        """Return the mean risk over all slides (AURC); slides of one certainty have the risk at their end."""
        return float(np.sum(self.risk * np.diff(self.coverage, prepend=0.0)))


def risk_coverage(error: Floats, wrong: Mask) -> RiskCoverage:
    """Return the risk–coverage curve. error: probability of error, (n,).  wrong: (n,); n ≥ 1.

    Slides with equal probabilities are one point, so that the order among them does not matter.
    """
    order = np.argsort(error, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(error[order]) > 0, True))
    counts = ends + 1
    return RiskCoverage(
        counts / len(error), np.cumsum(wrong[order])[ends] / counts, np.cumsum(error[order])[ends] / counts
    )


def review_order(error: Floats, inside: Mask) -> NDArray[np.int64]:
    """Return the positions of slides in the order of their review.

    Slides outside the calibration come first: nothing says how likely their class is wrong. The others follow by their
    probability of error, the largest first.
    """
    return np.lexsort((-error, inside)).astype(np.int64)


def slides_in_budget(n: int, share: float) -> int:
    """Return the number of slides that a share of n slides allows: never more than the share."""
    return min(n, int(share * n + 1e-9))


@dataclass(frozen=True)
class TradePoint:
    """What a review of some slides gains and costs on labelled slides. A reviewed slide gets the class of its label.

    reviewed, errors, caught: slides; errors are those without any review.  wrong: errors of the slides that nobody
    reviews, of which there are `others`.  low, high: exact 95 % interval of their share.  ish: slides that are 2+ in
    the end.  saved, added: ISH tests that the uncalibrated method would order and this would not, and the reverse; None
    where it is not known.  missed: slides of label 2+ that get no ISH test.
    """

    name: str
    slides: int
    reviewed: int
    errors: int
    caught: int
    others: int
    wrong: int
    low: float | None
    high: float | None
    ish: int
    saved: int | None
    added: int | None
    missed: int

    @property
    def error(self) -> float | None:
        """Return the share of errors among the slides that nobody reviews; None where all are reviewed."""
        return self.wrong / self.others if self.others else None


def trade_point(name: str, slides: Sequence[JudgedSlide], reviewed: Sequence[bool] | Mask) -> TradePoint:
    """Return what the review of some slides gains and costs. reviewed: whether each slide is reviewed."""
    pairs = list(zip(slides, reviewed, strict=True))
    others = [one for one, looked_at in pairs if not looked_at]
    wrong = sum(one.wrong for one in others)
    patients = len({one.patient for one in others})
    low, high = exact_interval(wrong / len(others) * patients, patients) if others else (None, None)
    final = [one.truth if looked_at else one.predicted for one, looked_at in pairs]
    ish = [name == EQUIVOCAL for name in final]
    known = all(one.uncalibrated is not None for one in slides)
    before = [one.uncalibrated == EQUIVOCAL for one in slides]
    errors = sum(one.wrong for one in slides)
    return TradePoint(
        name, len(slides), len(slides) - len(others), errors, errors - wrong, len(others), wrong, low, high, sum(ish),
        sum(old and not new for old, new in zip(before, ish, strict=True)) if known else None,
        sum(new and not old for old, new in zip(before, ish, strict=True)) if known else None,
        sum(one.truth == EQUIVOCAL and not new for one, new in zip(slides, ish, strict=True)),
    )  # fmt: skip


def trade_points(slides: Sequence[JudgedSlide], budget: float | None = None) -> list[TradePoint]:
    """Return the trade at SHARES and the budget, and last at the operating point: what the sets leave open."""
    error, inside = error_of(slides), np.array([one.inside for one in slides], bool)
    order = review_order(error, inside)
    points = []
    for share in sorted({*SHARES, *([budget] if budget is not None else [])}):
        reviewed = np.zeros(len(slides), bool)
        reviewed[order[: slides_in_budget(len(slides), share)]] = True
        words = "no review" if not share else f"the first {100 * share:g} % of the queue"
        points.append(trade_point(words + (" (budget)" if share == budget else ""), slides, reviewed))
    return [*points, trade_point("the sets decide", slides, [not one.decided for one in slides])]


def error_of(slides: Sequence[JudgedSlide]) -> Floats:
    """Return the probability of error of each slide, (n,)."""
    return np.array([one.error for one in slides], np.float64)


@dataclass(frozen=True)
class ClassCoverage:
    """The sets of the labelled slides of one class. covered: those whose class is in the set. size: mean of the set."""

    name: str
    slides: int
    covered: int
    low: float
    high: float
    size: float


def class_coverage(slides: Sequence[JudgedSlide], classes: Sequence[str]) -> list[ClassCoverage]:
    """Return how many labelled slides of each class have it in their set, with the exact 95 % interval of the share.

    Only slides inside the calibration count. A class without slides is left out.
    """
    found = []
    for name in classes:
        own = [one for one in slides if one.inside and one.truth == name]
        if own:
            covered = sum(one.truth in one.plausible for one in own)
            patients = len({one.patient for one in own})
            low, high = exact_interval(covered / len(own) * patients, patients)
            size = sum(len(one.plausible) for one in own) / len(own)
            found.append(ClassCoverage(name, len(own), covered, low, high, size))
    return found
