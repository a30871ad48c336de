"""Calibrations of a cohort: from labelled slides to predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import her2batch
from her2batch.cli.app import app
from her2batch.errors import InputError
from her2batch.models.calibration.calibration_file import read_calibration
from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, calibrate_slides
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.tasks import IHC_SCORES, RULE_TASKS
from tests.pipeline.calibration.laboratories import STRENGTH, make_laboratory, predictions


def test_new_slides_are_predicted_better_than_by_the_rule(laboratory, calibrated) -> None:
    cohort, labels, sheet = laboratory
    new = [slide for slide in labels if slide not in sheet.read_text()]
    right = {}
    for source in ("membrane", calibrated[1]):
        found = predictions(cohort, source)
        right[source] = np.mean([found[slide]["her2-4way"]["predicted"] == labels[slide] for slide in new])
    assert right[calibrated[1]] > right["membrane"]
    assert right[calibrated[1]] > 0.9


def test_predictions_have_the_columns_of_all_others_and_abstain_where_more_than_one_class_is_left(
    laboratory, calibrated
) -> None:
    cohort, labels, _ = laboratory
    for tasks in predictions(cohort, calibrated[1]).values():
        assert tuple(tasks) == RULE_TASKS
        for row in tasks.values():
            assert row["method"] == "membrane"
            assert sum(row["p"]) == pytest.approx(1)
            places = [row["classes"].index(name) for name in row["plausible"]]
            assert places == list(range(places[0], places[-1] + 1))
            assert row["predicted"] in row["plausible"]
            assert ("abstained" in row["reasons"]) == (len(row["plausible"]) > 1)
            assert row["review"] or len(row["plausible"]) == 1
            assert "uncalibrated" not in row["reasons"]
    found = predictions(cohort, calibrated[1]).items()
    covered = np.mean([labels[slide] in tasks["her2-4way"]["plausible"] for slide, tasks in found])
    assert covered >= 0.87


def test_2_plus_without_ish_leaves_both_derived_classes(laboratory, calibrated) -> None:
    cohort, _, _ = laboratory
    rows = [tasks for tasks in predictions(cohort, calibrated[1]).values() if tasks["her2-4way"]["predicted"] == "2+"]
    assert rows
    for tasks in rows:
        assert {"low", "high"} <= set(tasks["her2-3way"]["plausible"])
        assert "needs-ish" in tasks["her2-binary"]["reasons"]


def test_a_second_run_gives_the_same_bytes_and_the_cohort_verifies(laboratory, calibrated) -> None:
    cohort, _, sheet = laboratory
    path, calibration_id = calibrated
    before = path.read_bytes(), cohort.table(f"predictions/{calibration_id}", "0x000-1").read_bytes()
    calibrate_cohort(CalibrationRequest(cohort.root, path, sheet))
    calibrate_slides(cohort.root, path)
    assert before == (path.read_bytes(), cohort.table(f"predictions/{calibration_id}", "0x000-1").read_bytes())
    assert list(verify_cohort(cohort)) == []


def test_a_labelled_slide_is_predicted_by_a_model_that_has_not_seen_it(laboratory, calibrated) -> None:
    cohort, labels, _ = laboratory
    calibration = read_calibration(calibrated[0])
    own = calibration.methods[0].labelled[0]
    found = {round(row["her2-4way"]["p"][IHC_SCORES.index(own.label)], 4)
             for slide, row in predictions(cohort, calibrated[1]).items() if labels[slide] == own.label}  # fmt: skip
    assert round(own.p, 4) in found


def test_the_python_api_scores_with_a_calibration_and_needs_no_bundle(calibrated, tmp_path) -> None:
    path, calibration_id = calibrated
    cohort, _ = make_laboratory(tmp_path / "cohort", {"1+": 2}, STRENGTH)
    found = her2batch.score(cohort.root, calibration=path)
    assert (found["exit_code"], found["calibration"]["calibrated"]) == (0, 2)
    assert f"predictions/{calibration_id}" in her2batch.open_cohort(cohort.root).tables
    with pytest.raises(InputError, match="name a trained bundle, a calibration, or both"):
        her2batch.score(cohort.root)
    told = CliRunner().invoke(app, ["score", str(cohort.root), "--calibration", str(path), "--json", "--quiet"])
    again = her2batch.score(cohort.root, calibration=path)
    assert json.loads(told.stdout) == again  # the command and the function are one


def test_measured_cells_are_calibrated_and_are_evidence_for_the_membrane_rule(synthetic, tmp_path) -> None:
    cohort = Cohort(Path(shutil.copytree(synthetic.cohort, tmp_path / "cohort")))
    path = tmp_path / "calibration.toml"
    found = calibrate_cohort(CalibrationRequest(cohort.root, path, synthetic.labels))
    methods = {method.source: method for method in found.calibration.methods}
    assert {"membrane", "cells"} <= set(methods)
    assert "cells" in methods["membrane"].centre
    assert all(abs(weight) < 3 for weight in methods["membrane"].model.weights.values())
    applied = calibrate_slides(cohort.root, path)
    done = [slide for slide, row in cohort.rows().items() if row["status"] == "done"]
    cells = [cohort.read("predictions/cells", slide).to_pylist()[0] for slide in done]
    unscored = {one["slide_id"] for one in cells if one["predicted"] is None}
    assert applied.failures == {}
    assert applied.outside <= len(unscored)
    of_slide = {row["slide_id"]: row for tasks in stored(cohort, found.calibration.id) for row in tasks}
    outside = {slide for slide, row in of_slide.items() if "outside-calibration" in row["reasons"]}
    assert len(outside) == applied.outside
    assert outside <= unscored
    sources = {row["method"] for tasks in stored(cohort, found.calibration.id) for row in tasks}
    assert sources == {"membrane", "cells"}
    assert list(verify_cohort(cohort)) == []


def stored(cohort: Cohort, source: str) -> list[list[dict]]:
    """The predictions of each slide that has a table of this source."""
    done = [slide for slide, row in cohort.rows().items() if row["status"] == "done"]
    return [cohort.read(f"predictions/{source}", slide).to_pylist() for slide in done]
