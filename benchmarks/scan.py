"""What does one file a slide and table cost whoever reads a whole table, beside the same rows in a few large files?

usage: scan.py COHORT [--slides N ...] [--rounds N]

COHORT: a cohort of as many slides as the largest N (`resume.py` makes one). Reads `slides` (one wide row a slide) and
`tiles` (some rows), by their glob: names and sizes, footers, all rows with pyarrow's dataset, a sum with duckdb; then
all rows of the same table in files of 5,000 slides. From memory: on a disk that was just started, or a share, each
file costs one more wait. The last line of a table is the slope: ms a slide between the smallest and the largest N.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rounds import medians

from her2batch.files.parquet import write_parquet
from her2batch.store.cohort import Cohort

TABLES = {"slides": "bytes", "tiles": "x"}
"""A table and the column that duckdb sums."""

PART = 5000


def seconds(function: Callable[[], object]) -> float:
    """Wall seconds of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def some(folder: Path, slides: int, out: Path) -> Path:
    """A folder with links to the first files of a table."""
    out.mkdir()
    for name in sorted(path.name for path in folder.glob("*.parquet"))[:slides]:
        os.link(folder / name, out / name)
    return out


def compacted(folder: Path, out: Path) -> Path:
    """The same rows in files of 5,000 slides."""
    out.mkdir()
    files = sorted(folder.glob("*.parquet"))
    for start in range(0, len(files), PART):
        table = ds.dataset(files[start : start + PART]).to_table()
        write_parquet(table, out / f"part~{start:08}.parquet")
    return out


def sides(folder: Path, large: Path, column: str) -> dict[str, Callable[[], float]]:
    """What is timed."""
    query = "select count(*), sum({}) from '{}/*.parquet'"
    return {
        "stat": lambda: seconds(lambda: [one.stat() for one in os.scandir(folder)]),
        "footers": lambda: seconds(lambda: [pq.read_metadata(path) for path in sorted(folder.iterdir())]),
        "dataset": lambda: seconds(lambda: ds.dataset(folder).to_table()),
        "duckdb": lambda: seconds(lambda: duckdb.sql(query.format(column, folder)).fetchall()),
        "dataset, large files": lambda: seconds(lambda: ds.dataset(large).to_table()),
        "duckdb, large files": lambda: seconds(lambda: duckdb.sql(query.format(column, large)).fetchall()),
    }


def main() -> None:
    """Print one row a table and size, and the slope."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--slides", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for name, column in TABLES.items():
        found: dict[int, dict[str, float]] = {}
        for slides in sorted(args.slides):
            with tempfile.TemporaryDirectory(dir=args.cohort) as scratch:
                folder = some(Cohort(args.cohort).table(name, "x").parent, slides, Path(scratch) / "small")
                timed = sides(folder, compacted(folder, Path(scratch) / "large"), column)
                found[slides] = medians(timed, args.rounds)
            print(
                f"{name:7} {slides:6} slides: " + " · ".join(f"{side} {s:.3f} s" for side, s in found[slides].items())
            )
        low, high = min(found), max(found)
        slopes = {side: (found[high][side] - found[low][side]) / (high - low) * 1e3 for side in found[low]}
        print(f"{name:7} {'':6} ms a slide: " + " · ".join(f"{side} {ms:.4f}" for side, ms in slopes.items()))


if __name__ == "__main__":
    main()
