"""How long does it take to read a whole table, one file per slide, compared with the same rows in a few large files?

usage: scan.py COHORT [--slides N ...] [--rounds N]

COHORT: a cohort of as many slides as the largest N (`resume.py` makes one). Reads `slides` (one wide row per slide)
and `tiles` (several rows) by their glob: names and sizes, footers, all rows with pyarrow's dataset, a sum with duckdb;
then all rows of the same table in files of 5,000 slides. Files are in the page cache: on a cold disk or a network
folder, each file costs one more access. The last line of a table is the slope, ms per slide between the smallest and
the largest N.
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
from rounds import median_seconds

from her2batch.files.parquet import write_parquet
from her2batch.store.cohort import Cohort

TABLES = {"slides": "bytes", "tiles": "x"}
"""Table → column that duckdb sums."""

SLIDES_PER_FILE = 5000


def time_call(function: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def link_first_files(folder: Path, slides: int, out: Path) -> Path:
    """Make a folder with links to the first files of a table."""
    out.mkdir()
    for name in sorted(path.name for path in folder.glob("*.parquet"))[:slides]:
        os.link(folder / name, out / name)
    return out


def compact(folder: Path, out: Path) -> Path:
    """Write the rows of a folder to files of 5,000 slides."""
    out.mkdir()
    files = sorted(folder.glob("*.parquet"))
    for start in range(0, len(files), SLIDES_PER_FILE):
        table = ds.dataset(files[start : start + SLIDES_PER_FILE]).to_table()
        write_parquet(table, out / f"part~{start:08}.parquet")
    return out


def timed_calls(folder: Path, large: Path, column: str) -> dict[str, Callable[[], float]]:
    """Return the sides to measure."""
    query = "select count(*), sum({}) from '{}/*.parquet'"
    return {
        "stat": lambda: time_call(lambda: [one.stat() for one in os.scandir(folder)]),
        "footers": lambda: time_call(lambda: [pq.read_metadata(path) for path in sorted(folder.iterdir())]),
        "dataset": lambda: time_call(lambda: ds.dataset(folder).to_table()),
        "duckdb": lambda: time_call(lambda: duckdb.sql(query.format(column, folder)).fetchall()),
        "dataset, large files": lambda: time_call(lambda: ds.dataset(large).to_table()),
        "duckdb, large files": lambda: time_call(lambda: duckdb.sql(query.format(column, large)).fetchall()),
    }


def main() -> None:
    """Print one row for each table and size, and the slope."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--slides", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for name, column in TABLES.items():
        results: dict[int, dict[str, float]] = {}
        for slides in sorted(args.slides):
            with tempfile.TemporaryDirectory(dir=args.cohort) as scratch:
                folder = link_first_files(Cohort(args.cohort).table(name, "x").parent, slides, Path(scratch) / "small")
                calls = timed_calls(folder, compact(folder, Path(scratch) / "large"), column)
                results[slides] = median_seconds(calls, args.rounds)
            print(
                f"{name:7} {slides:6} slides: " + " · ".join(f"{side} {s:.3f} s" for side, s in results[slides].items())
            )
        low, high = min(results), max(results)
        slopes = {side: (results[high][side] - results[low][side]) / (high - low) * 1e3 for side in results[low]}
        print(f"{name:7} {'':6} ms a slide: " + " · ".join(f"{side} {ms:.4f}" for side, ms in slopes.items()))


if __name__ == "__main__":
    main()
