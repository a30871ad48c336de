"""Cohorts with generated tables, without slide files."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort
from her2batch.vision.tile_grid import plan_tiles

BUNDLE = "b0b0b0b0b0b0"

SIZE = (9_000, 7_000)


def make_stored_cohort(
    root: Path, *slide_ids: str, mpp: float = 0.25, dim: int = 4, size: tuple[int, int] = SIZE
) -> Cohort:
    """Make a cohort of slides with a disc of tissue: tiles, membrane, embeddings of `stain`, attention and patches."""
    cohort = Cohort(root)
    cohort.create(Plan())
    for k, slide_id in enumerate(slide_ids):
        add_slide(cohort, slide_id, k, mpp, dim, size)
    return cohort


def add_slide(cohort: Cohort, slide_id: str, seed: int, mpp: float, dim: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    grid = disc_tiles(plan_tiles(*size, mpp, 0.5, 224), size)
    n = len(grid)
    ids, numbers = pa.array([slide_id] * n), pa.array(np.arange(n, dtype=np.int32))
    draft = cohort.draft(slide_id)
    x, y, edge = grid.T
    figures = [rng.random(n).astype(np.float32) for _ in range(10)]
    pieces = np.zeros(n, np.int16)
    draft.write("tiles", pa.table([ids, numbers, x, y, edge, *figures[:3], pieces], schemas.table_schema("tiles")))
    draft.write("membrane", pa.table([ids, numbers, *figures[3:]], schemas.table_schema("membrane")))
    vectors = pa.array(rng.normal(size=n * dim).astype(np.float16))
    draft.write(
        "embeddings/stain", schemas.embeddings_table(slide_id, numbers, pa.FixedSizeListArray.from_arrays(vectors, dim))
    )
    shares = rng.random(n).astype(np.float32)
    head = [pa.array([text] * n) for text in ("her2-3way", "clam-sb", "stain")]
    attention = pa.table([ids, *head, numbers, shares / max(shares.sum(), 1)], schemas.table_schema("attention"))
    draft.write(f"attention/{BUNDLE}", attention)
    few = disc_tiles(plan_tiles(*size, mpp, 3.24, 224), size)
    p = rng.dirichlet(np.ones(4), len(few)).astype(np.float32)
    facts = [pa.array([text] * len(few)) for text in (slide_id, "low")]
    draft.write(f"patches/{BUNDLE}", pa.table([*facts, *few.T, *p.T], schemas.table_schema("patches")))
    row = {
        "slide_id": slide_id, "patient_id": f"P{seed}", "stain": "her2", "path": f"/scans/secret/{slide_id}.svs",
        "sha256": f"{seed:064d}", "bytes": 10, "format": "aperio", "reader": "tiff", "width": size[0],
        "height": size[1], "level_downsamples": [1.0, 4.0], "mpp": mpp, "mpp_source": "file", "objective": 40.0,
        "tissue_mm2": 1.5, "n_tiles": n, "flags": ["blur", "pen"], "status": "done", "plan_id": Plan().id,
    }  # fmt: skip
    draft.commit(row, None)


def add_failed(cohort: Cohort, slide_id: str) -> None:
    row = {"slide_id": slide_id, "status": "failed", "error_code": "unreadable", "error": "=cmd() is no slide"}
    cohort.draft(slide_id).commit(row, None)


def disc_tiles(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the tiles of a grid whose centre is in the disc inscribed in a slide."""
    middle = grid[:, :2] + grid[:, 2:] / 2
    return grid[(((middle / size) - 0.5) ** 2).sum(axis=1) < 0.25]
