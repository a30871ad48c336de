"""The watch: a slide is processed once the scanner has finished it, however the scanner writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from her2batch.pipeline.inventory import InventoryUpdater, SlideJob
from her2batch.pipeline.queue import local_now
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.watch import GIVE_UP, FileStability, find_partial_copy
from her2batch.settings import Plan, Resources, RunWindow
from her2batch.slides.discover import DiscoveredSlides, SlideFiles, refresh_files, slide_files
from her2batch.store.audit import cohort_status
from her2batch.store.cohort import Cohort
from her2batch.store.run_log import log_entries

SETTLE = 10.0


def no_failure(_: Path) -> None:
    return None


def write_file(path: Path, text: str = "x") -> SlideFiles:
    path.write_text(text)
    return slide_files((path,))


def test_file_is_complete_after_a_settle_time_without_change(tmp_path: Path) -> None:
    stability, slide = FileStability(SETTLE, no_failure), write_file(tmp_path / "a.svs")
    assert [stability.is_complete(slide, at, ()) for at in (100.0, 105.0, 109.9, 110.0)] == [False, False, False, True]


def test_change_restarts_the_settle_time(tmp_path: Path) -> None:
    stability, slide = FileStability(SETTLE, no_failure), write_file(tmp_path / "a.svs")
    assert not stability.is_complete(slide, 0, ())
    slide = write_file(tmp_path / "a.svs", "xy")
    assert [stability.is_complete(slide, at, ()) for at in (9.0, 18.0, 19.0)] == [False, False, True]


def test_file_renamed_over_another_of_the_same_size_and_time_is_new(tmp_path: Path) -> None:
    stability, slide = FileStability(SETTLE, no_failure), write_file(tmp_path / "a.svs")
    stability.is_complete(slide, 0, ())
    facts = slide.path.stat()
    write_file(tmp_path / "b.svs", "y").path.replace(slide.path)
    os.utime(slide.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert not stability.is_complete(refresh_files(slide), 15, ())
    assert stability.is_complete(refresh_files(slide), 25, ())


def test_file_times_are_not_compared_with_the_local_clock(tmp_path: Path) -> None:
    stability, slide = FileStability(SETTLE, no_failure), write_file(tmp_path / "a.svs")
    os.utime(slide.path, (4e9, 4e9))  # a share whose clock is a century ahead
    assert not stability.is_complete(slide, 0, ())
    assert stability.is_complete(slide, SETTLE, ())


def test_file_that_does_not_open_is_processed_in_the_end(tmp_path: Path) -> None:
    stability, slide = FileStability(SETTLE, lambda _: "the file is cut"), write_file(tmp_path / "a.svs")
    found = [stability.is_complete(slide, SETTLE * k, ()) for k in range(GIVE_UP + 1)]
    assert found == [False] * GIVE_UP + [True]
    assert stability.reason(slide) == "does not open yet: the file is cut"


def test_all_files_of_a_slide_must_be_unchanged(tmp_path: Path) -> None:
    for name in ("a.mrxs", "Data0.dat"):
        write_file(tmp_path / name)
    paths = (tmp_path / "a.mrxs", tmp_path / "Data0.dat")
    stability = FileStability(SETTLE, no_failure)
    stability.is_complete(slide_files(paths), 0, ())
    write_file(paths[1], "longer")
    assert not stability.is_complete(slide_files(paths), SETTLE, ())
    assert stability.is_complete(slide_files(paths), 2 * SETTLE, ())


@pytest.mark.parametrize(
    "other", ["a.svs.part", "a.svs.tmp", "a.part", "a.svs.filepart", "a.svs.crdownload", "~a.svs", ".a.svs.Xy12Zq"]
)
def test_partial_copy_beside_a_slide_delays_it(tmp_path: Path, other: str) -> None:
    stability, slide = FileStability(SETTLE, no_failure), write_file(tmp_path / "a.svs")
    stability.is_complete(slide, 0, ())
    assert not stability.is_complete(slide, SETTLE, ["a.svs", other])
    assert other in stability.reason(slide)
    assert stability.is_complete(slide, SETTLE, ["a.svs"])


def test_abandoned_partial_copy_does_not_delay_a_slide_forever(tmp_path: Path) -> None:
    stability, slide = FileStability(SETTLE, no_failure), write_file(tmp_path / "a.svs")
    part = tmp_path / "a.svs.part"
    for k in range(2 * GIVE_UP):  # it grows
        part.write_bytes(bytes(k))
        assert not stability.is_complete(slide, SETTLE * k, ["a.svs", part.name])
    found = [stability.is_complete(slide, SETTLE * (2 * GIVE_UP + k), ["a.svs", part.name]) for k in range(GIVE_UP)]
    assert found == [False] * (GIVE_UP - 1) + [True]


def test_partial_copies_of_other_slides_delay_nothing() -> None:
    assert find_partial_copy("a.svs", ["a.svs", "b.svs.part", "aa.part", ".b.svs.Q1", "a2.svs.tmp", "a.xml"]) is None


# -- with real slides ------------------------------------------------------------------------------------------


def watch_in_thread(
    tmp_path: Path, session: RaySession, seconds: float = 60, **more: object
) -> "tuple[threading.Thread, list]":
    """Run an ingest that watches in a thread, until it or the test has ended."""
    found: list = []
    window = RunWindow(watch=True, settle=0.6, **more)

    def run() -> None:
        request = IngestRequest(tmp_path / "scans", tmp_path / "c")
        found.append(ingest(request, Plan(tile=64), Resources(workers=1), window=window, session=session))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def slides_ended(cohort: Cohort) -> list[str]:
    """The slides that the driver has counted. A worker writes a slide's row before that."""
    found = [event for path in cohort.runs.glob("*.jsonl") for _, event in log_entries(path)]
    return [event["slide_id"] for event in found if event["event"] == "slide"]


