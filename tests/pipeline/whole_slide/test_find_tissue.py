"""Ingest of slides with controls: they never count, a failed one is flagged, and every option gives its own plan."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.pipeline.growth.ingest_request import IngestRequest
from her2batch.pipeline.resume.plan_change import PlanChangedError
from her2batch.runtime.ingest import ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.patient_tiles import patient_tiles_of
from her2batch.synthetic.controls.control_slides import ControlSlideTruth, make_control_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth

PLAN = Plan(cells="off")
PATIENT = SlideTruth("S1", TYPICAL_MIXES["0"], width=2600, height=1300, mpp=0.5)
FILE = '[[place]]\nside = "left"\nmm = 0.5\nexpected = "3+"\n'


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ControlSlideTruth]:
    """A 0 with a control of 3+ at the left end, and the same tissue without it."""
    folder = tmp_path_factory.mktemp("scans")
    truth = make_control_slide(folder / "S1.svs", PATIENT, ["3+"])
    make_control_slide(folder / "plain.svs", PATIENT, [])
    return folder, truth


def run(scans: Path, out: Path, controls: str | None = None, **values: bool) -> Cohort:
    ingest(IngestRequest(scans, out, controls=controls, **values), PLAN, Resources(workers=0))
    return Cohort(out)


def rule(cohort: Cohort, slide_id: str) -> Row:
    rows: list[Row] = cohort.read("predictions/membrane", slide_id).to_pylist()
    return rows[0]


@pytest.fixture(scope="module")
def without(scans: tuple[Path, ControlSlideTruth], tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return run(scans[0], tmp_path_factory.mktemp("without") / "cohort")


def test_without_the_option_a_control_counts_and_the_slide_is_for_review(without: Cohort) -> None:
    row = without.rows()["S1"]
    assert "control-suspected" in row["flags"]
    assert row["control_mm2"] is None
    assert rule(without, "S1")["review"]
    assert "control-suspected" in rule(without, "S1")["reasons"]
    assert rule(without, "S1")["predicted"] != "0"
    assert "control-suspected" not in without.rows()["plain"]["flags"]
    assert not list(verify_cohort(without))


@pytest.mark.parametrize("auto", [True, False])
def test_a_control_does_not_count(
    scans: tuple[Path, ControlSlideTruth], without: Cohort, tmp_path: Path, auto: bool
) -> None:
    (tmp_path / "controls.toml").write_text(FILE, encoding="utf-8")
    only_place = tmp_path / "scans"
    only_place.mkdir()
    (only_place / "S1.svs").hardlink_to(scans[0] / "S1.svs")
    cohort = run(only_place, tmp_path / "cohort", "auto" if auto else str(tmp_path / "controls.toml"))
    row, pieces = cohort.rows()["S1"], cohort.read("pieces", "S1").to_pylist()
    assert sorted((one["role"], one["predicted"]) for one in pieces) == [("control", "3+"), ("tissue", "0")]
    assert row["control_mm2"] == pytest.approx(scans[1].controls.sum() * (scans[1].px * 0.5e-3) ** 2, rel=0.1)
    assert not {"control-failed", "control-missing", "control-suspected"} & set(row["flags"])
    assert rule(cohort, "S1")["predicted"] == "0"
    assert rule(cohort, "S1")["score"] == pytest.approx(rule(without, "plain")["score"], abs=0.05)
    own, tiles = patient_tiles_of(cohort, "S1"), cohort.read("tiles", "S1")
    assert own is not None
    assert (
        np.bincount(tiles["piece"].to_numpy())[[one["piece"] for one in pieces]] == [one["n_tiles"] for one in pieces]
    ).all()
    assert cohort.plan().id != PLAN.id
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace("0.5", "0.4"), encoding="utf-8")
    with pytest.raises(PlanChangedError, match="controls"):
        run(only_place, cohort.root, str(other))
    again = ingest(IngestRequest(only_place, cohort.root), PLAN, Resources(workers=0))
    assert (again.already, again.fresh) == (1, [])


def test_a_faded_control_fails_its_slide(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    make_control_slide(tmp_path / "scans/S1.svs", PATIENT, ["1+"])
    (tmp_path / "controls.toml").write_text(FILE, encoding="utf-8")
    cohort = run(tmp_path / "scans", tmp_path / "cohort", str(tmp_path / "controls.toml"))
    assert "control-failed" in cohort.rows()["S1"]["flags"]
    assert rule(cohort, "S1")["review"]


def test_a_control_slide_has_no_result(scans: tuple[Path, ControlSlideTruth], tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/CTRL-0.svs").hardlink_to(scans[0] / "plain.svs")
    file = tmp_path / "controls.toml"
    file.write_text('[[slide]]\nname = "CTRL-*"\nexpected = "0"\n', encoding="utf-8")
    cohort = run(tmp_path / "scans", tmp_path / "cohort", str(file))
    assert cohort.rows()["CTRL-0"]["flags"] == ["control-slide"]
    assert cohort.read("predictions/membrane", "CTRL-0").num_rows == 0
    assert cohort.read("pieces", "CTRL-0")["predicted"].to_pylist() == ["0"]


def test_a_wrong_file_stops_the_run_before_it_writes_anything(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "controls.toml").write_text("[[place]]\nmm = 0\n", encoding="utf-8")
    with pytest.raises(InputError, match="place 1, mm"):
        run(tmp_path / "scans", tmp_path / "cohort", str(tmp_path / "controls.toml"))
    assert not (tmp_path / "cohort").exists()
