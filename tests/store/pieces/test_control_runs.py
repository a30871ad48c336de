"""A failed control flags every slide of its run, whatever later runs do."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.pieces.control_runs import CONTROL_FAILED, flag_failed_runs, slides_of_failed_runs

FIRST, SECOND, THIRD = (f"ingest-2026060{k}T180000.000000Z" for k in (1, 2, 3))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    return made


def write_slide(
    cohort: Cohort, slide_id: str, failed: bool = False, control: bool = False, status: str = "done"
) -> None:
    flags = [CONTROL_FAILED] if failed else []
    area = 0.2 if control or failed else None
    row = {"slide_id": slide_id, "status": status, "flags": flags, "control_mm2": area, "n_tiles": 9, "files": []}
    write_row(cohort, row)


def write_run(
    cohort: Cohort, run: str, slides: dict[str, bool], ended: bool = True, stopped: bool = False, times: bool = True
) -> None:
    """Write the log and the table of times of a run. slides: slide_id → whether its control failed."""
    events = [{"event": "started"}, *({"event": "slide", "slide_id": slide_id} for slide_id in slides)]
    events += [{"event": "ended", "stopped": stopped}] if ended else []
    (cohort.runs / f"{run}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    if times:
        rows = [{"slide_id": one, "status": "done", "control_failed": failed} for one, failed in slides.items()]
        cohort.write_times(run, rows)


def test_a_failed_control_flags_its_run_and_no_other(cohort: Cohort) -> None:
    for slide_id in "ABCD":
        write_slide(cohort, slide_id, failed=slide_id == "B")
    write_run(cohort, FIRST, {"A": False, "B": True})
    write_run(cohort, SECOND, {"C": False, "D": False})
    assert slides_of_failed_runs(cohort) == {"A", "B"}
    rows = flag_failed_runs(cohort, cohort.rows())
    assert {slide_id: row["flags"] for slide_id, row in rows.items()} == {
        "A": [CONTROL_FAILED], "B": [CONTROL_FAILED], "C": [], "D": [],
    }  # fmt: skip


def test_a_control_that_is_scanned_again_leaves_its_first_run_failed(cohort: Cohort) -> None:
    write_slide(cohort, "A")
    write_slide(cohort, "control", control=True)  # now as expected
    write_slide(cohort, "C")
    write_run(cohort, FIRST, {"A": False, "control": True})
    write_run(cohort, SECOND, {"C": False, "control": False})
    assert slides_of_failed_runs(cohort) == {"A"}


@pytest.mark.parametrize("end", [{"ended": False, "times": False}, {"stopped": True}, {"ended": False}])
def test_an_interrupted_run_and_its_continuation_are_one(cohort: Cohort, end: dict[str, bool]) -> None:
    for slide_id in "ABC":
        write_slide(cohort, slide_id, failed=slide_id == "B")
    write_run(cohort, FIRST, {"A": False}, **end)
    write_run(cohort, SECOND, {"B": True})
    write_run(cohort, THIRD, {"C": False})
    assert slides_of_failed_runs(cohort) == {"A", "B"}


def test_a_failure_in_a_killed_run_flags_its_continuation(cohort: Cohort) -> None:
    for slide_id in "AB":
        write_slide(cohort, slide_id, failed=slide_id == "A")
    write_run(cohort, FIRST, {"A": True}, ended=False, times=False)
    write_run(cohort, SECOND, {"B": False})
    assert slides_of_failed_runs(cohort) == {"A", "B"}


def test_a_failed_slide_gets_no_flag_and_a_cohort_without_controls_reads_no_run(cohort: Cohort) -> None:
    write_slide(cohort, "A", status="failed")
    (cohort.runs / f"{FIRST}.parquet").write_bytes(b"damaged")
    assert slides_of_failed_runs(cohort) == set()
    write_slide(cohort, "B", failed=True)
    write_run(cohort, SECOND, {"A": False, "B": True})
    assert flag_failed_runs(cohort, cohort.rows())["A"]["flags"] == []


def test_times_of_earlier_versions_know_no_controls(cohort: Cohort) -> None:
    write_slide(cohort, "A", control=True)
    write_run(cohort, FIRST, {"A": False})
    path = cohort.runs / f"{FIRST}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["control_failed"]), path)
    assert slides_of_failed_runs(cohort) == set()
