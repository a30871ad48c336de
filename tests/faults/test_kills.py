"""Kills: whichever process dies, and whenever, the same command ends with the same bytes and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Plan, Resources
from tests.faults.fault_fixtures import (
    TRIES,
    EndingProcesses,
    ReferenceCohort,
    assert_intact,
    assert_same_files,
    assert_whole_slides,
    count_rows,
    find_descendants,
    ingest_serially,
    kill_processes,
    needs_strace,
    process_tree,
    random_delays,
    shared_memory_files,
    start_ingest,
    wait_until,
    wait_until_ended,
)
from tests.faults.syscall_faults import EVENTS, under_strace
from tests.runtime.test_ingest import store_contents

CALLS = ("fsync", "rename", "unlink", "unlinkat", "rmdir", "mkdir", "write", "openat")
"""System calls that change a cohort or open a file; the decisive ones first."""

FRESH_RAY = min(20, max(1, TRIES // 3))
"""Tries of faults that start Ray each time, which takes 6 s and more."""


# -- at every system call ------------------------------------------------------------------------------------------


def ingest_with_faults(
    reference_cohort: ReferenceCohort,
    folder: Path,
    faults: dict[str, str],
    tries: int,
    before: str | None = None,
    strike: str | None = None,
) -> list[dict]:
    """Ingest one slide with a fault at its n-th call of each kind. Returns what was found after each fault.

    before: the slide whose result lies there already.  strike: without strace, at what Python tells of itself.
    """
    scans = folder / "scans"
    scans.mkdir()
    (scans / "s3.tiff").write_bytes((reference_cohort.scans / "s3.tiff").read_bytes())
    more = []
    if before is not None:
        old = folder / "old"
        old.mkdir()
        (old / "s3.tiff").write_bytes((reference_cohort.scans / before).read_bytes())
        os.utime(old / "s3.tiff", (1, 1))
        ingest_serially(old, folder / "before")
        intake = folder / "before" / "tables" / "runs" / "intake.parquet"
        intake.unlink()  # it names the folder `old`
        more = ["--before", str(folder / "before")]
    assert ingest_serially(scans, folder / "reference").done == 1
    command = [
        sys.executable,
        "-m",
        "tests.faults.syscall_faults",
        folder / "log",
        scans,
        folder / "c",
        folder / "reference",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    strace = under_strace(folder / "log", faults) if strike is None else []
    more += [] if strike is None else ["--strike", strike]
    run = subprocess.run(
        [*strace, *command, "--tries", str(tries), *more, "--calls", *faults], capture_output=True, text=True, env=env
    )
    assert run.returncode == 0, run.stderr
    assert '"fault"' not in run.stderr, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def assert_resumed_equal(found: list[dict]) -> None:
    """Assert that after each fault the resumed cohort equals the reference, with no leftovers."""
    for one in found:
        assert one["again"] == 0, one
        assert one["resumed"] == {"torn": [], "left": [], "problems": [], "same": True}, one


@pytest.mark.slow
@needs_strace
def test_kill_at_a_system_call_of_the_commit_leaves_a_whole_slide_or_none(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    found = ingest_with_faults(
        reference_cohort, tmp_path, dict.fromkeys(("fsync", "rename", "unlinkat", "write"), "signal=KILL"), tries=1
    )
    assert {one["code"] for one in found} == {-signal.SIGKILL}
    assert all(one["struck"]["torn"] == [] for one in found)
    assert_resumed_equal(found)


@pytest.mark.parametrize(
    ("strike", "codes"),
    [
        ("KILL", {-signal.SIGKILL}),
        ("EIO", {0, 1, 2, 3}),
    ],
)
@pytest.mark.long
def test_fault_at_an_audit_event_leaves_a_whole_slide_or_none(
    reference_cohort: ReferenceCohort, tmp_path: Path, strike: str, codes: set[int]
) -> None:
    found = ingest_with_faults(reference_cohort, tmp_path, dict.fromkeys(EVENTS, ""), 2, strike=strike)
    assert {one["code"] for one in found} <= codes
    assert all(one["struck"]["torn"] == [] for one in found)
    assert all(one["code"] != 0 or one["struck"]["same"] for one in found)
    assert_resumed_equal(found)


@pytest.mark.long
@needs_strace
@pytest.mark.timeout(900)
def test_kill_at_system_calls_all_over_an_ingest_leaves_a_whole_slide_or_none(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    """With HER2BATCH_FAULT_TRIES=1000 the kill happens at every system call."""
    found = []
    for calls, tries in ((CALLS[:5], TRIES), (CALLS[5:], TRIES // 2)):
        folder = tmp_path / calls[0]
        folder.mkdir()
        found += ingest_with_faults(reference_cohort, folder, dict.fromkeys(calls, "signal=KILL"), tries)
    assert {one["code"] for one in found} == {-signal.SIGKILL}
    assert all(one["struck"]["torn"] == [] for one in found)
    assert_resumed_equal(found)


@pytest.mark.long
@needs_strace
def test_next_run_completes_a_killed_replacement_of_a_changed_slide(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    found = ingest_with_faults(
        reference_cohort,
        tmp_path,
        dict.fromkeys(("rename", "unlink", "unlinkat"), "signal=KILL"),
        TRIES,
        before="s2.tiff",
    )
    assert {one["code"] for one in found} == {-signal.SIGKILL}
    assert_resumed_equal(found)


# -- the driver, Ray's own processes -------------------------------------------------------------------------------


def resume_and_compare(reference_cohort: ReferenceCohort, out: Path) -> None:
    """Run the same command in this process, and compare its files with the reference."""
    assert_whole_slides(out)
    assert ingest_serially(reference_cohort.scans, out).exit_code == 0
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)


def driver_process(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []


def kill_during_ingest(
    reference_cohort: ReferenceCohort,
    out: Path,
    victim: Callable[[int], list[psutil.Process]],
    after: float,
    ending: EndingProcesses,
) -> tuple[int, str, float]:
    """Kill processes of a run, `after` seconds from its lock. Returns exit code, stderr, seconds until it ended."""
    before = shared_memory_files()
    run = start_ingest(reference_cohort.scans, out)
    wait_until(lambda: (out / "cohort.toml").exists() or run.poll() is not None)
    end = time.monotonic() + after
    while time.monotonic() < end and run.poll() is None:
        time.sleep(0.05)
    victims = victim(run.pid)
    everybody = process_tree(run.pid)
    kill_processes(victims)
    begun = time.monotonic()
    _, words = run.communicate(timeout=120)
    took = time.monotonic() - begun
    resume_and_compare(reference_cohort, out)  # at once: as a service that is set to restart
    ending.add(everybody)
    wait_until(lambda: shared_memory_files() <= before)
    return run.returncode, words, took


@pytest.mark.long
@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_dead_ray_process_ends_the_run_and_the_next_continues(
    reference_cohort: ReferenceCohort, tmp_path: Path, part: str, ending: EndingProcesses
) -> None:
    out = tmp_path / "c"
    code, words, took = kill_during_ingest(
        reference_cohort, out, lambda pid: wait_for_process(pid, part, out), 0, ending
    )
    assert code == 2
    assert "a part of Ray on this machine has died; run the same command again" in words
    assert "Traceback" not in words
    assert took < 30


def wait_for_process(pid: int, part: str, out: Path, rows: int = 1) -> list[psutil.Process]:
    """Wait until `rows` slides are done, and return Ray's processes of that name."""
    wait_until(lambda: count_rows(out) >= rows)
    return find_descendants(pid, part)


