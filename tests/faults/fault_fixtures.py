"""Shared by the fault tests: a reference cohort, starting and killing runs, and comparing what they leave."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from her2batch.runtime.ingest import IngestRequest, IngestSummary, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import files_match_row, verify_cohort
from her2batch.store.cohort import Cohort
from tests.conftest import tissue_image, write_slide
from tests.runtime.test_ingest import store_contents

SERIAL = Resources(workers=0)
OTHER_PROGRAMS = ("sem.", "faketime_")
"""Prefixes of the shared memory of other programs."""

AGENTS_S = 120.0
"""Seconds that Ray's agents may outlive a killed driver: they try for 60 s to report it to what has died too."""

TRIES = int(os.environ.get("HER2BATCH_FAULT_TRIES", "10"))
"""Number of tries of a fault: at each system call, or at random moments."""

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return subprocess.run(tried, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not _can_mount(), reason="this machine lets nobody mount in a namespace of their own")


@dataclass(frozen=True)
class ReferenceCohort:
    """Six tiny slides, the cohort that an undisturbed ingest of them makes, and its files. Tests must not change it."""

    scans: Path
    cohort: Path
    files: dict[str, bytes]


def make_reference_cohort(folder: Path) -> None:
    """Write the slides into `scans` and ingest them with the serial loop into `reference`."""
    scans = folder / "scans"
    scans.mkdir()
    for k in range(6):
        image = tissue_image(900 + 60 * k, 900, seed=k, brown=0.15 * k)
        write_slide(scans / f"s{k}.tiff", image, levels=1 + k % 2)
    summary = ingest_serially(scans, folder / "reference")
    assert (summary.done, summary.exit_code) == (6, 0)


def copy_reference(reference: ReferenceCohort, out: Path) -> Cohort:
    """Return a copy of the reference cohort, which is as good as another ingest of its slides."""
    shutil.copytree(reference.cohort, out)
    return Cohort(out)


def ingest_serially(scans: Path, out: Path, **more: object) -> IngestSummary:
    """Ingest with the serial loop in this process: for the reference, and to resume a killed run."""
    return ingest(IngestRequest(scans, out, **more), Plan(), SERIAL)


def ingest_command(scans: Path, out: Path, workers: int = 2, *more: str) -> list[str]:
    """Return the command line of an ingest."""
    own = [sys.executable, "-m", "her2batch.cli", "ingest", str(scans), "--out", str(out)]
    return [*own, "--workers", str(workers), *more]


def start_ingest(scans: Path, out: Path, workers: int = 2, *more: str) -> subprocess.Popen[str]:
    """Start an ingest in a process that leads a session of its own."""
    return subprocess.Popen(
        ingest_command(scans, out, workers, *more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


# -- Same and Clean ------------------------------------------------------------------------------------------------


def assert_same_files(out: Path, reference: dict[str, bytes]) -> None:
    """Assert that tables/ (without runs/), pyramids and thumbnails are byte for byte those of the reference."""
    found = store_contents(out)
    assert {"more": sorted(found.keys() - reference.keys()), "less": sorted(reference.keys() - found.keys())} == {
        "more": [],
        "less": [],
    }
    assert [name for name in found if found[name] != reference[name]] == []


def assert_intact(out: Path) -> None:
    """Assert that there is no draft and no partial file, and that every file is as its row says."""
    assert [str(path) for path in [*out.glob(".draft-*"), *out.rglob(".*.part")]] == []
    assert list(verify_cohort(Cohort(out))) == []


def assert_whole_slides(out: Path) -> None:
    """Assert that every committed slide is whole: each of its files has the size and checksum of its row."""
    cohort = Cohort(out)
    rows = cohort.rows() if cohort.slides.is_dir() else {}
    wrong = [row["slide_id"] for row in rows.values() if not files_match_row(cohort, row)]
    assert wrong == []


@contextmanager
def read_in_background(read: Callable[[], Any], every: float = 0.0) -> Iterator[list[Any]]:
    """Read in a loop on a thread, once in `every` seconds, and once at the end. Yields the results.

    Fails when a read raised an error.
    """
    found: list[Any] = []
    ended = threading.Event()

    def loop() -> None:
        try:
            while not ended.wait(every):
                found.append(read())
            found.append(read())
        except Exception as error:  # noqa: BLE001  (a reader's fault is what this looks for)
            found.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
    errors = [one for one in found if isinstance(one, Exception)]
    assert errors == [], errors


def processes_naming(mark: str) -> list[psutil.Process]:
    """Return the processes whose command line contains a text."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shared_memory_files() -> set[str]:
    """Return the names in /dev/shm, without those of other programs."""
    folder = Path("/dev/shm")
    return (
        {path.name for path in folder.iterdir() if not path.name.startswith(OTHER_PROGRAMS)}
        if folder.is_dir()
        else set()
    )


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all of its descendants."""
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


class EndingProcesses:
    """Processes of killed runs, which have to end by themselves while other tests run.

    `check` comes after the last test of this worker process, as Ray's agents may take a minute.
    """

    def __init__(self) -> None:
        self._processes: list[psutil.Process] = []

    def add(self, processes: Iterable[psutil.Process]) -> None:
        self._processes += processes

    def check(self) -> None:
        """Wait until all have ended. Fails when one remains."""
        wait_until_ended(self._processes)


def wait_until_ended(processes: Iterable[psutil.Process], within: float = AGENTS_S) -> float:
    """Wait until all processes have ended and return the seconds it took. Fails when one remains."""
    begun = time.monotonic()
    _, left = psutil.wait_procs([one for one in processes if _alive(one)], timeout=within)
    assert [" ".join(one.cmdline())[:120] for one in left if _alive(one)] == []
    return time.monotonic() - begun


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# -- moments -------------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], within: float = 200.0) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def count_rows(out: Path) -> int:
    """Return the number of committed slides, by their row files."""
    return len(list((out / "tables" / "slides").glob("[!.]*.parquet")))


def random_delays(name: str, count: int, longest: float) -> list[float]:
    """Return the seconds to wait before each try, drawn with a seed that belongs to the fault."""
    chance = random.Random(name)
    return [chance.uniform(0, longest) for _ in range(count)]


def find_descendants(pid: int, *names: str) -> list[psutil.Process]:
    """Return descendants of a process by the name of their program, or by a word of their title."""
    found = []
    for one in process_tree(pid)[1:]:
        with suppress(psutil.Error):
            title = " ".join(one.cmdline()[:2])
            if one.name() in names or any(name in title for name in names):
                found.append(one)
    return found


def kill_processes(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to each process that still runs."""
    for one in processes:
        with suppress(psutil.Error):
            one.send_signal(signal.SIGKILL)
