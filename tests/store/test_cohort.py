"""Tests of the cohort folder: commits are complete or absent, one process writes, all damage is found."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import StoreError
from her2batch.files.parquet import write_parquet
from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    return made


def tiles(slide_id: str, n: int = 3) -> pa.Table:
    numbers = np.arange(n, dtype=np.int32)
    columns = {"slide_id": [slide_id] * n, "tile": numbers, "x": numbers * 448, "y": numbers, "size": numbers + 448}
    columns |= {name: numbers.astype(np.float32) for name in ("tissue", "dab", "blur")}
    columns["piece"] = np.zeros(n, np.int16)
    return pa.table(columns, schemas.table_schema("tiles"))


def row(slide_id: str, **more: object) -> dict:
    return {"slide_id": slide_id, "status": "done", "n_tiles": 3, "tissue_mm2": 1.0, "bytes": 10, "sha256": "a", **more}


def commit(cohort: Cohort, slide_id: str, old: dict | None = None, n: int = 3) -> dict:
    draft = cohort.draft(slide_id)
    draft.write("tiles", tiles(slide_id, n))
    draft.thumbnail().write_bytes(b"picture")
    level = draft.pyramid() / "0"
    level.mkdir(parents=True)
    (level / "zarr.json").write_text("{}")
    draft.commit(row(slide_id, n_tiles=n), old)
    return cohort.rows()[slide_id]


def test_the_row_of_a_committed_slide_names_every_file(cohort: Cohort) -> None:
    committed = commit(cohort, "a")
    assert [file["path"] for file in committed["files"]] == [
        "pyramids/a.zarr/0/zarr.json", "tables/tiles/a.parquet", "thumbnails/a.jpg",
    ]  # fmt: skip
    assert cohort.files_present(committed)
    assert list(verify_cohort(cohort)) == []
    assert not list(cohort.root.glob(".draft-*"))


def test_probes_are_read_back_until_their_cache_is_damaged(cohort: Cohort) -> None:
    look = {"path": "/s/a.dcm", "rules": 1, "bytes": 9, "mtime_ns": 5, "kind": "dicom", "belongs": ["/s/1.2.3"]}
    cohort.write_probes([look])
    assert cohort.read_probes() == [look]
    cohort.probe_cache_file.write_bytes(cohort.probe_cache_file.read_bytes()[:-1])
    assert cohort.read_probes() == []


def test_a_second_commit_replaces_all_files_of_the_first(cohort: Cohort) -> None:
    first = commit(cohort, "a")
    extra = cohort.root / "pyramids/a.zarr/0/old-chunk"
    extra.write_bytes(b"x")
    commit(cohort, "a", old=first, n=5)
    assert cohort.read("tiles", "a").num_rows == 5
    assert not extra.exists()
    assert list(verify_cohort(cohort)) == []


def test_a_worker_killed_while_it_writes_the_row_leaves_nothing_behind_a_second_attempt(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("her2batch.store.cohort.write_checksummed", lambda _, part: (part.touch(), os._exit(9)))
        commit(cohort, "a")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not list((cohort.root / "tables").rglob(".*.part"))
    draft = cohort.existing_draft("a")  # the files are in place, and the last step is repeated
    draft.write("tiles", tiles("a"))
    assert [file["path"] for file in draft.commit(row("a"), None)["files"]] == ["tables/tiles/a.parquet"]
    assert not [*cohort.root.glob(".draft-*"), *cohort.root.rglob(".*.part")]


def test_committing_a_failure_deletes_the_old_files(cohort: Cohort) -> None:
    first = commit(cohort, "a")
    cohort.draft("a").commit(row("a", status="failed", error_code="truncated"), first)
    assert [path for path in cohort.root.rglob("*") if path.is_file() and path.suffix in (".jpg", ".json")] == []
    assert cohort.rows()["a"]["files"] == []
    assert list(verify_cohort(cohort)) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "swap"])
def test_verify_finds_every_kind_of_damage(cohort: Cohort, damage: str) -> None:
    commit(cohort, "a")
    commit(cohort, "b", n=4)
    path = cohort.table("tiles", "a")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
        case "flip":
            path.write_bytes(data)
        case "delete":
            path.unlink()
        case "swap":
            path.write_bytes(cohort.table("tiles", "b").read_bytes())
    assert [problem.slide_id for problem in verify_cohort(cohort)] == ["a"]


def test_verify_names_files_without_a_row(cohort: Cohort) -> None:
    commit(cohort, "a")
    write_parquet(tiles("x"), cohort.table("tiles", "x"))
    assert [problem.path.name for problem in verify_cohort(cohort)] == ["x.parquet"]


def test_files_present_compares_sizes_only(cohort: Cohort) -> None:
    committed = commit(cohort, "a")
    cohort.thumbnail("a").write_bytes(b"longer than before")
    assert not cohort.files_present(committed)


def test_only_one_process_writes_at_a_time(cohort: Cohort) -> None:
    code = (
        "import sys; from pathlib import Path; from her2batch.store.cohort import Cohort\n"
        "with Cohort(Path(sys.argv[1])).lock(): pass"
    )
    command = [sys.executable, "-c", code, str(cohort.root)]
    with cohort.lock():
        refused = subprocess.run(command, capture_output=True, text=True)
    assert f"pid {os.getpid()}" in refused.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_killed_process_leaves_no_lock(cohort: Cohort) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from her2batch.store.cohort import Cohort\n"
        "with Cohort(Path(sys.argv[1])).lock(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(cohort.root)])
    assert killed.returncode == -9
    with cohort.lock():
        pass


WORKER = """
import sys
import time
from pathlib import Path
from her2batch.store.cohort import Cohort
cohort = Cohort(Path(sys.argv[1]), sys.argv[2])
with cohort.working():
    print("at work", flush=True)
    time.sleep(0.5)
    (cohort.root / "ended").touch()
"""


def test_a_run_waits_for_workers_of_a_killed_run(cohort: Cohort) -> None:
    with cohort.lock() as held:  # and then the run dies, its worker does not
        command = [sys.executable, "-c", WORKER, str(cohort.root), held.holder]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
    with cohort.lock():
        assert (cohort.root / "ended").exists()
    worker.communicate()


def test_a_worker_of_an_ended_run_writes_nothing(cohort: Cohort) -> None:
    with cohort.lock() as first:
        pass
    time.sleep(1)
    with cohort.lock() as second:
        with second.working():
            pass
        with pytest.raises(StoreError, match="taken over by host"), first.working():
            raise AssertionError


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(StoreError, match="is not a cohort"):
        Cohort(tmp_path).create(Plan())


def test_another_format_is_refused(cohort: Cohort) -> None:
    cohort.settings.write_text("format = 99\n")
    with pytest.raises(StoreError, match="format 99"):
        cohort.check()


def test_status_reports_a_file_without_an_outcome(cohort: Cohort) -> None:
    entry = {"path": "/s/a.svs", "bytes": 1, "mtime_ns": 1, "n_files": 1, "outcome": "slide", "slide_id": "a"}
    other = {**entry, "path": "/s/b.txt", "outcome": "ignored", "slide_id": None, "reason": "not a slide"}
    cohort.write_intake([entry, other])
    assert not cohort_status(cohort).adds_up
    commit(cohort, "a")
    found = cohort_status(cohort)
    assert found.adds_up
    assert (found.seen, found.done, found.ignored) == (2, 1, 1)
