"""Tests of the row cache: whatever happens to it, rows are those in the files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from her2batch.files.parquet import write_parquet
from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort
from her2batch.store.row_cache import SETTLED_NS, cached_row_schema, load_cache, save_cache

SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
TABLE = pa.table({"path": ["a", "b"], "bytes": [1, 2]}, SCHEMA)


@contextmanager
def fresh_cohort() -> Iterator[Cohort]:
    with TemporaryDirectory() as folder:
        cohort = Cohort(Path(folder) / "c")
        cohort.create(Plan())
        cohort.slides.mkdir()
        yield cohort


def put(cohort: Cohort, slide_id: str, n_tiles: int, seconds: int) -> Path:
    """A row as it would lie there had it been written at that second."""
    row = {"slide_id": slide_id, "status": "done", "n_tiles": n_tiles, "files": [{"path": slide_id, "bytes": 1}]}
    path = cohort.table("slides", slide_id)
    write_parquet(pa.Table.from_pylist([row], schemas.table_schema("slides")), path)
    os.utime(path, ns=(0, seconds * 10**9))
    return path


def spoil(path: Path) -> None:
    """Other bytes, the same size, the same time of change."""
    facts = path.stat()
    path.write_bytes(bytes(facts.st_size))
    os.utime(path, ns=(0, facts.st_mtime_ns))


def test_a_cache_is_read_back_unchanged(tmp_path: Path) -> None:
    save_cache(tmp_path / "x.memo", TABLE)
    assert load_cache(tmp_path / "x.memo", SCHEMA).equals(TABLE)


@given(st.data())
def test_a_damaged_cache_counts_as_empty(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.memo"
        save_cache(path, TABLE)
        good = path.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        flip = data.draw(st.integers(1, 255))
        flipped = good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]
        path.write_bytes(data.draw(st.sampled_from([flipped, good[:at], good + b"x", bytes(len(good))])))
        assert load_cache(path, SCHEMA).num_rows == 0


def test_a_cache_with_other_columns_counts_as_empty(tmp_path: Path) -> None:
    save_cache(tmp_path / "x.memo", TABLE)
    assert load_cache(tmp_path / "x.memo", schemas.table_schema("looks")).num_rows == 0
    assert load_cache(tmp_path / "none.memo", SCHEMA).equals(SCHEMA.empty_table())


def test_a_write_error_of_a_cache_is_ignored(tmp_path: Path) -> None:
    save_cache(tmp_path / "no such folder" / "x.memo", TABLE)
    assert list(tmp_path.iterdir()) == []


STEPS = st.tuples(
    st.sampled_from(["write", "write", "delete", "cut", "remember", "lose the memo", "spoil the memo"]),
    st.sampled_from("abcd"),
    st.integers(1, 9),
    st.integers(0, 3),  # seconds since the last step: none, and two rows share a tick of the clock
)


@settings(max_examples=40, deadline=None)
@example([("write", "a", 1, 0), ("remember", "a", 1, 0), ("write", "a", 2, 0)])
@given(st.lists(STEPS, max_size=14))
def test_rows_are_the_same_with_and_without_a_cache(steps: list[tuple[str, str, int, int]]) -> None:
    clock = 1000
    with fresh_cohort() as cohort:
        for what, slide_id, number, seconds in steps:
            clock += seconds
            path = cohort.table("slides", slide_id)
            match what:
                case "write":
                    put(cohort, slide_id, number, clock)
                case "delete":
                    path.unlink(missing_ok=True)
                case "cut" if path.exists():
                    path.write_bytes(path.read_bytes()[: -4 * number])
                    os.utime(path, ns=(0, clock * 10**9))
                case "remember":
                    cohort.update_row_cache()
                case "lose the memo":
                    cohort.row_cache_file.unlink(missing_ok=True)
                case "spoil the memo" if cohort.row_cache_file.exists():
                    cohort.row_cache_file.write_bytes(cohort.row_cache_file.read_bytes()[:-number])
            assert cohort.rows() == cohort.reread_rows()


def test_a_cached_row_is_not_opened() -> None:
    with fresh_cohort() as cohort:
        paths = [put(cohort, name, 3, k * 10) for k, name in enumerate("abc")]
        before = cohort.rows()
        cohort.update_row_cache()
        for path in paths[:2]:
            spoil(path)
        assert cohort.rows() == before
        assert list(cohort.reread_rows()) == ["c"]


def test_a_row_of_the_last_two_seconds_is_not_cached() -> None:
    with fresh_cohort() as cohort:
        put(cohort, "old", 3, 0)
        put(cohort, "new", 3, SETTLED_NS // 10**9 + 1)
        cohort.update_row_cache()
        assert load_cache(cohort.row_cache_file, cached_row_schema())["slide_id"].to_pylist() == ["old"]


def test_reading_writes_nothing() -> None:
    with fresh_cohort() as cohort:
        put(cohort, "a", 3, 0)
        put(cohort, "b", 3, 10)
        cohort.update_row_cache()
        put(cohort, "a", 4, 20)
        before = {path: path.stat().st_mtime_ns for path in cohort.root.rglob("*")}
        assert cohort.rows()["a"]["n_tiles"] == 4
        assert {path: path.stat().st_mtime_ns for path in cohort.root.rglob("*")} == before


@pytest.mark.parametrize("column", ["blur", "files"])
def test_a_missing_column_of_an_old_row_is_null(column: str) -> None:
    with fresh_cohort() as cohort:
        path = put(cohort, "a", 3, 0)
        table = cohort.read("slides", "a")
        write_parquet(table.drop_columns([column]), path)
        assert cohort.rows() == {"a": {**table.to_pylist()[0], column: None}}
