"""Files: whole or not at all, and equal tables are equal bytes."""

import errno
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import StoreError
from her2batch.files.atomic import atomic_write, disk_errors, make_folder
from her2batch.files.locks import is_locked, lock_folder
from her2batch.files.parquet import read_checksummed, read_parquet, write_checksummed, write_parquet
from her2batch.store import schemas


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_write(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_equal_tables_are_equal_bytes_and_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float16)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 64)
    table = schemas.embeddings_table("a", pa.array(np.arange(500, dtype=np.int32)), flat)
    for name in "ab":
        write_parquet(table, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_parquet(tmp_path / "a").equals(table)
    data = bytearray((tmp_path / "a").read_bytes())
    data[20_000] ^= 4
    (tmp_path / "a").write_bytes(data)
    with pytest.raises((OSError, pa.ArrowInvalid)):
        read_parquet(tmp_path / "a")


def test_every_flipped_bit_of_a_sealed_file_is_noticed(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y"], "b": [1, None]})
    write_checksummed(table, tmp_path / "a")
    assert read_checksummed(tmp_path / "a").equals(table, check_metadata=True)
    whole_file = (tmp_path / "a").read_bytes()
    for bit in range(len(whole_file) * 8):
        data = bytearray(whole_file)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a").write_bytes(data)
        with pytest.raises((OSError, pa.ArrowException)):
            read_checksummed(tmp_path / "a")


def test_a_file_of_an_earlier_version_has_no_seal_and_is_read(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y"]})
    write_parquet(table, tmp_path / "a")
    assert read_checksummed(tmp_path / "a").equals(table)


def test_whoever_asks_whether_a_folder_is_held_keeps_nobody_out(tmp_path: Path) -> None:
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            is_locked(tmp_path)

    with lock_folder(tmp_path):
        pass
    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    try:
        for _ in range(30):
            with lock_folder(tmp_path):
                pass
    finally:
        ended.set()
        for one in asking:
            one.join()


def test_what_the_disk_refuses_is_said_with_its_place_and_what_is_free(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=rf"{tmp_path}: can't be written to \(No space left .*GB are free"),
        disk_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(PermissionError), disk_errors(tmp_path):  # of a file elsewhere: not for the store to answer
        raise PermissionError(errno.EACCES, "no", "/scans/a.svs")


def test_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b" / "c")
        assert (tmp_path / "a" / "b" / "c").is_dir()
