"""Counting predictions gives the numbers that the tables hold."""

from collections import Counter

import pytest

from her2batch.method_results import DERIVED_TASKS
from her2batch.reports.prediction_counts import summarise_predictions
from her2batch.reports.report_data import assess_slides
from her2batch.store.cohort import Cohort
from her2batch.tasks import CLASSES
from tests.conftest import Synthetic


@pytest.mark.parametrize("method", ["membrane", "cells"])
def test_counts_equal_those_of_the_tables(method: str, synthetic: Synthetic) -> None:
    cohort = Cohort(synthetic.cohort)
    counts = [one for one in summarise_predictions(cohort, cohort.rows()).counts if one.method == method]
    found = assess_slides(cohort, cohort.rows().values())
    calls = [call for slide_id, row in cohort.rows().items()
             if row["status"] == "done" and not found[slide_id].not_scorable
             for call in cohort.read(f"predictions/{method}", slide_id).to_pylist()]  # fmt: skip
    assert {one.bundle for one in counts} == {method}
    assert {"her2-4way", "her2-3way", "her2-binary"} <= {one.task for one in counts} == {call["task"] for call in calls}
    equivocal = [call for call in calls if call["task"] in DERIVED_TASKS
                 and ("needs-ish" in call["reasons"] or found[call["slide_id"]].result == "2+")]  # fmt: skip
    assert equivocal
    for one in counts:
        own = [call for call in calls if call["task"] == one.task]
        definite = Counter(call["predicted"] for call in own if call not in equivocal)
        assert list(one.classes) == list(CLASSES[one.task])
        assert definite == Counter({k: n for k, n in one.classes.items() if n})
        assert one.ish_decides == sum(call in equivocal for call in own)
        assert one.review == sum(found[call["slide_id"]].review for call in own)
        assert one.slides == len(own)


def test_every_slide_of_the_marker_has_a_class_or_a_reason(synthetic: Synthetic) -> None:
    cohort = Cohort(synthetic.cohort)
    found = assess_slides(cohort, cohort.rows().values())
    refused = Counter(one.meaning.removeprefix("not scorable: ") for one in found.values() if one.not_scorable)
    counts, not_scorable = summarise_predictions(cohort, cohort.rows())
    assert not_scorable == refused
    her2 = [row for row in cohort.rows().values() if row["stain"] == "her2" and row["n_tiles"]]
    [four] = [one for one in counts if (one.method, one.task) == ("cells", "her2-4way")]
    assert four.slides + sum(not_scorable.values()) == len(her2)


def test_no_slides_need_no_reading(synthetic: Synthetic) -> None:
    assert summarise_predictions(Cohort(synthetic.cohort), []).counts == []


def test_only_the_slides_asked_for_count(synthetic: Synthetic) -> None:
    cohort = Cohort(synthetic.cohort)
    scored = [slide_id for slide_id, row in cohort.rows().items() if row["n_tiles"] and row["stain"] == "her2"]
    assert {one.slides for one in summarise_predictions(cohort, scored[:2]).counts} == {2}
