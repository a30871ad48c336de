"""Files: whole or not at all, and equal tables are equal bytes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.tables import schemas
from her2batch.tables.files import read_parquet, whole, write_parquet


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write_half() -> None:
        with whole(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_equal_tables_are_equal_bytes_and_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float16)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 64)
    table = schemas.embeddings("a", pa.array(np.arange(500, dtype=np.int32)), flat)
    for name in "ab":
        write_parquet(table, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_parquet(tmp_path / "a").equals(table)
    data = bytearray((tmp_path / "a").read_bytes())
    data[20_000] ^= 4
    (tmp_path / "a").write_bytes(data)
    with pytest.raises((OSError, pa.ArrowInvalid)):
        read_parquet(tmp_path / "a")
