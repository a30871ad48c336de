"""The cores of a cohort's tissue microarrays: `cores.parquet`, one row for each place of the map.

It is made from the slides' tables and the map of the latest ingest that was given one, as labels are.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store.cohort import Cohort

CORES_SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()), ("row", pa.int16()), ("column", pa.int16()), ("case", pa.string()),
        ("status", pa.string()), ("n_pieces", pa.int16()), ("n_tiles", pa.int32()), ("x", pa.int32()),
        ("y", pa.int32()), ("predicted", pa.string()), ("score", pa.float32()),
    ]
)  # fmt: skip
"""status: found · missing (no tissue at its place) · not-scored (too little tissue).  x, y: centre, level-0 px."""


def cores_file(cohort: Cohort) -> Path:
    """Return the path of the table."""
    return cohort.root / "cores.parquet"


def write_cores(cohort: Cohort, rows: list[dict[str, Any]]) -> None:
    """Replace the table."""
    ordered = sorted(rows, key=lambda row: (row["slide_id"], row["row"], row["column"]))
    with atomic_write(cores_file(cohort)) as part:
        write_parquet(pa.Table.from_pylist(ordered, CORES_SCHEMA), part)


def read_cores(cohort: Cohort) -> list[dict[str, Any]]:
    """Return the rows of the table; none where no ingest was given a map. Raises OSError, pa.ArrowInvalid."""
    rows: list[dict[str, Any]] = read_parquet(cores_file(cohort)).to_pylist() if cores_file(cohort).exists() else []
    return rows


def remove_cores(cohort: Cohort, slides: Collection[str], cases: Collection[str]) -> None:
    """Remove the cores of some slides, and those of some cases."""
    rows = read_cores(cohort)
    kept = [row for row in rows if row["slide_id"] not in slides and row["case"] not in cases]
    if len(kept) < len(rows):
        write_cores(cohort, kept)
