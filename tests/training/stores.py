"""Small cohorts of embeddings for tests, in the format of an ingest."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from her2batch.files.parquet import write_parquet
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import embeddings_table, table_schema

DIM = 16


def cohort(root: Path, bags: dict[str, np.ndarray]) -> Cohort:
    """A cohort of slides with these embeddings, (N, D) each, of encoder `stain`."""
    made = Cohort(root)
    made.create(Plan())
    blank = dict.fromkeys(table_schema("slides").names)
    for slide_id, values in bags.items():
        put(made, slide_id, values)
        row = {**blank, "slide_id": slide_id, "status": "done", "n_tiles": len(values), "flags": [], "files": []}
        write_row(made, row)
    return made


def put(made: Cohort, slide_id: str, values: np.ndarray) -> Path:
    """Write, or replace, one slide's embeddings."""
    path = made.table("embeddings/stain", slide_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16).reshape(-1)), values.shape[1])
    write_parquet(embeddings_table(slide_id, pa.array(np.arange(len(values), dtype=np.int32)), flat), path)
    return path


def planted(n: int, seed: int = 0, strength: float = 2.5) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """n bags of 20 to 40 instances, the first three of which lean to the bag's class, one of three."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    bags = {}
    for k, label in enumerate(labels):
        values = rng.normal(size=(int(rng.integers(20, 40)), DIM)).astype(np.float32)
        values[:3, label] += 2 * strength
        bags[f"s{k:03}"] = values
    return bags, labels
