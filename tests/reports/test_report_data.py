"""What a report reads: the tables as they are, and a word where one can't be read."""

import shutil
from pathlib import Path

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.reports.report_data import ReportData, load_report_data, names_of
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import TrainingRun


def test_everything_is_there_once(material: ReportData) -> None:
    assert list(material.rows) == sorted(material.rows)
    assert {one["bundle"] for calls in material.calls.values() for one in calls} >= {"membrane"}
    for slide_id, calls in material.calls.items():
        assert {one["slide_id"] for one in calls} == {slide_id}
        assert len(calls) == len({(one["task"], one["method"], one["bundle"]) for one in calls})
    assert material.times.num_rows == len(material.rows)
    assert material.notes == ()


def test_the_rule_is_said_first(material: ReportData) -> None:
    said = [material.said(one, "her2-3way") for one in material.rows]
    both = [[one["method"] for one in calls] for calls in said if len(calls) > 1]
    assert both
    assert all(one == ["membrane", "clam-sb"] for one in both)


def test_names_come_from_the_row(material: ReportData) -> None:
    row = next(one for one in material.rows.values() if names_of(one, "patches"))
    assert names_of(row, "patches") == ["patches/net"]
    assert names_of(row, "tiles") == ["tiles"]
    assert names_of({"files": None}, "tiles") == []


def test_a_damaged_table_is_named_and_the_rest_is_shown(reported: Cohort, tmp_path: Path) -> None:
    cohort = Cohort(Path(shutil.copytree(reported.root, tmp_path / "c")))
    slide_id = next(one for one in cohort.rows() if cohort.table("predictions/membrane", one).exists())
    cohort.table("predictions/membrane", slide_id).write_bytes(b"PAR1 no more")
    found = load_report_data(cohort)
    assert len(found.notes) == 1
    assert slide_id in found.notes[0]
    assert len(found.calls) >= 10


def test_no_cohort_and_no_run_are_said(reported: Cohort, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cohort"):
        load_report_data(Cohort(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no run"):
        load_report_data(reported, TrainingRun(tmp_path / "nothing"))
