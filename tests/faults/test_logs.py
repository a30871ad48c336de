"""The run log, run times and the intake table on a full or slow disk do not stop an ingest."""

import shutil
import subprocess
from pathlib import Path

import pytest

from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.store.run_log import RunLog, latest_log, log_entries
from tests.faults.fault_fixtures import (
    ReferenceCohort,
    assert_intact,
    assert_same_files,
    ingest_command,
    ingest_serially,
    needs_mount,
    needs_strace,
)
from tests.faults.test_disk import in_namespace

ON_A_FULL_DISK = """
mount -t tmpfs -o size=64k none "$1/tables/runs"
head -c 1m /dev/zero >"$1/tables/runs/ballast" 2>/dev/null || true
shift
exec "$@"
"""


@pytest.mark.slow
@needs_mount
def test_ingest_finishes_when_the_run_log_has_no_room(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """tables/runs is a separate disk, which is full."""
    out = tmp_path / "c"
    Cohort(out).create(Plan())
    Cohort(out).runs.mkdir(parents=True, exist_ok=True)
    run = in_namespace(ON_A_FULL_DISK, out, *ingest_command(reference_cohort.scans, out, 0))
    assert run.returncode == 2, run.stderr
    assert [line for line in run.stderr.splitlines() if "No space left on device" in line] == [
        run.stderr.splitlines()[-1]
    ]
    assert "Traceback" not in run.stderr
    assert {row["status"] for row in Cohort(out).rows().values()} == {"done"}
    found = ingest_serially(reference_cohort.scans, out)
    assert (found.done, found.fresh, found.exit_code) == (6, [], 0)
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)


@needs_strace
@pytest.mark.long
def test_run_log_on_a_slow_disk_changes_no_byte(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """Every line that a process writes takes 5 ms longer."""
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(reference_cohort.scans / "s3.tiff", scans)
    ingest_serially(scans, tmp_path / "reference")
    slow = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(tmp_path / "log"), "--trace=write"]
    subprocess.run([*slow, "--inject=write:delay_enter=5000", *ingest_command(scans, tmp_path / "c", 0)], check=True)
    journal = latest_log(Cohort(tmp_path / "c"))
    assert journal is not None
    assert [event["event"] for _, event in log_entries(journal)] == ["started", "slide", "progress", "ended"]
    assert_intact(tmp_path / "c")


def test_ingest_runs_without_a_run_log_that_cannot_be_opened(
    reference_cohort: ReferenceCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder has the name of the run log, so that not even root can write it."""
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    (cohort.runs / "ingest-x.jsonl").mkdir(parents=True)
    with RunLog(cohort, "ingest-x") as journal:
        journal.write("started")
    assert (cohort.runs / "ingest-x.jsonl").is_dir()
