"""The evidence of a slide, from its tables."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.models.calibration.evidence import CONTROL_WEIGHT
from her2batch.pipeline.calibration.read_evidence import is_calibratable, read_evidence
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from tests.pipeline.calibration.laboratories import add_control, add_slide


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    made = Cohort(tmp_path_factory.mktemp("evidence") / "cohort")
    made.create(Plan())
    add_slide(made, "a-1", "2+", np.random.default_rng(0))
    return made


def test_the_rule_has_its_steps_the_other_shares_and_the_counterstain(cohort: Cohort) -> None:
    found = [evidence for _, evidence in read_evidence(cohort, cohort.rows()["a-1"])]
    assert [(one.source, one.task) for one in found] == [
        ("membrane", task) for task in ("her2-4way", "her2-3way", "her2-binary")
    ]
    assert [len(one.steps) for one in found] == [3, 2, 1]
    assert set(found[0].further) == {"faint_complete", "moderate", "haematoxylin"}
    assert found[0].measured["haematoxylin"] == pytest.approx(0.25, rel=0.5)


def test_predictions_of_a_calibration_are_no_evidence(cohort: Cohort) -> None:
    row = cohort.rows()["a-1"]
    table = cohort.read("predictions/membrane", "a-1")
    row = cohort.add_tables(row, {"predictions/cal-0123456789ab": table})
    assert {evidence.source for _, evidence in read_evidence(cohort, row)} == {"membrane"}
    cohort.add_tables(row, {}, ["predictions/cal-0123456789ab"])


def test_without_stain_vectors_the_counterstain_is_left_out(tmp_path: Path) -> None:
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    add_slide(made, "a-1", "2+", np.random.default_rng(0))
    made.add_tables(made.rows()["a-1"], {}, ["embeddings/stain"])
    _, evidence = next(read_evidence(made, made.rows()["a-1"]))
    assert evidence.measured == {}
    assert set(evidence.further) == {"faint_complete", "moderate"}


def test_control_tissue_is_evidence_of_the_run_and_not_of_the_patient(tmp_path: Path) -> None:
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    add_slide(made, "a-1", "1+", np.random.default_rng(0))
    _, alone = next(read_evidence(made, made.rows()["a-1"]))
    add_control(made, "a-1", "3+", np.random.default_rng(1), counterstain=1.5)
    _, beside = next(read_evidence(made, made.rows()["a-1"]))
    assert made.read("membrane", "a-1").num_rows == 6
    control = beside.further.pop("control")
    assert (beside.further, beside.measured) == (alone.further, alone.measured)
    piece = made.read("pieces", "a-1").to_pylist()[1]
    assert control == pytest.approx(CONTROL_WEIGHT * (piece["score"] - 3))


@pytest.mark.parametrize(
    ("prediction", "stain", "expected"),
    [
        ({"task": "her2-4way", "classes": ["0", "1+", "2+", "3+"]}, "her2", True),
        ({"task": "her2-4way", "classes": ["0", "1+", "2+", "3+"]}, None, True),
        ({"task": "her2-4way", "classes": ["0", "1+", "2+", "3+"]}, "er", False),
        ({"task": "er", "classes": ["negative", "positive"]}, "er", True),
        ({"task": "grade", "classes": ["1", "2"]}, "her2", False),
        ({"task": "her2-3way", "classes": ["low", "high"]}, "her2", False),
        ({"task": "ki67-index", "classes": []}, "her2", False),
    ],
)
def test_only_ordered_classes_of_built_in_tasks_are_calibrated(prediction: dict, stain: str, expected: bool) -> None:
    assert is_calibratable(prediction, {"stain": stain}) is expected
