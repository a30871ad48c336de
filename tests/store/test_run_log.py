"""Tests of the run log: JSON lines that can be read while they are written."""

import json
from pathlib import Path

import pytest

from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.store.run_log import RunLog, latest_log, log_entries


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    made = Cohort(tmp_path / "c")
    made.create(Plan())
    return made


def test_a_run_is_one_file_of_json_lines(cohort: Cohort) -> None:
    with RunLog(cohort, "ingest-20260101T000000.000000Z") as journal:
        journal.write("started", pid=7)
        journal.write("slide", slide_id="a", status="done")
    found = [json.loads(line) for line in latest_log(cohort).read_text().splitlines()]
    assert [one["event"] for one in found] == ["started", "slide"]
    assert found[0]["pid"] == 7
    assert found[0]["at"].endswith("+00:00")


def test_the_latest_log_is_read_from_a_position_on(cohort: Cohort) -> None:
    for run in ("ingest-20260102T000000Z", "ingest-20260101T000000Z"):
        with RunLog(cohort, run) as journal:
            journal.write("started", run=run)
    with latest_log(cohort).open("a") as file:
        file.write('{"event": "half')
    found = list(log_entries(latest_log(cohort)))
    assert [event["run"] for _, event in found] == ["ingest-20260102T000000Z"]
    assert list(log_entries(latest_log(cohort), found[-1][0])) == []


def test_an_error_is_the_last_line_of_the_log(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="odd"), RunLog(cohort, "ingest-x"):
        raise ValueError("odd")
    assert [event["error"] for _, event in log_entries(latest_log(cohort))] == ["ValueError"]
