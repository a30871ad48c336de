"""What the fault tests share: six tiny slides, an undisturbed reference, and what Same and Clean mean."""

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
from tests.runtime.test_ingest import contents

SERIAL = Resources(workers=0)
OTHER_PROGRAMS = ("sem.", "faketime_")
"""How the names of other programs' shared memory begin."""

AGENTS_S = 90.0
"""How long Ray's agents may outlive a killed driver."""

TRIES = int(os.environ.get("HER2BATCH_FAULT_TRIES", "10"))
"""How often a fault of the slow suite is tried: strikes at each system call, random moments of a kill."""

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return subprocess.run(tried, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not _can_mount(), reason="this machine lets nobody mount in a namespace of their own")


@dataclass(frozen=True)
class ReferenceCohort:
    """Six tiny slides, and the files that an undisturbed ingest of them makes."""

    scans: Path
    files: dict[str, bytes]


def make_reference_cohort(folder: Path) -> ReferenceCohort:
    """Make both; the reference comes from the plain loop."""
    scans = folder / "scans"
    scans.mkdir()
    for k in range(6):
        image = tissue_image(900 + 60 * k, 900, seed=k, brown=0.15 * k)
        write_slide(scans / f"s{k}.tiff", image, levels=1 + k % 2)
    summary = ingest_serially(scans, folder / "reference")
    assert (summary.done, summary.exit_code) == (6, 0)
    return ReferenceCohort(scans, contents(folder / "reference"))


def ingest_serially(scans: Path, out: Path, **more: object) -> IngestSummary:
    """Ingest in this process, one slide after the other: the reference, and how a killed run is resumed."""
    return ingest(IngestRequest(scans, out, **more), Plan(), SERIAL)


def ingest_command(scans: Path, out: Path, workers: int = 2, *more: str) -> list[str]:
    """The command line of an ingest."""
    own = [sys.executable, "-m", "her2batch.cli", "ingest", str(scans), "--out", str(out)]
    return [*own, "--workers", str(workers), *more]


def start_ingest(scans: Path, out: Path, workers: int = 2, *more: str) -> subprocess.Popen[str]:
    """An ingest in a process of its own, which leads a session of its own."""
    return subprocess.Popen(
        ingest_command(scans, out, workers, *more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


# -- Same and Clean ------------------------------------------------------------------------------------------------


def assert_same_files(out: Path, reference: dict[str, bytes]) -> None:
    """tables/ (without runs/), pyramids and pictures byte for byte, no file more and none less."""
    found = contents(out)
    assert {"more": sorted(found.keys() - reference.keys()), "less": sorted(reference.keys() - found.keys())} == {
        "more": [],
        "less": [],
    }
    assert [name for name in found if found[name] != reference[name]] == []


def assert_intact(out: Path) -> None:
    """No draft, no half-written file, and every file as its row says."""
    assert [str(path) for path in [*out.glob(".draft-*"), *out.rglob(".*.part")]] == []
    assert list(verify_cohort(Cohort(out))) == []


def assert_whole_slides(out: Path) -> None:
    """Every slide that is there now is there whole: each of its files has the size and the bytes its row says."""
    cohort = Cohort(out)
    rows = cohort.rows() if cohort.slides.is_dir() else {}
    wrong = [row["slide_id"] for row in rows.values() if not files_match_row(cohort, row)]
    assert wrong == []


@contextmanager
def read_in_background(read: Callable[[], Any], every: float = 0.0) -> Iterator[list[Any]]:
    """Read in a loop on a thread, `every` so many seconds; what it found, and the exception that ended it."""
    found: list[Any] = []
    ended = threading.Event()

    def loop() -> None:
        try:
            while not ended.wait(every):
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
    assert [one for one in found if isinstance(one, Exception)] == []


def processes_naming(mark: str) -> list[psutil.Process]:
    """Processes that name a folder of ours in their command line, or whose Ray's session lies in it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shared_memory_files() -> set[str]:
    """What lies in /dev/shm, but for what other programs have there, which comes and goes."""
    folder = Path("/dev/shm")
    return (
        {path.name for path in folder.iterdir() if not path.name.startswith(OTHER_PROGRAMS)}
        if folder.is_dir()
        else set()
    )


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and everything it started."""
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


def wait_until_ended(processes: Iterable[psutil.Process], within: float = AGENTS_S) -> float:
    """Wait until they have ended; returns the seconds it took. Fails when one stays."""
    begun = time.monotonic()
    _, left = psutil.wait_procs([one for one in processes if _alive(one)], timeout=within)
    assert [" ".join(one.cmdline())[:120] for one in left if _alive(one)] == []
    return time.monotonic() - begun


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# -- moments -------------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], within: float = 120.0) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def count_rows(out: Path) -> int:
    """Committed slides, by the names of their row files."""
    return len(list((out / "tables" / "slides").glob("[!.]*.parquet")))


def random_delays(name: str, count: int, longest: float) -> list[float]:
    """Seconds to wait before each try: a seed of its own for every fault, the same each time."""
    chance = random.Random(name)
    return [chance.uniform(0, longest) for _ in range(count)]


def find_descendants(pid: int, *names: str) -> list[psutil.Process]:
    """Descendants of a process by the name of their program, or by a word of their title."""
    found = []
    for one in process_tree(pid)[1:]:
        with suppress(psutil.Error):
            title = " ".join(one.cmdline()[:2])
            if one.name() in names or any(name in title for name in names):
                found.append(one)
    return found


def kill_processes(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to each that is still there."""
    for one in processes:
        with suppress(psutil.Error):
            one.send_signal(signal.SIGKILL)