@pytest.mark.parametrize("rows", [0, 6])
@pytest.mark.long
def test_dead_ray_process_at_start_or_stop_is_not_waited_for(
    reference_cohort: ReferenceCohort, tmp_path: Path, rows: int, ending: EndingProcesses
) -> None:
    """Ray itself would wait a minute and end the process with its own exit code, without our message."""

    def victims(pid: int) -> list[psutil.Process]:
        wait_until(lambda: count_rows(out) >= rows and bool(find_descendants(pid, "gcs_server")))
        return find_descendants(pid, "gcs_server")

    out = tmp_path / "c"
    code, words, took = kill_during_ingest(reference_cohort, out, victims, 0, ending)
    assert code in (0, 2), words
    assert took < 45
    assert [line for line in words.splitlines() if line.startswith("her2batch:")] == words.splitlines()[-1:] * (
        code == 2
    )


@pytest.mark.long
def test_killed_driver_leaves_whole_slides_and_no_process(
    reference_cohort: ReferenceCohort, tmp_path: Path, ending: EndingProcesses
) -> None:
    out = tmp_path / "c"
    code, _, _ = kill_during_ingest(
        reference_cohort, out, lambda pid: wait_for_process(pid, "none", out) or driver_process(pid), 0, ending
    )
    assert code == -signal.SIGKILL


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", ["driver", "raylet", "gcs_server"])
def test_resume_after_kill_at_random_moments_gives_identical_files(
    reference_cohort: ReferenceCohort, tmp_path: Path, part: str, ending: EndingProcesses
) -> None:
    """The moments are spread over the start, the slides and the end of a run."""
    begun = time.monotonic()
    assert start_ingest(reference_cohort.scans, tmp_path / "whole").wait(timeout=120) == 0
    longest = time.monotonic() - begun
    for k, after in enumerate(random_delays(part, FRESH_RAY, longest * 0.9)):
        out = tmp_path / str(k)
        victim = driver_process if part == "driver" else lambda pid: find_descendants(pid, part)
        code, words, took = kill_during_ingest(reference_cohort, out, victim, after, ending)
        own = "core_worker" in words  # Ray's own exit, in its own words, where it can't end its start
        assert code in {"driver": (-signal.SIGKILL, 0)}.get(part, (0, 2)) or own, words
        assert "Traceback" not in words
        assert took < 30


