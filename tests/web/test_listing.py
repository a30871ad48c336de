"""The list: lines of slides, chosen and sorted."""

from typing import Any

import pytest

from her2batch.store import schemas
from her2batch.web.listing import SORTS, SlideFilter, chosen, line

EMPTY = dict.fromkeys(schemas.table_schema("slides").names)


def said(predicted: str, task: str = "her2-4way", review: bool = False, **more: Any) -> dict[str, Any]:
    return {"bundle": "membrane", "method": "membrane", "score": 1.0, "reasons": [], "task": task,
            "predicted": predicted, "review": review, **more}  # fmt: skip


LINES = [
    line(EMPTY | {"slide_id": "b", "status": "done", "stain": "her2", "tissue_mm2": 3.0, "patient_id": "P1"},
         [said("2+", review=True, reasons=["needs-ish"]), said("low", "her2-3way")], None),
    line(EMPTY | {"slide_id": "A", "status": "done", "stain": "her2", "tissue_mm2": 1.0, "flags": ["pen"]},
         [said("3+", score=2.9)], None),
    line(EMPTY | {"slide_id": "c", "status": "failed", "error_code": "no-mpp"}, [], None),
    line(EMPTY | {"slide_id": "d", "status": "done", "stain": "er"},
         [said("2+", review=True)], {"verdict": "change", "label": "1+"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "ids"),
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
def test_slides_are_chosen_and_sorted(wanted: dict[str, Any], ids: str) -> None:
    assert "".join(one["slide_id"] for one in chosen(LINES, SlideFilter(**wanted))) == ids


def test_whoever_was_judged_needs_no_look() -> None:
    assert [one["review"] for one in LINES] == [True, False, True, False]
    assert (LINES[3]["verdict"], LINES[3]["label"], LINES[3]["rule"]) == ("change", "1+", "2+")


def test_every_order_works_where_values_are_missing() -> None:
    for sort in SORTS:
        for descending in (False, True):
            assert len(chosen(LINES, SlideFilter(sort=sort, descending=descending))) == len(LINES)