def wait_for(what: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_slides_are_processed_once_each_kind_of_writer_has_finished(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    """One pauses, one preallocates, one renames, one copies slowly: no slide is processed before it is complete."""
    made = {name: make_slide(f"../made/{name}.tiff", seed=k) for k, name in enumerate(("pause", "pre", "ren", "slow"))}
    scans, cohort = tmp_path / "scans", Cohort(tmp_path / "c")
    scans.mkdir(exist_ok=True)
    session = RaySession(ray_session.ray, 1, 0.0)
    thread, found = watch_in_thread(tmp_path, session)
    data = {name: path.read_bytes() for name, path in made.items()}

    def pause() -> None:
        with (scans / "pause.tiff").open("wb") as file:
            for part in (data["pause"][:50_000], data["pause"][50_000:]):
                file.write(part)
                file.flush()
                time.sleep(1.5)  # longer than it takes to settle

    def preallocate() -> None:
        with (scans / "pre.tiff").open("wb") as file:
            file.truncate(len(data["pre"]))
            time.sleep(1.5)
            file.write(data["pre"])

    def rename() -> None:
        part = scans / "ren.tiff.part"
        part.write_bytes(data["ren"])
        time.sleep(1.5)
        part.rename(scans / "ren.tiff")

    def slowly() -> None:
        with (scans / "slow.tiff").open("wb") as file:
            for at in range(0, len(data["slow"]), len(data["slow"]) // 12):
                file.write(data["slow"][at : at + len(data["slow"]) // 12])
                file.flush()
                time.sleep(0.25)

    writers = [threading.Thread(target=one) for one in (pause, preallocate, rename, slowly)]
    for one in writers:
        one.start()
    wait_for(lambda: len(slides_ended(cohort)) == 4)
    session.stopped.set()
    thread.join(20)
    summary = found[0]
    assert (summary.seen, summary.done, summary.failed, summary.exit_code) == (4, 4, 0, 130)
    assert sorted(slides_ended(cohort)) == ["pause", "pre", "ren", "slow"]  # each once: none was taken up unfinished


def test_slides_left_at_the_end_of_the_window_are_processed_by_the_next_run(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    make_slide("a.tiff")
    cut = make_slide("cut.tiff", seed=1)
    os.truncate(cut, cut.stat().st_size // 2)
    window = RunWindow(watch=True, settle=30, until=(local_now() + timedelta(seconds=4)).strftime("%H:%M:%S"))
    request = IngestRequest(tmp_path / "scans", tmp_path / "c")
    summary = ingest(request, Plan(tile=64), Resources(workers=1), window=window, session=ray_session)
    assert (summary.seen, summary.deferred, summary.done, summary.exit_code) == (2, 2, 0, 0)
    found = cohort_status(Cohort(tmp_path / "c"))
    assert found.adds_up
    assert found.deferred == 2
    assert found.reasons == {"deferred: not at rest for 30 s yet": 2}
    summary = ingest(request, Plan(tile=64), Resources(workers=0))
    assert (summary.seen, summary.done, summary.failed, summary.deferred) == (2, 1, 1, 0)
    assert summary.failures[0]["error_code"] == "truncated"


@pytest.mark.long
def test_run_without_linger_ends_when_no_slide_is_left(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    for k in range(3):
        make_slide(f"s{k}.tiff", seed=k)
    thread, found = watch_in_thread(tmp_path, ray_session, linger=False)
    thread.join(60)
    assert (found[0].seen, found[0].done, found[0].exit_code) == (3, 3, 0)
    thread, found = watch_in_thread(tmp_path, ray_session, linger=False)  # again: nothing waits to settle
    thread.join(20)
    assert (found[0].already, found[0].fresh, found[0].exit_code) == (3, [], 0)


@pytest.mark.slow
def test_replaced_slide_is_processed_again_and_a_copy_is_not(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_slide("a.tiff"), make_slide("../made/b.tiff", seed=5)
    admitted: list[str] = []

    def admit(
        register: InventoryUpdater, found: DiscoveredSlides, plain: Callable = InventoryUpdater.admit
    ) -> list[SlideJob]:
        todos = plain(register, found)
        admitted.extend(one.path.name for one in found.slides)
        return todos

    monkeypatch.setattr(InventoryUpdater, "admit", admit)
    cohort, session = Cohort(tmp_path / "c"), RaySession(ray_session.ray, 1, 0.0)
    thread, found = watch_in_thread(tmp_path, session)
    wait_for(lambda: "a" in cohort.rows())
    before = cohort.rows()["a"]["sha256"]
    shutil.copy(first, first.with_name("copy.tiff"))
    wait_for(lambda: "copy.tiff" in admitted)  # it has settled
    other.replace(first)
    wait_for(lambda: len(slides_ended(cohort)) == 2)
    assert cohort.rows()["a"]["sha256"] != before
    session.stopped.set()
    thread.join(60)
    assert (found[0].seen, found[0].done, found[0].duplicate, found[0].fresh) == (2, 1, 1, ["a"])
    # what the copy was a copy of is gone: the next run knows it for a slide
    summary = ingest(IngestRequest(tmp_path / "scans", tmp_path / "c"), Plan(tile=64), Resources(workers=0))
    assert (summary.seen, summary.done, summary.duplicate) == (2, 2, 0)
    assert {row["sha256"] for row in cohort.rows().values()} > {before}


@pytest.mark.long
def test_sigterm_stops_within_ten_seconds(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff")
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(tmp_path / "scans"), "--out", str(tmp_path / "c"),
               "--watch", "--settle", "0.5", "--tile", "64", "--workers", "1"]  # fmt: skip
    watcher = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list((tmp_path / "c").glob("tables/slides/a.parquet")), 90)
    asked = time.monotonic()
    watcher.send_signal(signal.SIGTERM)
    out, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert time.monotonic() - asked < 10
    assert "1 done" in out


@pytest.mark.slow
def test_serial_watch_stops_in_order_and_a_second_watch_is_refused(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff")
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(tmp_path / "scans"), "--out", str(tmp_path / "c"),
               "--watch", "--settle", "0.5", "--tile", "64", "--workers", "0", "--json"]  # fmt: skip
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list((tmp_path / "c").glob("tables/slides/a.parquet")), 60)
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"pid {watcher.pid}" in second.stderr
    assert os.uname().nodename in second.stderr
    watcher.send_signal(signal.SIGTERM)
    out, _ = watcher.communicate(timeout=10)
    assert watcher.returncode == json.loads(out)["exit_code"] == 130
    assert json.loads(out)["done"] == 1
