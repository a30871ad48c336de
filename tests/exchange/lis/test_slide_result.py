"""Tests of the result that is sent: what the page shows, and no class that hangs on ISH."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.exchange.lis.slide_result import SlideResult, Unreported, slide_result
from her2batch.tasks import IHC_SCORES

ROW = {
    "slide_id": "S",
    "status": "done",
    "stain": "her2",
    "flags": [],
    "n_tiles": 9,
    "plan_id": "p",
    "error_code": None,
}


def prediction(predicted: str, method: str = "membrane", task: str = "her2-4way") -> dict:
    doubts = {"review": predicted == "2+", "reasons": []}
    return {"task": task, "method": method, "bundle": method, "predicted": predicted, **doubts}


def verdict(label: str | None, kind: str = "change") -> dict:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    return {"number": 1, "task": "her2-4way", "verdict": kind, "label": label, "reviewer": "Dr. Who", "time": time}


@given(st.lists(st.sampled_from(IHC_SCORES), min_size=1, max_size=3), st.sampled_from(["+", "-", None]))
def test_no_status_where_any_method_is_equivocal_and_ish_is_unknown(scores, ish) -> None:
    own = [prediction(score, f"method {k}") for k, score in enumerate(scores)]
    found = slide_result(ROW, own, {"ish": ish}, ())
    assert isinstance(found, SlideResult)
    assert not found.final
    if "2+" in scores and ish is None:
        assert found.status_class is None
        assert "ISH needed" in found.meaning


def test_a_verdict_makes_the_result_final() -> None:
    found = slide_result(ROW, [prediction("1+")], None, [verdict("3+")])
    assert isinstance(found, SlideResult)
    assert (found.result, found.status_class, found.by, found.final) == ("3+", "positive", "pathologist", True)
    assert (found.reviewer, found.reasons) == ("Dr. Who", ())


@pytest.mark.parametrize(
    ("row", "own"), [({**ROW, "status": "failed", "error_code": "no-mpp"}, []), (ROW, []), ({**ROW, "stain": "he"}, [])]
)
def test_slides_without_a_result_are_not_reported(row, own) -> None:
    found = slide_result(row, own, None, ())
    assert isinstance(found, Unreported)
    assert found.reason


def test_a_failed_slide_is_reported_once_its_glass_was_scored() -> None:
    failed = {**ROW, "status": "failed", "error_code": "truncated"}
    assert isinstance(slide_result(failed, [], None, ()), Unreported)
    found = slide_result(failed, [], None, [verdict("1+")])
    assert isinstance(found, SlideResult)
    assert (found.result, found.meaning, found.by, found.final) == ("1+", "HER2-low", "pathologist", True)


def test_an_update_of_the_software_alone_sends_nothing() -> None:
    first = slide_result(ROW, [prediction("1+")], None, ())
    again = slide_result({**ROW, "plan_id": "q"}, [prediction("1+")], None, ())
    other = slide_result(ROW, [prediction("2+")], None, ())
    assert first.digest == again.digest != other.digest
