"""The list of slides: summarized, filtered and sorted. Pure functions on rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from her2batch.assessment import Assessment, is_uncalibrated
from her2batch.reasons import KINDS
from her2batch.store.cohort import Row
from her2batch.task_names import STAIN_NAMES, stain_name, task_name
from her2batch.tasks import CLASSES, HER2_TASKS, MEMBRANE_RULE

LAST: datetime = datetime.max.replace(tzinfo=UTC)

SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "first": lambda slide: (slide["rank"], slide["finished"] or LAST, slide["slide_id"].lower()),
    "slide_id": lambda slide: slide["slide_id"].lower(),
    "patient_id": lambda slide: slide["patient_id"],
    "stain": lambda slide: slide["stain"],
    "status": lambda slide: slide["status"],
    "rule": lambda slide: slide["rule"],
    "result": lambda slide: slide["result"],
    "score": lambda slide: slide["score"],
    "tissue_mm2": lambda slide: slide["tissue_mm2"],
    "finished": lambda slide: slide["finished"],
    "verdict": lambda slide: slide["verdict"],
}
"""Sort orders of the list → their keys. `first`: for review first, by the weightiest reason, then the oldest."""

States = Literal["review", "decided", "clear", "other"]


class SlideFilter(BaseModel):
    """Which slides are listed, in which order, and which page of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q: str = Field("", max_length=200, description="text in slide, patient, error code, flags or reasons")
    status: Literal["done", "failed"] | None = None
    stain: str | None = None
    predicted: str | None = Field(None, description="a class, by any method")
    result: str | None = Field(None, description="the result of the slide, such as 2+")
    review: bool | None = Field(None, description="needs review")
    reviewed: bool | None = Field(None, description="has a verdict")
    state: States | None = Field(None, description="state of the review")
    needs_ish: bool | None = Field(None, description="2+ without an ISH result")
    kind: str | None = Field(None, description=f"kind of a reason: {', '.join(KINDS)}")
    sort: str = Field("first", pattern=f"^({'|'.join(SORT_KEYS)})$", description=", ".join(SORT_KEYS))
    descending: bool = False
    offset: int = Field(0, ge=0)
    limit: int = Field(100, ge=1, le=1000)


def summarize_slide(row: Row, predictions: Sequence[Row], found: Assessment, finished: datetime | None = None) -> Row:
    """Return a slide as the list shows it. found: its assessment.  finished: when it was processed."""
    rule = next((p for p in predictions if (p["bundle"], p["task"]) == (MEMBRANE_RULE, "her2-4way")), None)
    names = ("slide_id", "patient_id", "stain", "status", "error_code", "tissue_mm2", "n_tiles")
    verdict = found.verdict or {}
    return {
        **{name: row[name] for name in names},
        "flags": row["flags"] or [],
        "rule": rule["predicted"] if rule is not None and not found.not_scorable else None,
        "score": rule["score"] if rule is not None and not found.not_scorable else None,
        "predicted": {
            "/".join(p[key] for key in ("bundle", "task", "method")): p["predicted"]
            for p in predictions
            if p["predicted"] is not None
        },
        "review": found.review,
        "uncalibrated": is_uncalibrated(predictions),
        "state": found.state,
        "result": found.result,
        "meaning": found.meaning,
        "needs_ish": found.needs_ish,
        "reasons": [reason.code for reason in found.reasons],
        "reason_words": [reason.words for reason in found.reasons],
        "kinds": list(dict.fromkeys(reason.kind for reason in found.reasons)),
        "verdict": verdict.get("verdict"),
        "label": verdict.get("label"),
        "reviewer": verdict.get("reviewer"),
        "lab_label": f"{found.label} ({found.label_detail})" if found.label_detail else found.label,
        "ish": found.ish,
        "finished": finished,
        "rank": found.rank,
        "marker": STAIN_NAMES["her2"] if found.task in HER2_TASKS else stain_name(row["stain"]),
        "is_number": found.main is not None and not verdict_classes(found.main),
    }


def assessment_words(found: Assessment) -> Row:
    """Return an assessment as the API gives it: the page shows it and decides nothing itself."""
    derived = [
        {
            "task": task,
            "name": task_name(task),
            "predicted": name,
            "text": name or ("ISH decides" if found.result else "–"),
        }
        for task, name in found.derived.items()
    ]
    methods = [{**one._asdict(), "name": task_name(one.task)} for one in found.methods]
    names = ("state", "review", "result", "meaning", "by", "task", "needs_ish", "label", "label_detail", "ish")
    keys = ("bundle", "task", "method", "predicted")
    target = found.verdict_target
    return {
        **{name: getattr(found, name) for name in names},
        "reasons": [{"code": one.code, "kind": one.kind, "words": one.words} for one in found.reasons],
        "derived": derived,
        "methods": methods,
        "main": None if target is None else {name: target[name] for name in keys},
        "choices": [] if target is None else list(verdict_classes(target)),
        "is_number": target is not None and not verdict_classes(target),
    }


def verdict_classes(prediction: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a verdict on a prediction can give; none where it gives a number."""
    return CLASSES.get(prediction["task"]) or tuple(prediction.get("classes") or ())


def count_slides(summaries: Iterable[Row]) -> dict[str, Any]:
    """Return how many slides have each state and result, in all and by marker; numbers are counted as `measured`."""
    listed = list(summaries)
    states = Counter(slide["state"] for slide in listed)
    states["needs_ish"] = sum(slide["needs_ish"] for slide in listed)
    states["not_scorable"] = sum("not-scorable" in slide["kinds"] for slide in listed)
    results = Counter(slide["result"] for slide in listed if slide["result"] is not None)
    markers: dict[str, Counter[str]] = {}
    for slide in (slide for slide in listed if slide["result"] is not None):
        counted = "measured" if slide["is_number"] else slide["result"]
        markers.setdefault(slide["marker"], Counter())[counted] += 1
    by_marker = {marker: dict(sorted(markers[marker].items())) for marker in sorted(markers, key=_marker_order)}
    return {"states": dict(states), "results": dict(sorted(results.items())), "markers": by_marker}


def _marker_order(name: str) -> tuple[int, str]:
    """Return the key that sorts markers: HER2 first."""
    order = [*STAIN_NAMES.values()]
    return order.index(name) if name in order else len(order), name


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
    if slide_filter.kind is not None and slide_filter.kind not in slide["kinds"]:
        return False
    for name in ("review", "state", "needs_ish", "result"):
        wanted = getattr(slide_filter, name)
        if wanted is not None and slide[name] != wanted:
            return False
    if slide_filter.reviewed is not None and (slide["verdict"] is not None) != slide_filter.reviewed:
        return False
    searched = (
        slide["slide_id"],
        slide["patient_id"] or "",
        slide["error_code"] or "",
        *slide["flags"],
        *slide["reasons"],
        *slide["reason_words"],
    )
    return slide_filter.q.strip().lower() in " ".join(searched).lower()
