"""The list of slides: summarized, filtered and sorted. Pure functions on rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from her2batch.store.cohort import Row
from her2batch.tasks import MEMBRANE_RULE

SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "first": lambda slide: (not slide["review"], slide["slide_id"].lower()),
    "slide_id": lambda slide: slide["slide_id"].lower(),
    "patient_id": lambda slide: slide["patient_id"],
    "stain": lambda slide: slide["stain"],
    "status": lambda slide: slide["status"],
    "rule": lambda slide: slide["rule"],
    "score": lambda slide: slide["score"],
    "tissue_mm2": lambda slide: slide["tissue_mm2"],
    "verdict": lambda slide: slide["verdict"],
}
"""Sort orders of the list → their keys. `first`: slides that need review first."""


class SlideFilter(BaseModel):
    """Which slides are listed, in which order, and which page of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q: str = Field("", max_length=200, description="text in slide, patient, error code, flags or reasons")
    status: Literal["done", "failed"] | None = None
    stain: str | None = None
    predicted: str | None = Field(None, description="a class, by any method")
    review: bool | None = Field(None, description="needs review")
    reviewed: bool | None = Field(None, description="has a verdict")
    sort: str = Field("first", pattern=f"^({'|'.join(SORT_KEYS)})$", description=", ".join(SORT_KEYS))
    descending: bool = False
    offset: int = Field(0, ge=0)
    limit: int = Field(100, ge=1, le=1000)


def summarize_slide(row: Row, predictions: Sequence[Row], review: Mapping[str, Any] | None) -> Row:
    """Return a slide as the list shows it. review: its newest review."""
    rule = next((p for p in predictions if (p["bundle"], p["task"]) == (MEMBRANE_RULE, "her2-4way")), None)
    needs_review = row["status"] == "failed" or any(prediction["review"] for prediction in predictions)
    reasons = dict.fromkeys(reason for prediction in predictions for reason in prediction["reasons"] or ())
    names = ("slide_id", "patient_id", "stain", "status", "error_code", "tissue_mm2", "n_tiles")
    return {
        **{name: row[name] for name in names},
        "flags": row["flags"] or [],
        "rule": rule["predicted"] if rule is not None else None,
        "score": rule["score"] if rule is not None else None,
        "predicted": {"/".join(p[key] for key in ("bundle", "task", "method")): p["predicted"] for p in predictions},
        "review": needs_review and review is None,
        "reasons": list(reasons),
        "verdict": review["verdict"] if review is not None else None,
        "label": review["label"] if review is not None else None,
    }


def filter_slides(summaries: Sequence[Row], slide_filter: SlideFilter) -> list[Row]:
    """Return the summaries that match, sorted. Slides without a value of the sort key come last."""
    matching = [slide for slide in summaries if _matches(slide, slide_filter)]
    key = SORT_KEYS[slide_filter.sort]
    with_key = [slide for slide in matching if key(slide) is not None]
    with_key.sort(key=lambda slide: slide["slide_id"].lower())
    with_key.sort(key=key, reverse=slide_filter.descending)
    return with_key + [slide for slide in matching if key(slide) is None]


def _matches(slide: Row, slide_filter: SlideFilter) -> bool:
    if slide_filter.status is not None and slide["status"] != slide_filter.status:
        return False
    if slide_filter.stain is not None and slide["stain"] != slide_filter.stain:
        return False
    if slide_filter.predicted is not None and slide_filter.predicted not in slide["predicted"].values():
        return False
    if slide_filter.review is not None and slide["review"] != slide_filter.review:
        return False
    if slide_filter.reviewed is not None and (slide["verdict"] is not None) != slide_filter.reviewed:
        return False
    searched = (
        slide["slide_id"],
        slide["patient_id"] or "",
        slide["error_code"] or "",
        *slide["flags"],
        *slide["reasons"],
    )
    return slide_filter.q.strip().lower() in " ".join(searched).lower()
