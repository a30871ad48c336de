"""What a calibration is refused for, and what switches it off for one slide."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, calibrate_slides
from her2batch.settings import Plan
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, tables_of
from her2batch.tasks import IHC_SCORES
from tests.pipeline.calibration.laboratories import STRENGTH, add_slide, make_laboratory, predictions, write_sheet


def outside(cohort: Cohort, calibration_id: str, slide: str) -> dict:
    return predictions(cohort, calibration_id)[slide]["her2-4way"]


def test_drift_and_another_scanner_switch_the_calibration_off(laboratory, calibrated, tmp_path: Path) -> None:
    path, calibration_id = calibrated
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    rng = np.random.default_rng(5)
    add_slide(cohort, "near-1", "1+", rng, STRENGTH)
    add_slide(cohort, "scanner-1", "1+", rng, STRENGTH, format="hamamatsu")
    add_slide(cohort, "dark-1", "1+", rng, STRENGTH, counterstain=0.6)
    add_slide(cohort, "pale-1", "1+", rng, STRENGTH, counterstain=0.05)
    assert calibrate_slides(cohort.root, path).outside == 3
    assert "outside-calibration" not in outside(cohort, calibration_id, "near-1")["reasons"]
    promised = {slide: outside(cohort, calibration_id, slide)["coverage"] for slide in cohort.rows()}
    assert promised.pop("near-1") == pytest.approx(0.9)
    assert set(promised.values()) == {None}
    for slide in ("scanner-1", "dark-1", "pale-1"):
        row, rule = outside(cohort, calibration_id, slide), predictions(cohort, "membrane")[slide]["her2-4way"]
        cause = "calibration-scanner" if slide == "scanner-1" else "calibration-drift"
        assert {"outside-calibration", cause, "uncalibrated"} <= set(row["reasons"])
        assert row["review"]
        assert (row["p"], row["predicted"], row["plausible"]) == (rule["p"], rule["predicted"], rule["plausible"])


@pytest.mark.parametrize("per", ["site", "scanner"])
def test_a_slide_of_an_unknown_group_is_outside(per: str, tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 1))
    sheet = write_sheet(tmp_path / "l.csv", labels, dict.fromkeys(labels, "north"))
    found = calibrate_cohort(CalibrationRequest(cohort.root, tmp_path / "c.toml", sheet, per=per))
    add_slide(cohort, "new-1", "0", np.random.default_rng(0), format="philips")
    calibrate_slides(cohort.root, tmp_path / "c.toml")
    assert "outside-calibration" in outside(cohort, found.calibration.id, "new-1")["reasons"]


def test_the_newest_calibration_replaces_an_older_one(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 2))
    ids = []
    for n in (4, 8):
        sheet = write_sheet(tmp_path / "l.csv", dict(list(labels.items())[:n]))
        ids.append(calibrate_cohort(CalibrationRequest(cohort.root, tmp_path / "c.toml", sheet)).calibration.id)
        calibrate_slides(cohort.root, tmp_path / "c.toml")
    names = {name for row in cohort.rows().values() for name in tables_of(row, "predictions")}
    assert names == {"predictions/membrane", f"predictions/{ids[1]}"}
    assert list(verify_cohort(cohort)) == []


def test_predictions_from_before_the_column_coverage_are_whole(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 1))
    request = CalibrationRequest(cohort.root, tmp_path / "c.toml", write_sheet(tmp_path / "l.csv", labels))
    name = f"predictions/{calibrate_cohort(request).calibration.id}"
    calibrate_slides(cohort.root, request.out)
    with cohort.lock():
        for slide_id, row in cohort.rows().items():
            cohort.add_tables(row, {name: cohort.read(name, slide_id).drop_columns("coverage")})
    assert list(verify_cohort(cohort)) == []


@pytest.mark.parametrize(
    ("plan", "columns", "words"),
    [
        (Plan(mpp=1.0), {}, "with other settings"),
        (Plan(), {"stain": "er"}, "is for slides stained for her2; the cohort has er"),
    ],
)
def test_a_calibration_of_another_plan_or_stain_is_refused(calibrated, plan, columns, words, tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(plan)
    add_slide(cohort, "a-1", "1+", np.random.default_rng(0), **columns)
    with pytest.raises(InputError, match=words) as caught:
        calibrate_slides(cohort.root, calibrated[0])
    assert caught.value.exit_code == 2
    assert tables_of(cohort.rows()["a-1"], "predictions") == ["predictions/membrane"]


def test_a_calibration_of_other_measurements_is_refused(calibrated, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("her2batch.pipeline.calibration.apply.ALGORITHMS", 99)
    cohort, _ = make_laboratory(tmp_path / "cohort", {"0": 1})
    with pytest.raises(InputError, match="whose measurements have version 2; those of this version are 99"):
        calibrate_slides(cohort.root, calibrated[0])


def test_damaged_tables_of_a_slide_leave_the_others_alone(tmp_path: Path, calibrated) -> None:
    cohort, _ = make_laboratory(tmp_path / "cohort", {"0": 2}, STRENGTH)
    cohort.table("membrane", "0x000-1").write_bytes(b"damaged")
    found = calibrate_slides(cohort.root, calibrated[0])
    assert found.calibrated == 1
    assert "0x000-1" in found.failures
    assert "her2batch verify" in found.failures["0x000-1"]
