"""The data of a report: all tables, and a note for each that can't be read."""

import shutil
from pathlib import Path

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.store.cohort import Cohort, tables_of
from her2batch.store.training_run import TrainingRun


def test_each_prediction_is_read_once(report_data: ReportData) -> None:
    assert list(report_data.rows) == sorted(report_data.rows)
    assert {one["bundle"] for calls in report_data.predictions.values() for one in calls} >= {"membrane"}
    for slide_id, calls in report_data.predictions.items():
        assert {one["slide_id"] for one in calls} == {slide_id}
        assert len(calls) == len({(one["task"], one["method"], one["bundle"]) for one in calls})
    assert report_data.run_times.num_rows == len(report_data.rows)
    assert report_data.notes == ()


def test_predictions_of_the_rule_come_first(report_data: ReportData) -> None:
    said = [report_data.predictions_for(one, "her2-3way") for one in report_data.rows]
    both = [[one["method"] for one in calls] for calls in said if len(calls) > 1]
    assert both
    assert all(one == [name for name in ("membrane", "cells", "clam-sb") if name in one] for one in both), both


def test_table_names_come_from_the_row(report_data: ReportData) -> None:
    row = next(one for one in report_data.rows.values() if tables_of(one, "patches"))
    assert tables_of(row, "patches") == ["patches/net"]
    assert tables_of(row, "tiles") == ["tiles"]
    assert tables_of({"files": None}, "tiles") == []


def test_damaged_table_is_named_and_the_rest_is_read(reported: Cohort, tmp_path: Path) -> None:
    cohort = Cohort(Path(shutil.copytree(reported.root, tmp_path / "c")))
    slide_id = next(one for one in cohort.rows() if cohort.table("predictions/membrane", one).exists())
    cohort.table("predictions/membrane", slide_id).write_bytes(b"PAR1 no more")
    found = load_report_data(cohort)
    assert len(found.notes) == 1
    assert slide_id in found.notes[0]
    assert len(found.predictions) >= 10


def test_missing_cohort_or_run_is_an_error(reported: Cohort, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cohort"):
        load_report_data(Cohort(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no training run"):
        load_report_data(reported, TrainingRun(tmp_path / "nothing"))