# -- actors --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_killed_reader_changes_no_byte(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """Reader and writer are one process: the worker that decodes a slide also measures and commits it."""
    out = tmp_path / "c"
    run = start_ingest(reference_cohort.scans, out)
    kill_processes(wait_for_process(run.pid, "ray::Actor", out)[:1])
    _, words = run.communicate(timeout=120)
    assert run.returncode == 0, words
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)


@pytest.mark.long
@pytest.mark.parametrize("pool", ["reader", "model"])
def test_actors_killed_at_random_moments_change_no_byte(
    reference_cohort: ReferenceCohort, tmp_path: Path, pool: str, ray_session: RaySession, small_weights: Path
) -> None:
    """At most two deaths per run: a slide that loses three workers fails. A declared GPU gives models own workers."""
    plan = Plan() if pool == "reader" else Plan(encoders=("timm:test_vit",))
    session = replace(ray_session, workers=2, gpus=0 if pool == "reader" else 1)
    order = IngestRequest(reference_cohort.scans, tmp_path / "plain", weights=small_weights)
    ingest(order, plan, Resources(workers=0))
    reference = store_contents(tmp_path / "plain")
    for k, after in enumerate(random_delays(pool, min(10, TRIES // 2), 0.5)):
        deaths: list[float] = []

        def strike(*_: object, after: float = after, deaths: list[float] = deaths) -> None:
            if len(deaths) < 2:
                time.sleep(after)
                kill_processes(
                    find_descendants(os.getpid(), "ray::Actor")[-1:]
                    if pool == "model"
                    else find_descendants(os.getpid(), "ray::Actor")[:1]
                )
                deaths.append(after)

        out = tmp_path / str(k)
        summary = ingest(replace(order, out=out), plan, Resources(workers=2), strike, session=session)
        assert (summary.exit_code, len(deaths)) == (0, 2)
        assert_same_files(out, reference)
        assert_intact(out)


# -- asked to stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "number", "at"),
    [
        pytest.param(2, signal.SIGINT, "slides", marks=pytest.mark.long),
        (0, signal.SIGTERM, "slides"),
        pytest.param(2, signal.SIGTERM, "start", marks=pytest.mark.long),
    ],
)
def test_signal_stops_a_run_within_ten_seconds_with_130(
    reference_cohort: ReferenceCohort, tmp_path: Path, workers: int, number: int, at: str
) -> None:
    out = tmp_path / "c"
    run = start_ingest(reference_cohort.scans, out, workers)
    wait_until(lambda: count_rows(out) >= 1 if at == "slides" else (out / "cohort.toml").exists())
    everybody = process_tree(run.pid)
    run.send_signal(number)
    begun = time.monotonic()
    _, words = run.communicate(timeout=60)
    assert run.returncode == 130, words
    assert time.monotonic() - begun < 10
    assert "Traceback" not in words
    wait_until_ended(everybody)
    resume_and_compare(reference_cohort, out)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_at_random_moments_stops_a_run_with_130(
    reference_cohort: ReferenceCohort, tmp_path: Path, number: int
) -> None:
    for k, after in enumerate(random_delays(str(number), FRESH_RAY, 8)):
        out = tmp_path / str(k)
        run = start_ingest(reference_cohort.scans, out)
        wait_until(lambda out=out: (out / "cohort.toml").exists())
        time.sleep(after)
        everybody = process_tree(run.pid)
        run.send_signal(number)
        begun = time.monotonic()
        if k % 3 == 2:
            time.sleep(0.3)
            run.send_signal(number)  # impatient: at once, whatever is going on
        _, words = run.communicate(timeout=60)
        assert run.returncode in (130, 0), words
        assert time.monotonic() - begun < 10
        assert "Traceback" not in words
        wait_until_ended(everybody)
        resume_and_compare(reference_cohort, out)


@pytest.mark.long
def test_second_interrupt_ends_a_run_at_once(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    out = tmp_path / "c"
    run = start_ingest(reference_cohort.scans, out)
    wait_until(lambda: count_rows(out) >= 1)
    everybody = process_tree(run.pid)
    for _ in range(2):
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
    run.communicate(timeout=60)
    assert run.returncode == 130
    wait_until_ended(everybody)
    resume_and_compare(reference_cohort, out)
