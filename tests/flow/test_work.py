"""One slide's work: whatever happens to it becomes its row."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from her2batch.flow import work
from her2batch.flow.census import Todo
from her2batch.flow.stages import Context
from her2batch.flow.work import Worker
from her2batch.models.encoders import dim_of
from her2batch.settings import Plan
from her2batch.slides.readers import READERS
from her2batch.slides.tiffslide import TiffSlide
from her2batch.tables.audit import verify
from her2batch.tables.store import Cohort
from tests.flow.test_pool import todos


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    return Worker(cohort, Context(Plan(), dims={"stain": dim_of("stain")}))


@pytest.fixture
def todo(tmp_path: Path, worker: Worker, make_slide: Callable) -> Todo:
    make_slide(brown=0.3)
    return todos(tmp_path / "scans", worker)[0]


def raising(error: BaseException) -> type[TiffSlide]:
    class Broken(TiffSlide):
        def _pixels(self, box: object, level: int) -> None:
            raise error

    return Broken


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out-of-memory"),
        (OSError(28, "No space left on device"), "store-write"),
        (KeyError("ours"), "internal"),
    ],
)
def test_what_stops_a_slide_is_its_code(
    worker: Worker, todo: Todo, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    monkeypatch.setitem(READERS, "tiff", raising(error))
    monkeypatch.setattr(work, "open_slide", lambda path, _: READERS["tiff"](path))
    row = worker.run(todo).row
    assert (row["status"], row["error_code"]) == ("failed", code)
    assert str(todo.source.path) in row["error"]
    assert worker.cohort.rows()["a"]["error_code"] == code
    assert worker.cohort.log.exists() == (code == "internal")


def test_a_file_that_changes_while_it_is_read_is_unstable(
    worker: Worker, todo: Todo, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = worker.run(todo).row
    assert first["status"] == "done"

    class Changing(TiffSlide):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            os.utime(path)

    monkeypatch.setattr(work, "open_slide", lambda path, _: Changing(path))
    row = worker.run(todo).row
    assert row["error_code"] == "unstable"
    assert worker.cohort.read("tiles", "a").num_rows == first["n_tiles"]  # the old result stays
    assert list(verify(worker.cohort)) == []


def test_a_file_that_is_gone_says_so(worker: Worker, todo: Todo) -> None:
    todo.source.path.unlink()
    assert worker.run(todo).row["error_code"] == "gone"


def test_decode_threads_change_no_byte(tmp_path: Path, worker: Worker, todo: Todo) -> None:
    worker.run(todo)
    other = Cohort(tmp_path / "threads")
    other.create(Plan())
    Worker(other, worker.context, threads=3).run(todo)
    for name in ("tiles", "membrane", "embeddings/stain"):
        assert worker.cohort.table(name, "a").read_bytes() == other.table(name, "a").read_bytes()
