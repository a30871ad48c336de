"""The review queue: slides with a calibrated result, those most likely wrong first, cut where the budget ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from her2batch.errors import InputError
from her2batch.models.calibration.predictions import OUTSIDE
from her2batch.reports.abstention.selective import review_order, slides_in_budget
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SortableTable
from her2batch.store.cohort import Row
from her2batch.tasks import is_calibration


@dataclass(frozen=True)
class QueuedSlide:
    """A slide of the queue. error: probability that its class is wrong; None where no calibration applies."""

    slide_id: str
    predicted: str
    plausible: tuple[str, ...]
    error: float | None
    label: str | None


@dataclass(frozen=True)
class ReviewQueue:
    """The queue.  slides: all, in the order of their review.  length: those within the budget; all without one."""

    slides: tuple[QueuedSlide, ...]
    length: int
    budget: float | None = None

    @property
    def expected(self) -> float:
        """Return the number of errors that the probabilities let expect in all slides inside the calibration."""
        return sum(one.error or 0.0 for one in self.slides)

    @property
    def caught(self) -> float:
        """Return the number of these errors that are expected within the budget."""
        return sum(one.error or 0.0 for one in self.slides[: self.length])

    @property
    def outside(self) -> int:
        """Return the number of slides that no calibration applies to."""
        return sum(one.error is None for one in self.slides)

    @property
    def as_json(self) -> dict[str, Any]:
        """Return the figures of the queue as plain values."""
        return {
            "budget": self.budget, "slides": len(self.slides), "queue": self.length, "outside": self.outside,
            "expected_errors": round(self.expected, 3), "expected_caught": round(self.caught, 3),
        }  # fmt: skip


def error_probability(prediction: Row) -> float:
    """Return the probability that the predicted class is wrong, by the prediction's own probabilities."""
    return 1.0 - float(prediction["p"][list(prediction["classes"]).index(prediction["predicted"])])


def applies(prediction: Row) -> bool:
    """Return whether a prediction is that of a calibration, inside its range."""
    return is_calibration(prediction["bundle"]) and OUTSIDE not in (prediction["reasons"] or ())


def review_queue(data: ReportData) -> ReviewQueue:
    """Return the queue of a cohort.

    It holds every slide with a result by a method of a calibrated task, except those that a pathologist has decided. It
    is empty without calibrated predictions. Raises InputError for a budget that no calibration supports.
    """
    results = [(slide_id, found) for slide_id, found in data.assessments.items()
               if found.main is not None and found.main["classes"] and not found.not_scorable]  # fmt: skip
    tasks = {found.main["task"] for _, found in results if found.main is not None and applies(dict(found.main))}
    if not tasks and data.review_budget is not None:
        what = "has no calibrated predictions, which --review-budget needs"
        raise InputError(what, data.cohort.root, "run her2batch calibrate, then her2batch score --calibration FILE")
    queued = []
    for slide_id, found in results:
        if found.main is not None and found.main["task"] in tasks and found.state != "decided":
            main = dict(found.main)
            error = error_probability(main) if applies(main) else None
            queued.append(QueuedSlide(slide_id, main["predicted"], tuple(main["plausible"] or ()), error, found.label))
    errors = np.array([one.error or 0.0 for one in queued], np.float64)
    order = review_order(errors, np.array([one.error is not None for one in queued], bool))
    length = len(queued) if data.review_budget is None else slides_in_budget(len(queued), data.review_budget)
    return ReviewQueue(tuple(queued[k] for k in order), length, data.review_budget)


def queue_table(data: ReportData, queue: ReviewQueue) -> SortableTable:
    """Return the slides of the queue within the budget, with the share of the expected errors up to each."""
    so_far, rows = 0.0, []
    for place, one in enumerate(queue.slides[: queue.length], start=1):
        so_far += one.error or 0.0
        share = so_far / queue.expected if queue.expected else None
        rows.append([place, one.slide_id, one.predicted, list(one.plausible), one.error, share, one.label,
                     data.site_of(one.slide_id)])  # fmt: skip
    columns = (
        ("place", "number", "predictions.p"), ("slide", "slide", "slides.slide_id"),
        ("result", "class", "predictions.predicted"), ("plausible", "words", "predictions.plausible"),
        ("probability of error", "share", "predictions.p"), ("expected errors so far", "share", "predictions.p"),
        ("label", "class", "labels"), ("site", "text", "labels.site"),
    )  # fmt: skip
    note = (
        "The most likely errors first, by the calibrated probability of the class. Slides that the calibration does "
        "not apply to have no such probability and come before all others. Slides that are decided or cannot "
        "be scored are left out; quality flags and failures are in the worklist."
    )
    return SortableTable("review-queue", "Review queue", note, columns, rows)
