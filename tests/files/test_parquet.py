"""Parquet files: equal tables are equal bytes, and every damage is noticed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.files import parquet
from her2batch.files.parquet import read_checksummed, read_parquet, write_checksummed, write_parquet
from her2batch.store import schemas


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


def test_every_flipped_bit_of_a_file_with_its_digest_is_noticed(tmp_path: Path) -> None:
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


def test_a_file_without_its_digest_is_read(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y"]})
    write_parquet(table, tmp_path / "a")
    assert read_checksummed(tmp_path / "a").equals(table)


def test_a_table_that_claims_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(pa.table({"a": [1, 2, 3]}), tmp_path / "a")
    monkeypatch.setattr(parquet, "MAX_ROWS", 2)
    with pytest.raises(pa.ArrowInvalid, match="3 rows"):
        read_parquet(tmp_path / "a")


def test_a_table_of_foreign_types_is_refused(tmp_path: Path) -> None:
    field = pa.field("a", pa.int64(), metadata={"ARROW:extension:name": "ray.data.arrow_tensor"})
    write_parquet(pa.table([[1]], schema=pa.schema([field])), tmp_path / "a")
    with pytest.raises(pa.ArrowInvalid, match="types"):
        read_parquet(tmp_path / "a")
