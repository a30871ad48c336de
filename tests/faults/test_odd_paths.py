"""Unusual names and special files: each gets an id or an error code, nothing hangs, no file appears elsewhere."""

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from her2batch.errors import printable_path
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from tests.runtime.test_ingest import codes, run

NAMES = [
    "new\nline.tiff", "quo'te\".tiff", "tab\t.tiff", "emoji-🔬.tiff", "é" * 124 + "x.tiff", "x" * 250 + ".tiff",
    "a..tiff", "-rf.tiff", "$(touch gone).tiff", "%s%n{}.tiff", " blank .tiff", "back\\slash.tiff", "=cmd|' .tiff",
    "CON.tiff", "_..tiff", "<b>.tiff", "e\u0301.tiff", os.fsdecode(b"n\xff\xfe.tiff"), os.fsdecode(b"n\xfe\xff.tiff"),
]  # fmt: skip


def list_files(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Return every path under a folder with its size and modification time, except those under `but`."""
    found = [path for path in folder.rglob("*") if but not in (path, *path.parents)]
    return {os.fsdecode(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if not path.is_dir()}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Assert that nothing but the cohort `c` changes, in whichever folder the command runs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "scans").mkdir()
    before: dict[str, object] = {}

    def remember() -> None:
        before.update(list_files(tmp_path, tmp_path / "c"))

    yield remember
    assert before
    assert list_files(tmp_path, tmp_path / "c") == before


@pytest.mark.slow
def test_unusual_file_names_become_plain_slide_ids(tmp_path: Path, make_slide: Callable, elsewhere: Callable) -> None:
    for k, name in enumerate(NAMES):
        make_slide(f"{k}.tiff", size=(600, 500), seed=k).rename(tmp_path / "scans" / name)
    elsewhere()
    summary = run(tmp_path / "scans", tmp_path / "c")
    assert (summary.done, summary.failed, summary.exit_code) == (len(NAMES), 0, 0)
    cohort = Cohort(tmp_path / "c")
    ids = [row["slide_id"] for row in cohort.rows().values()]
    assert len({one.lower() for one in ids}) == len(NAMES)
    assert all(one.isascii() and len(one) <= 130 and not set(one) & set("/\\\n\"' ") for one in ids)
    assert list(verify_cohort(cohort)) == []
    assert cohort_status(cohort).adds_up
    assert pq.read_table(cohort.intake).num_rows == len(NAMES)
    again = run(tmp_path / "scans", tmp_path / "c")
    assert again.already == len(NAMES)


@pytest.mark.slow
def test_unusual_file_names_are_printed_in_json_and_on_screen(tmp_path: Path, elsewhere: Callable) -> None:
    for name in (os.fsdecode(b"n\xff.tiff"), "new\nline.tiff", "🔬.svs"):
        (tmp_path / "scans" / name).write_bytes(name.encode(errors="surrogateescape"))
    elsewhere()
    command = ["-m", "her2batch.cli", "ingest", str(tmp_path / "scans"), "--out", str(tmp_path / "c"), "--workers", "0"]
    said = [
        subprocess.run([sys.executable, *command, *more], capture_output=True, timeout=100) for more in (["--json"], [])
    ]
    assert [one.returncode for one in said] == [3, 3]
    assert len(json.loads(said[0].stdout)["failures"]) == 3
    assert b"Traceback" not in said[0].stderr + said[1].stderr + said[1].stdout


def test_special_files_are_ignored_without_waiting(tmp_path: Path, make_slide: Callable, elsewhere: Callable) -> None:
    scans = tmp_path / "scans"
    good = make_slide("good.tiff", size=(600, 500))
    other = make_slide("../outside/other.tiff", size=(600, 500), seed=5)
    (scans / "folder.svs").mkdir()
    make_slide("folder.svs/inside.tiff", size=(600, 500), seed=6)
    os.mkfifo(scans / "pipe.svs")
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(scans)  # a socket's path must be short
    listener.bind("socket.svs")
    (scans / "loop.svs").symlink_to(scans / "loop.svs")
    (scans / "ping").symlink_to(scans / "pong")
    (scans / "pong").symlink_to(scans / "ping")
    (scans / "round").symlink_to(scans)
    (scans / "nowhere.svs").symlink_to(tmp_path / "nowhere")
    (scans / "out.tiff").symlink_to(other)
    (scans / "out").symlink_to(other.parent)
    (scans / "zero.svs").symlink_to("/dev/zero")
    elsewhere()
    summary = run(scans, tmp_path / "c")
    listener.close()
    found = {Path(row["path"]).name: row["slide_id"] for row in summary.slides}
    assert found == {good.name: "good", "inside.tiff": "inside", "out.tiff": "out"}
    reasons = {Path(one["path"]).name: one["reason"] for one in Cohort(tmp_path / "c").read_intake() if one["reason"]}
    assert reasons == {
        "pipe.svs": "not a regular file", "socket.svs": "not a regular file", "zero.svs": "not a regular file",
        "loop.svs": "link that leads nowhere", "nowhere.svs": "link that leads nowhere",
        "ping": "link that leads nowhere", "pong": "link that leads nowhere",
        "round": "link to a folder", "out": "link to a folder",
    }  # fmt: skip
    assert (summary.done, summary.ignored, summary.exit_code) == (3, 9, 0)


def test_stems_that_differ_only_in_case_are_two_slides(tmp_path: Path, make_slide: Callable) -> None:
    for k, name in enumerate(("case.tiff", "CASE.tiff", "Case.tif", "sub/case.tiff")):
        make_slide(name, size=(600, 500), seed=k)
    summary = run(tmp_path / "scans", tmp_path / "c")
    assert summary.done == 4
    files = [path.name.lower() for path in Cohort(tmp_path / "c").slides.iterdir()]
    assert len(set(files)) == 4  # on a disk that ignores case, too
    before = {row["path"]: row["slide_id"] for row in summary.slides}
    assert before == {row["path"]: row["slide_id"] for row in run(tmp_path / "scans", tmp_path / "c").slides}


def test_undecodable_paths_stay_distinct() -> None:
    paths = [
        os.fsdecode(one)
        for one in (b"/n\xff", rb"/n\xff", rb"/n\\xff", b"/n\\\xff", b"/n\xfe", rb"/n\n", "/é".encode())
    ]
    told = [printable_path(Path(one)) for one in paths]
    assert len(set(told)) == len(paths)
    assert told[0] == r"/n\xff"
    assert told[-2:] == [r"/n\n", "/é"]


def test_folder_given_with_dots_is_the_same_folder(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff", size=(600, 500))
    assert run(tmp_path / "scans", tmp_path / "c").done == 1
    assert run(tmp_path / "scans" / ".." / "scans", tmp_path / "scans" / ".." / "c").already == 1


CAPSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2


def obey_file_modes() -> None:
    """Drop the capability that lets root ignore file modes; called in a child process."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
            if libc.prctl(CAPSET_DROP, capability, 0, 0, 0):
                os._exit(77)


@pytest.mark.slow
def test_unreadable_files_fail_or_are_reported_and_others_are_done(tmp_path: Path, make_slide: Callable) -> None:
    for k, name in enumerate(("a.tiff", "closed.tiff", "closed/b.tiff", "sub/closed.tiff")):
        make_slide(name, size=(600, 500), seed=k)
    twin = make_slide("twin.tiff", size=(600, 500), seed=1)  # of one size with a closed one: it would be hashed
    os.truncate(twin, (tmp_path / "scans/closed.tiff").stat().st_size)
    for name in ("closed.tiff", "closed"):
        (tmp_path / "scans" / name).chmod(0)
    command = ["-m", "her2batch.cli", "ingest", str(tmp_path / "scans"), "--out", str(tmp_path / "c"), "--json"]
    done = subprocess.run(
        [sys.executable, *command, "--workers", "0"], capture_output=True, text=True, timeout=100,
        preexec_fn=obey_file_modes,
    )  # fmt: skip
    for name in ("closed.tiff", "closed"):
        (tmp_path / "scans" / name).chmod(0o755)
    if done.returncode == 77:
        pytest.skip("this root can't give up its rights to read what is closed")
    said = json.loads(done.stdout)
    assert {one["path"]: one["error_code"] for one in said["failures"]} == {
        str(tmp_path / "scans/closed.tiff"): "unreadable"
    }
    assert (said["done"], said["ignored"], said["exit_code"]) == (3, 1, 3)
    assert "Permission denied" in said["failures"][0]["error"]
    assert codes(run(tmp_path / "scans", tmp_path / "c", retry_failed=True)) == {}  # opened again, all is read
