"""Very large slides and empty ones are handled, in little memory.

What is too long for every day was run once by hand; docs/reliability.md has the figures.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import OBJECT_STORE_BYTES, RaySession
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from her2batch.vision import tile_grid
from tests.conftest import MakeSlide, tissue_image

MPP = 0.25


def test_empty_glass_is_a_slide_without_tiles(tmp_path: Path, make_slide: MakeSlide) -> None:
    rgb = np.random.default_rng(0).normal(240, 1, (900, 1200, 3)).clip(0, 255).astype(np.uint8)
    path = make_slide("glass.tiff")
    tifffile.imwrite(
        path, rgb, tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(1e4 / MPP,) * 2,
        resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    found = ingest(IngestRequest(path.parent, tmp_path / "c"), Plan(), Resources(workers=0))
    assert [(row["status"], row["n_tiles"], "no-tissue" in row["flags"]) for row in found.slides] == [("done", 0, True)]
    cohort = Cohort(tmp_path / "c")
    assert {name: cohort.read(name, "glass").num_rows for name in cohort.table_names() if name != "slides"} == {
        "cells": 0, "embeddings/stain": 0, "membrane": 0, "pieces": 0, "predictions/membrane": 0, "tiles": 0,
        "predictions/cells": 1,  # that it cannot be scored, and why
    }  # fmt: skip


def test_million_tiles_are_planned_in_little_memory() -> None:
    """A slide of 448,000 px, four times as wide as any: its grid, and the blocks in which it is read."""
    before = psutil.Process().memory_info().rss
    tiles = tile_grid.plan_tiles(448_000, 448_000, MPP, 0.5, 224)
    assert len(tiles) == 1_000_000
    blocks = tile_grid.plan_blocks(tiles, (1.0, 1.0), (256, 256), (448_000, 448_000))
    assert sum(len(one.tiles) for one in blocks) == 1_000_000
    assert psutil.Process().memory_info().rss - before < 1e9


# -- Ray's object store, and memory that is not there ----------------------------------------------------------


def test_object_store_is_limited_to_200_mb(ray_session: RaySession) -> None:
    assert OBJECT_STORE_BYTES == 200_000_000
    assert ray_session.ray.cluster_resources()["object_store_memory"] <= OBJECT_STORE_BYTES


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
scans, out, more = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
ingest(IngestRequest(scans / "warm", out / "warm"), Plan(), Resources(workers=0))  # all that is ever loaded is loaded
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))
found = ingest(IngestRequest(scans / "given", out / "c"), Plan(), Resources(workers=0))
print(*(f"{row['slide_id']}={row['error_code']}" for row in found.slides))
"""


@pytest.mark.slow
def test_slide_without_memory_fails_alone_as_out_of_memory(tmp_path: Path, make_slide: MakeSlide) -> None:
    make_slide("warm/w.tiff")
    make_slide("given/small.tiff", seed=1)
    big = tmp_path / "scans" / "given" / "big.tiff"
    rgb = np.tile(tissue_image(1400, 1200), (6, 6, 1))
    tifffile.imwrite(big, rgb, photometric="rgb", compression="zlib", rowsperstrip=7200, metadata=None,
                     resolution=(1e4 / MPP,) * 2, resolutionunit="CENTIMETER")  # fmt: skip
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "scans"), str(tmp_path), str(120_000_000)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.stdout.split() == ["big=out-of-memory", "small=None"], run.stderr[-2000:]
