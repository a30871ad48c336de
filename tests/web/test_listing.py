"""The list of slides: filtered and sorted."""

from typing import Any

import pytest

from her2batch.assessment import assess_slide
from her2batch.store import schemas
from her2batch.web.listing import SORT_KEYS, SlideFilter, count_slides, filter_slides, summarize_slide

EMPTY = dict.fromkeys(schemas.table_schema("slides").names)


def prediction(predicted: str, task: str = "her2-4way", review: bool = False, **more: Any) -> dict[str, Any]:
    return {"bundle": "membrane", "method": "membrane", "score": 1.0, "reasons": [], "task": task,
            "predicted": predicted, "review": review, **more}  # fmt: skip


def summary(row: dict[str, Any], predictions: list[dict[str, Any]], review: dict[str, Any] | None) -> dict[str, Any]:
    reviews = [] if review is None else [{"number": 1, "task": "her2-4way", "reviewer": "Dr. Who", **review}]
    return summarize_slide(row, predictions, assess_slide(row, predictions, None, reviews))


SUMMARIES = [
    summary(EMPTY | {"slide_id": "b", "status": "done", "stain": "her2", "tissue_mm2": 3.0, "patient_id": "P1"},
         [prediction("2+", review=True, reasons=["needs-ish"]), prediction("low", "her2-3way")], None),
    summary(EMPTY | {"slide_id": "A", "status": "done", "stain": "her2", "tissue_mm2": 1.0, "flags": ["pen"]},
         [prediction("3+", score=2.9)], None),
    summary(EMPTY | {"slide_id": "c", "status": "failed", "error_code": "no-mpp"}, [], None),
    summary(EMPTY | {"slide_id": "d", "status": "done", "stain": "er"},
         [prediction("2+", review=True)], {"verdict": "change", "label": "1+"}),
    summary(EMPTY | {"slide_id": "e", "status": "done", "stain": "pr"}, [], None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, "cbAde"),
        ({"sort": "slide_id"}, "Abcde"),
        ({"sort": "slide_id", "descending": True}, "edcbA"),
        ({"sort": "tissue_mm2"}, "Abcde"),
        ({"sort": "tissue_mm2", "descending": True}, "bAcde"),
        ({"sort": "score", "descending": True}, "Abdce"),
        ({"status": "failed"}, "c"),
        ({"stain": "er"}, "d"),
        ({"predicted": "low"}, "b"),
        ({"predicted": "2+"}, "bd"),
        ({"result": "1+"}, "d"),
        ({"review": True}, "cbA"),
        ({"state": "other"}, "e"),
        ({"state": "decided"}, "d"),
        ({"needs_ish": True}, "b"),
        ({"kind": "quality"}, "A"),
        ({"reviewed": True}, "d"),
        ({"q": "NEEDS"}, "b"),
        ({"q": "pen ink"}, "A"),
        ({"q": "no-mpp"}, "c"),
        ({"q": " p1 "}, "b"),
        ({"q": "nothing"}, ""),
    ],
)
def test_slides_are_filtered_and_sorted(options: dict[str, Any], ids: str) -> None:
    assert "".join(one["slide_id"] for one in filter_slides(SUMMARIES, SlideFilter(**options))) == ids


def test_reviewed_slide_needs_no_review_and_has_the_class_of_the_verdict() -> None:
    assert [one["review"] for one in SUMMARIES] == [True, True, True, False, False]
    decided = SUMMARIES[3]
    assert (decided["verdict"], decided["label"], decided["rule"], decided["result"]) == ("change", "1+", "2+", "1+")


def test_every_reason_is_listed_in_words_the_weightiest_first() -> None:
    both = summary(EMPTY | {"slide_id": "f", "status": "done", "stain": "her2", "flags": ["pen"]},
                   [prediction("2+", reasons=["near-10-percent"])], None)  # fmt: skip
    assert both["reasons"] == ["needs-ish", "pen", "near-10-percent"]
    assert both["reason_words"][:2] == ["2+ is equivocal: ISH needed", "pen ink on the slide"]


def test_states_and_results_are_counted() -> None:
    found = count_slides(SUMMARIES)
    assert found["states"] == {"review": 3, "decided": 1, "other": 1, "needs_ish": 1, "not_scorable": 0}
    assert found["results"] == {"1+": 1, "2+": 1, "3+": 1}


def test_results_are_counted_by_marker() -> None:
    """Positive ER slides among HER2 scores would be read as HER2 positive."""
    er = {"bundle": "cells", "method": "cells", "score": 6.0, "reasons": [], "review": False, "task": "er"}
    slides = [
        summary(EMPTY | {"slide_id": "h", "status": "done", "stain": "her2"}, [prediction("3+")], None),
        summary(EMPTY | {"slide_id": "e", "status": "done", "stain": "er"}, [{**er, "predicted": "positive"}], None),
        summary(EMPTY | {"slide_id": "k", "status": "done", "stain": "ki67"},
                [{**er, "task": "ki67", "predicted": "38.8", "classes": []}], None),
    ]  # fmt: skip
    markers = count_slides(slides)["markers"]
    assert markers == {"HER2": {"3+": 1}, "ER": {"positive": 1}, "Ki-67": {"measured": 1}}
    assert list(markers) == ["HER2", "ER", "Ki-67"]


def test_every_sort_order_accepts_missing_values() -> None:
    for sort in SORT_KEYS:
        for descending in (False, True):
            assert len(filter_slides(SUMMARIES, SlideFilter(sort=sort, descending=descending))) == len(SUMMARIES)
