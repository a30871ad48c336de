"""A clock that is wrong or jumps changes no result, stops no watch, and makes no lock stale."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.files.locks import is_locked, lock_folder
from her2batch.pipeline.queue import SlideQueue, next_occurrence
from her2batch.store.cohort import Cohort
from tests.faults.fault_fixtures import (
    ReferenceCohort,
    assert_intact,
    assert_same_files,
    ingest_command,
    ingest_serially,
)
from tests.runtime.test_ingest import store_contents

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
needs_faketime = pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")


def environment_with_clock(**clock: str) -> dict[str, str]:
    """Return the environment of a process that sees another time of day; the monotonic clock is unchanged."""
    own = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    return {**os.environ, **own, **clock}


@needs_faketime
@pytest.mark.parametrize(
    "clock", ["@1970-01-01 00:10:00", pytest.param("@2099-06-30 23:59:50", marks=pytest.mark.slow)]
)
def test_results_do_not_depend_on_the_clock(reference_cohort: ReferenceCohort, tmp_path: Path, clock: str) -> None:
    run = subprocess.run(
        ingest_command(reference_cohort.scans, tmp_path / "c", 0),
        env=environment_with_clock(FAKETIME=clock),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    journal = next(Cohort(tmp_path / "c").runs.glob("*.jsonl"))
    assert f'"at": "{clock[1:5]}-' in journal.read_text()  # the process did see that time
    assert_same_files(tmp_path / "c", reference_cohort.files)
    assert_intact(tmp_path / "c")


WATCH = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds)
from her2batch.cli.app import main
main()
"""
"""libfaketime breaks clock_nanosleep, and with it Python's time.sleep, when it leaves the monotonic clock unchanged."""


@needs_faketime
@pytest.mark.long
def test_watch_is_not_affected_by_clock_jumps(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """The clock jumps one hour ahead, one hour back, and to 1970: each slide is ingested once, when it is at rest."""
    scans, cohort, clock = tmp_path / "scans", Cohort(tmp_path / "c"), tmp_path / "clock"
    scans.mkdir()
    clock.write_text("+0\n")
    env = environment_with_clock(FAKETIME_TIMESTAMP_FILE=str(clock))
    given = ("--watch", "--settle", "1.5", "--tile", "64", "--workers", "0")
    watch = [sys.executable, "-c", WATCH, "ingest", str(scans), "--out", str(cohort.root), *given]
    with subprocess.Popen(watch, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            for name, jump in (("s0", "+3600s"), ("s1", "-3600s"), ("s2", "@1970-01-02 00:00:00")):
                shutil.copyfile(reference_cohort.scans / f"{name}.tiff", scans / f"{name}.tiff")
                copied = time.monotonic()
                clock.write_text(f"{jump}\n")
                while not cohort.table("slides", name).exists():
                    assert run.poll() is None
                    assert time.monotonic() - copied < 90, "the watch stalls"
                    time.sleep(0.05)
                assert time.monotonic() - copied > 1.5
            run.terminate()
            assert run.wait(60) == 130
        finally:
            run.kill()
    assert sorted(cohort.rows()) == ["s0", "s1", "s2"]


@pytest.mark.parametrize("when", [0, 4e9], ids=["1970", "2096"])
def test_files_with_odd_modification_times_are_read_once(
    reference_cohort: ReferenceCohort, tmp_path: Path, when: float
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("s0.tiff", "s3.tiff"):
        shutil.copy(reference_cohort.scans / name, scans)
    ingest_serially(scans, tmp_path / "now")
    for path in scans.iterdir():
        os.utime(path, (when, when))
    assert ingest_serially(scans, tmp_path / "c").fresh == ["s0", "s3"]
    again = ingest_serially(scans, tmp_path / "c")
    assert (again.fresh, again.already) == ([], 2)
    assert_same_files(tmp_path / "c", store_contents(tmp_path / "now"))


@pytest.mark.parametrize("when", [0, 4e9], ids=["1970", "2096"])
def test_lock_is_held_while_its_process_lives_whatever_its_time(tmp_path: Path, when: float) -> None:
    with lock_folder(tmp_path):
        os.utime(tmp_path / ".lock", (when, when))
        assert is_locked(tmp_path)
        with pytest.raises(StoreError, match="is in use"), lock_folder(tmp_path):
            pass
    assert not is_locked(tmp_path)


# -- nights on which the clocks change -----------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def berlin_time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("begin", "until", "end"),
    [
        ("2026-10-24 18:00", "06:00", "2026-10-25 05:00"),  # back an hour: eleven hours of night from 20:00
        ("2026-03-28 19:00", "06:00", "2026-03-29 04:00"),  # ahead: nine
        ("2026-10-25 00:10", "02:30", "2026-10-25 00:30"),  # 02:10, the first time
        ("2026-10-25 01:15", "02:30", "2026-10-25 01:30"),  # 02:15, the second: not 02:30 of an hour ago
        ("2026-10-25 01:45", "02:30", "2026-10-26 01:30"),  # past both
        ("2026-10-25 00:45", "02:30", "2026-10-25 01:30"),  # past the first alone
        ("2026-03-29 00:30", "02:30", "2026-03-29 01:30"),  # is left out that night: an hour later on the clock
        ("2026-03-29 01:40", "02:30", "2026-03-30 00:30"),
    ],
)
def test_window_ends_at_local_time_across_daylight_saving(berlin: None, begin: str, until: str, end: str) -> None:
    found = next_occurrence(until, berlin_time(begin).astimezone())
    assert found == berlin_time(end)
    moment = [berlin_time(begin)]
    queue = SlideQueue(until=found, clock=lambda: moment[0].astimezone())
    assert not queue.is_closed()
    moment[0] = berlin_time(end) - timedelta(seconds=1)
    assert not queue.is_closed()
    moment[0] = berlin_time(end)
    assert queue.is_closed()
