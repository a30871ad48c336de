"""Calibrations of a cohort: from labelled slides to predictions, and what switches them off."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.models.calibration.calibration_file import read_calibration
from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, calibrate_slides
from her2batch.settings import Plan
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, tables_of
from her2batch.tasks import IHC_SCORES, RULE_TASKS
from tests.pipeline.calibration.laboratories import add_slide, make_laboratory, write_sheet

STRENGTH = 3.5
"""A laboratory that stains strongly: shares are 3.5 times those that the rule expects."""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, dict[str, str], Path]:
    """A laboratory with 18 slides of each class; the sheet has the labels of half of them."""
    folder = tmp_path_factory.mktemp("laboratory")
    cohort, labels = make_laboratory(folder / "cohort", dict.fromkeys(IHC_SCORES, 18), STRENGTH)
    learnt = {slide: labels[slide] for slide in sorted(labels)[::2]}
    return cohort, labels, write_sheet(folder / "labels.csv", learnt)


@pytest.fixture(scope="module")
def calibrated(laboratory: tuple[Cohort, dict[str, str], Path]) -> tuple[Path, str]:
    """The file of the laboratory's calibration, which was applied to it; and its id."""
    cohort, _, sheet = laboratory
    path = cohort.root.parent / "calibration.toml"
    found = calibrate_cohort(CalibrationRequest(cohort.root, path, sheet))
    assert found.notes == []
    assert calibrate_slides(cohort.root, path).calibrated == 72
    return path, found.calibration.id


def predictions(cohort: Cohort, source: str) -> dict[str, dict[str, dict]]:
    """slide → task → its prediction."""
    return {
        slide: {row["task"]: row for row in cohort.read(f"predictions/{source}", slide).to_pylist()}
        for slide in cohort.rows()
    }


def test_new_slides_are_predicted_better_than_by_the_rule(laboratory, calibrated) -> None:
    cohort, labels, sheet = laboratory
    new = [slide for slide in labels if slide not in sheet.read_text()]
    right = {
        source: np.mean(
            [predictions(cohort, source)[slide]["her2-4way"]["predicted"] == labels[slide] for slide in new]
        )
        for source in ("membrane", calibrated[1])
    }
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
    covered = np.mean([labels[slide] in tasks["her2-4way"]["plausible"]
                       for slide, tasks in predictions(cohort, calibrated[1]).items()])  # fmt: skip
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


def test_a_class_with_too_few_slides_leaves_all_classes_and_says_why(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", {"0": 9, "1+": 9, "2+": 1, "3+": 9})
    found = calibrate_cohort(
        CalibrationRequest(cohort.root, tmp_path / "c.toml", write_sheet(tmp_path / "l.csv", labels))
    )
    assert "needs labelled slides of 9 patients in every class; 2+ has 1" in found.notes[0]
    assert calibrate_slides(cohort.root, tmp_path / "c.toml").abstained == 28
    for tasks in predictions(cohort, found.calibration.id).values():
        row = tasks["her2-4way"]
        assert row["plausible"] == list(IHC_SCORES)
        assert {"abstained", "too-few-labels"} <= set(row["reasons"])
        assert row["review"]


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
    for slide in ("scanner-1", "dark-1", "pale-1"):
        row, rule = outside(cohort, calibration_id, slide), predictions(cohort, "membrane")[slide]["her2-4way"]
        assert {"outside-calibration", "uncalibrated"} <= set(row["reasons"])
        assert row["review"]
        assert (row["p"], row["predicted"], row["plausible"]) == (rule["p"], rule["predicted"], rule["plausible"])


def test_sites_are_calibrated_by_themselves(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 3), 1.0)
    rng = np.random.default_rng(9)
    sites = dict.fromkeys(labels, "north")
    for label in IHC_SCORES:
        for k in range(3):
            slide = f"{label[0]}y{k:03}-1"
            add_slide(cohort, slide, label, rng, STRENGTH)
            labels[slide], sites[slide] = label, "south"
    sheet = write_sheet(tmp_path / "l.csv", labels, sites)
    found = calibrate_cohort(CalibrationRequest(cohort.root, tmp_path / "c.toml", sheet, per="site"))
    north, south = found.calibration.methods
    assert (north.group, south.group) == ("north", "south")
    assert south.model.shift < north.model.shift
    with pytest.raises(InputError, match="has no site, which --per site needs"):
        calibrate_cohort(
            CalibrationRequest(cohort.root, tmp_path / "d.toml", write_sheet(tmp_path / "m.csv", labels), per="site")
        )


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


@pytest.mark.parametrize(
    ("labels", "words"),
    [({}, "labels"), ({"other-1": "1+"}, "no labelled slide"), ({"0x000-1": ""}, "has no labelled slide")],
)
def test_without_a_usable_label_nothing_is_written(laboratory, labels, words, tmp_path: Path) -> None:
    sheet = write_sheet(tmp_path / "l.csv", labels)
    with pytest.raises(InputError, match=words):
        calibrate_cohort(CalibrationRequest(laboratory[0].root, tmp_path / "c.toml", sheet))
    assert not (tmp_path / "c.toml").exists()


def test_a_labelled_slide_is_predicted_by_a_model_that_has_not_seen_it(laboratory, calibrated) -> None:
    cohort, labels, _ = laboratory
    calibration = read_calibration(calibrated[0])
    own = calibration.methods[0].labelled[0]
    found = {round(row["her2-4way"]["p"][IHC_SCORES.index(own.label)], 4)
             for slide, row in predictions(cohort, calibrated[1]).items() if labels[slide] == own.label}  # fmt: skip
    assert round(own.p, 4) in found


def test_damaged_tables_of_a_slide_leave_the_others_alone(tmp_path: Path, calibrated) -> None:
    cohort, _ = make_laboratory(tmp_path / "cohort", {"0": 2}, STRENGTH)
    cohort.table("membrane", "0x000-1").write_bytes(b"damaged")
    found = calibrate_slides(cohort.root, calibrated[0])
    assert found.calibrated == 1
    assert "0x000-1" in found.failures
    assert "her2batch verify" in found.failures["0x000-1"]
