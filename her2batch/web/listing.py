"""The list of slides: a line each, filtered and sorted. Rows in, lines out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from her2batch.store.cohort import Row
from her2batch.tasks import MEMBRANE_RULE

SORTS: dict[str, Callable[[Row], Any]] = {
    "first": lambda one: (not one["review"], one["slide_id"].lower()),
    "slide_id": lambda one: one["slide_id"].lower(),
    "patient_id": lambda one: one["patient_id"],
    "stain": lambda one: one["stain"],
    "status": lambda one: one["status"],
    "rule": lambda one: one["rule"],
    "score": lambda one: one["score"],
    "tissue_mm2": lambda one: one["tissue_mm2"],
    "verdict": lambda one: one["verdict"],
}
"""What a list can be sorted by. `first`: what a pathologist opens first."""


class SlideFilter(BaseModel):
    """Which slides, in which order, and which of them at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q: str = Field("", max_length=200, description="words in slide, patient, flags or reasons")
    status: Literal["done", "failed"] | None = None
    stain: str | None = None
    predicted: str | None = Field(None, description="a class, by any method")
    review: bool | None = Field(None, description="a pathologist should look first")
    reviewed: bool | None = Field(None, description="somebody gave a verdict")
    sort: str = Field("first", pattern=f"^({'|'.join(SORTS)})$", description=", ".join(SORTS))
    descending: bool = False
    offset: int = Field(0, ge=0)
    limit: int = Field(100, ge=1, le=1000)


def line(row: Row, predictions: Sequence[Row], verdict: Mapping[str, Any] | None) -> Row:
    """A slide in the list. verdict: the newest entry on it."""
    rule = next((one for one in predictions if (one["bundle"], one["task"]) == (MEMBRANE_RULE, "her2-4way")), None)
    asks = row["status"] == "failed" or any(one["review"] for one in predictions)
    reasons = dict.fromkeys(why for one in predictions for why in one["reasons"] or ())
    names = ("slide_id", "patient_id", "stain", "status", "error_code", "tissue_mm2", "n_tiles")
    return {
        **{name: row[name] for name in names},
        "flags": row["flags"] or [],
        "rule": rule["predicted"] if rule is not None else None,
        "score": rule["score"] if rule is not None else None,
        "predicted": {f"{one['bundle']}/{one['task']}/{one['method']}": one["predicted"] for one in predictions},
        "review": asks and verdict is None,
        "reasons": list(reasons),
        "verdict": verdict["verdict"] if verdict is not None else None,
        "label": verdict["label"] if verdict is not None else None,
    }


def chosen(lines: Sequence[Row], wanted: SlideFilter) -> list[Row]:
    """The lines that are wanted, in order; those without a value for the order come last."""
    kept = [one for one in lines if _fits(one, wanted)]
    key = SORTS[wanted.sort]
    known = [one for one in kept if key(one) is not None]
    known.sort(key=lambda one: one["slide_id"].lower())
    known.sort(key=key, reverse=wanted.descending)
    return known + [one for one in kept if key(one) is None]


def _fits(one: Row, wanted: SlideFilter) -> bool:
    if wanted.status is not None and one["status"] != wanted.status:
        return False
    if wanted.stain is not None and one["stain"] != wanted.stain:
        return False
    if wanted.predicted is not None and wanted.predicted not in one["predicted"].values():
        return False
    if wanted.review is not None and one["review"] != wanted.review:
        return False
    if wanted.reviewed is not None and (one["verdict"] is not None) != wanted.reviewed:
        return False
    named = (one["slide_id"], one["patient_id"] or "", one["error_code"] or "", *one["flags"], *one["reasons"])
    return wanted.q.strip().lower() in " ".join(named).lower()
