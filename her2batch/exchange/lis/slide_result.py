"""The result of a slide as it is sent to a laboratory information system (LIS).

A result is preliminary until a pathologist has given a verdict, and final with one. It contains what `assess_slide`
decides for every screen, so that no receiver gets a class that the page would not show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from her2batch.assessment import assess_slide
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.labels import stored_labels
from her2batch.store.pieces.control_runs import flag_failed_runs
from her2batch.store.reviews import read_reviews, reviews_by_slide, unerased_reviews
from her2batch.tasks import HER2_TASKS

CODES: Final[dict[str, tuple[str, str]]] = {
    "her2": ("85319-2", "HER2 [Presence] in Breast cancer specimen by Immune stain"),
    "er": ("85337-4", "Estrogen receptor Ag [Presence] in Breast cancer specimen by Immune stain"),
    "pr": ("85339-0", "Progesterone receptor Ag [Presence] in Breast cancer specimen by Immune stain"),
}
"""Marker → its LOINC code and name."""

ANSWERS: Final[dict[str, str]] = {
    "0": "LA6111-4",
    "1+": "LA11841-6",
    "2+": "LA11842-4",
    "3+": "LA11843-2",
    "positive": "LA6576-8",
    "negative": "LA6577-6",
}
"""Class → its code in the LOINC answer lists of these codes."""

PATHOLOGIST: Final = "pathologist"


@dataclass(frozen=True)
class SlideResult:
    """What is reported of one slide.

    marker: her2, er or pr.  result: its class.  meaning: of the result, in words.  status_class: HER2 negative or
    positive; None where it is not determined, as with 2+ without ISH.  ish: of the labels, '+', '-' or None.  by: name
    of the method, or `pathologist`.  reasons: for a review, in words.  reviewer, decided: of the verdict; None without.
    """

    slide_id: str
    marker: str
    result: str
    meaning: str
    status_class: str | None
    ish: str | None
    by: str
    reasons: tuple[str, ...]
    reviewer: str | None
    decided: datetime | None
    plan_id: str
    software: str

    @property
    def final(self) -> bool:
        """Whether a pathologist has given a verdict."""
        return self.decided is not None

    @property
    def digest(self) -> str:
        """SHA-256 of the content, which decides whether a slide has to be sent again.

        The versions of plan and software are not part of it: an update that changes no result sends nothing.
        """
        content = {name: value for name, value in asdict(self).items() if name not in ("plan_id", "software")}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


class Unreported(NamedTuple):
    """A slide that is not sent, and why."""

    slide_id: str
    reason: str


def cohort_results(cohort: Cohort) -> Iterator[SlideResult | Unreported]:
    """Yield the result of every slide of a cohort, in the order of the slide ids; `Unreported` for one without.

    Raises StoreError for damaged labels, OSError or pa.ArrowInvalid for a damaged table.
    """
    labels, reviews = stored_labels(cohort), reviews_by_slide(unerased_reviews(read_reviews(cohort)))
    for slide_id, row in sorted(flag_failed_runs(cohort, cohort.rows()).items()):
        yield slide_result(row, _predictions(cohort, row), labels.get(slide_id), reviews.get(slide_id, ()))


def slide_result(
    row: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    label: Mapping[str, Any] | None,
    reviews: Sequence[Mapping[str, Any]],
) -> SlideResult | Unreported:
    """Return the result of one slide; the parameters are those of `assess_slide`.

    A slide that failed has one once a pathologist has scored its glass.
    """
    found = assess_slide(row, predictions, label, reviews)
    if row["status"] != "done" and found.verdict is None:
        return Unreported(row["slide_id"], f"failed: {row['error_code']}")
    if found.result is None or found.task is None:
        return Unreported(row["slide_id"], found.meaning or "no method gave a result")
    verdict, is_her2 = found.verdict, found.task in HER2_TASKS
    marker = "her2" if is_her2 else found.task
    if marker not in CODES:
        return Unreported(row["slide_id"], f"the task {found.task} has no LOINC code")
    asking = () if verdict is not None else tuple(reason.words for reason in found.reasons if reason.asks)
    return SlideResult(
        slide_id=row["slide_id"],
        marker=marker,
        result=found.result,
        meaning=found.meaning,
        status_class=found.derived.get("her2-binary") if is_her2 else None,
        ish=found.ish if is_her2 else None,
        by=found.by or "",
        reasons=asking,
        reviewer=verdict["reviewer"] if verdict is not None else None,
        decided=verdict["time"] if verdict is not None else None,
        plan_id=row["plan_id"],
        software=version("her2batch"),
    )


def _predictions(cohort: Cohort, row: Row) -> list[Row]:
    """The slide's rows of all predictions tables, each with its bundle."""
    return [
        {"bundle": name.partition("/")[2], **prediction}
        for name in tables_of(row, "predictions")
        for prediction in cohort.read(name, row["slide_id"]).to_pylist()
    ]
