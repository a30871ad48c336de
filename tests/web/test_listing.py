"""The list of slides: filtered and sorted."""

from typing import Any

import pytest

from her2batch.store import schemas
from her2batch.web.listing import SORT_KEYS, SlideFilter, filter_slides, summarize_slide

EMPTY = dict.fromkeys(schemas.table_schema("slides").names)


def prediction(predicted: str, task: str = "her2-4way", review: bool = False, **more: Any) -> dict[str, Any]:
    return {"bundle": "membrane", "method": "membrane", "score": 1.0, "reasons": [], "task": task,
            "predicted": predicted, "review": review, **more}  # fmt: skip


SUMMARIES = [
    summarize_slide(EMPTY | {"slide_id": "b", "status": "done", "stain": "her2", "tissue_mm2": 3.0, "patient_id": "P1"},
         [prediction("2+", review=True, reasons=["needs-ish"]), prediction("low", "her2-3way")], None),
    summarize_slide(EMPTY | {"slide_id": "A", "status": "done", "stain": "her2", "tissue_mm2": 1.0, "flags": ["pen"]},
         [prediction("3+", score=2.9)], None),
    summarize_slide(EMPTY | {"slide_id": "c", "status": "failed", "error_code": "no-mpp"}, [], None),
    summarize_slide(EMPTY | {"slide_id": "d", "status": "done", "stain": "er"},
         [prediction("2+", review=True)], {"verdict": "change", "label": "1+"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, "bcAd"),
        ({"sort": "slide_id"}, "Abcd"),
        ({"sort": "slide_id", "descending": True}, "dcbA"),
        ({"sort": "tissue_mm2"}, "Abcd"),
        ({"sort": "tissue_mm2", "descending": True}, "bAcd"),
        ({"sort": "score", "descending": True}, "Abdc"),
        ({"status": "failed"}, "c"),
        ({"stain": "er"}, "d"),
        ({"predicted": "low"}, "b"),
        ({"predicted": "2+"}, "bd"),
        ({"review": True}, "bc"),
        ({"reviewed": True}, "d"),
        ({"q": "NEEDS"}, "b"),
        ({"q": "pen"}, "A"),
        ({"q": "no-mpp"}, "c"),
        ({"q": " p1 "}, "b"),
        ({"q": "nothing"}, ""),
    ],
)
def test_slides_are_filtered_and_sorted(options: dict[str, Any], ids: str) -> None:
    assert "".join(one["slide_id"] for one in filter_slides(SUMMARIES, SlideFilter(**options))) == ids


def test_reviewed_slide_needs_no_review() -> None:
    assert [one["review"] for one in SUMMARIES] == [True, False, True, False]
    assert (SUMMARIES[3]["verdict"], SUMMARIES[3]["label"], SUMMARIES[3]["rule"]) == ("change", "1+", "2+")


def test_every_sort_order_accepts_missing_values() -> None:
    for sort in SORT_KEYS:
        for descending in (False, True):
            assert len(filter_slides(SUMMARIES, SlideFilter(sort=sort, descending=descending))) == len(SUMMARIES)
