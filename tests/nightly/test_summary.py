"""Tests of a night's summary: exit code, sum of the counts, one line of JSON."""

import json

from hypothesis import given

from her2batch.assessment import assess_slide
from her2batch.nightly.summary import (
    HELD_EXIT_CODE,
    NightSummary,
    count_error_codes,
    count_results,
    counts_equation,
)
from her2batch.reports.worklists import distribution_text
from tests.test_assessment import made_predictions, prediction, slide


def test_the_exit_code_reports_the_most_serious_problem() -> None:
    assert NightSummary("n", "t", seen=2, done=2).exit_code == 0
    assert NightSummary("n", "t", seen=2, done=1, failed=1).exit_code == 3
    assert NightSummary("n", "t", seen=2, done=2, not_scored=1).exit_code == 3
    assert NightSummary("n", "t", seen=2, done=1, failed=1, held=True).exit_code == HELD_EXIT_CODE
    assert NightSummary("n", "t", seen=3, done=2, held=True).exit_code == 1
    assert NightSummary("n", "t", seen=3, stopped=True).exit_code == 130
    assert NightSummary("n", "t", error="StoreError").exit_code == 2
    assert NightSummary("n", "t", error="fault").exit_code == 1


def test_the_counts_are_shown_as_an_equation() -> None:
    night = NightSummary("n", "t", seen=6, done=1, failed=1, deferred=2, duplicate=1, ignored=1)
    assert counts_equation(night) == "seen 6 = 1 done + 1 failed + 2 deferred + 1 duplicate + 1 ignored"
    night.done = 0
    assert "≠" in counts_equation(night)


def test_the_summary_is_one_line_of_json() -> None:
    night = NightSummary(
        "n", "t", seen=1, failed=1, failures=count_error_codes([{"error_code": "truncated"}, {"error_code": "gone"}])
    )
    assert "\n" not in night.to_json()
    values = json.loads(night.to_json())
    assert values["failures"] == {"gone": 1, "truncated": 1}
    assert (values["adds_up"], values["exit_code"]) == (True, 3)


def test_slides_are_counted_by_result_and_2_plus_without_ish_apart() -> None:
    found = [
        assess_slide(slide(), [prediction("2+"), prediction("negative", "her2-binary")]),
        assess_slide(slide(), [prediction("2+")], {"her2": "2+", "ish": "+"}),
        assess_slide(slide(), [prediction("0")]),
        assess_slide(slide(stain="er"), [prediction("positive", "er", "clam-sb")]),
        assess_slide(slide(stain="er")),
    ]
    assert count_results(found) == {"0": 1, "2+": 1, "ER positive": 1, "ISH needed": 1}


@given(made_predictions)
def test_a_slide_that_is_open_for_ish_counts_as_such_whatever_its_predictions(rows: list[dict]) -> None:
    """The counts go into the JSON line, the mail and the page of the night."""
    found = assess_slide(slide(), [*rows, prediction("2+", method="svm")])
    assert count_results([found]) == {"ISH needed": 1}
    words = distribution_text([found])
    assert not any(word in words for word in ("negative", "positive", "low", "high"))
