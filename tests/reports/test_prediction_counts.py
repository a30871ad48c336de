"""Counting predictions gives the numbers that the tables hold."""

from collections import Counter

from her2batch.reports.prediction_counts import count_predictions
from her2batch.reports.report_data import assess_slides
from her2batch.store.cohort import Cohort
from her2batch.tasks import CLASSES
from tests.conftest import Synthetic


def test_counts_equal_those_of_the_tables(synthetic: Synthetic) -> None:
    cohort = Cohort(synthetic.cohort)
    counts = count_predictions(cohort, cohort.rows())
    calls = [call for slide_id, row in cohort.rows().items() if row["status"] == "done"
             for call in cohort.read("predictions/membrane", slide_id).to_pylist()]  # fmt: skip
    assert [(one.bundle, one.task, one.method) for one in counts] == [
        ("membrane", task, "membrane") for task in ("her2-4way", "her2-3way", "her2-binary")
    ]
    found = assess_slides(cohort, cohort.rows().values())
    equivocal = {call["slide_id"] for call in calls if call["predicted"] == "2+"}
    assert equivocal
    for one in counts:
        hanging = equivocal if one.task != "her2-4way" else set()
        own = [call for call in calls if call["task"] == one.task]
        definite = Counter(call["predicted"] for call in own if call["slide_id"] not in hanging)
        assert list(one.classes) == list(CLASSES[one.task])
        assert definite == Counter({k: n for k, n in one.classes.items() if n})
        assert one.ish_decides == len(hanging)
        assert one.review == sum(found[call["slide_id"]].review for call in own)
        assert one.slides == len(own)


def test_no_slides_need_no_reading(synthetic: Synthetic) -> None:
    assert count_predictions(Cohort(synthetic.cohort), []) == []


def test_only_the_slides_asked_for_count(synthetic: Synthetic) -> None:
    cohort = Cohort(synthetic.cohort)
    scored = [slide_id for slide_id, row in cohort.rows().items() if row["n_tiles"] and row["stain"] == "her2"]
    assert {one.slides for one in count_predictions(cohort, scored[:2])} == {2}
