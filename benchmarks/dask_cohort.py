"""How much memory does an aggregation over a whole cohort need, with dask and with a plain loop?

usage: dask_cohort.py SCRATCH [--slides N] [--tiles N]

Writes the slides and tiles tables of N slides through the store's own schemas, with random values. Then three processes
compute the same figures, the mean and the 95th percentile of `dab` for every slide with at least half of the tile in
tissue, and print their peak memory (VmHWM, import included), CPU seconds and a digest of the result:

- dask: `cohort.dask("tiles")`, one partition in memory for each of two threads;
- table: all rows in one pandas DataFrame, then the same expression;
- loop: one slide after the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort

PROGRAM = """
import hashlib, json, sys, time
import numpy as np
import pandas as pd
import her2batch as h2

def figures(frame):
    kept = frame[frame.tissue >= 0.5]
    values = {"mean": [kept.dab.mean()], "p95": [np.percentile(kept.dab, 95)]}
    return pd.DataFrame(values, index=[kept.slide_id.iloc[0]])

def by_slide(frame):
    return pd.concat([figures(part) for _, part in frame.groupby("slide_id", sort=True)])

method, root = sys.argv[1:]
cohort = h2.open_cohort(root)
columns = ["slide_id", "tissue", "dab"]
if method == "dask":
    import dask
    with dask.config.set(scheduler="threads", num_workers=2):
        meta = pd.DataFrame({"mean": pd.Series(dtype="float64"), "p95": pd.Series(dtype="float64")})
        result = cohort.dask("tiles", columns).map_partitions(by_slide, meta=meta).compute()
elif method == "table":
    result = by_slide(cohort.table("tiles", columns).to_pandas())
else:
    tables = (cohort.dataset("tiles", [slide_id]).to_table(columns=columns) for slide_id in cohort)
    result = pd.concat([figures(table.to_pandas()) for table in tables])
result = result.sort_index().astype("float64")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
digest = hashlib.sha256(result.round(5).to_csv().encode()).hexdigest()[:12]
facts = {"MB": int(peak.split()[1]) / 1e3, "cpu_s": time.process_time(), "slides": len(result), "digest": digest}
print(json.dumps(facts))
"""


def write_cohort(root: Path, slides: int, tiles: int) -> None:
    """Write the tables of a cohort whose values are random."""
    cohort = Cohort(root)
    cohort.create(Plan())
    rng = np.random.default_rng(0)
    for k in range(slides):
        slide_id = f"S{k:05}"
        values = {name: rng.random(tiles, np.float32) for name in ("tissue", "dab", "blur")}
        places = {name: np.arange(tiles, dtype=np.int32) for name in ("tile", "x", "y", "size")}
        columns = {"slide_id": [slide_id] * tiles, **places, **values}
        row = {"slide_id": slide_id, "status": "done", "n_tiles": tiles, "flags": [], "files": [], "path": slide_id}
        cohort.add_tables(row, {"tiles": pa.table(columns, schemas.table_schema("tiles"))})


def main() -> None:
    """Write the cohort once, then measure each method in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--tiles", type=int, default=2000)
    args = parser.parse_args()
    root = args.scratch / f"cohort-{args.slides}-{args.tiles}"
    if not root.exists():
        write_cohort(root, args.slides, args.tiles)
    for method in ("dask", "table", "loop"):
        command = [sys.executable, "-c", PROGRAM, method, str(root)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(f"{method:6}", json.loads(run.stdout))


if __name__ == "__main__":
    main()
