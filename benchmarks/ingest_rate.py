"""How fast is a whole ingest, compared with the decode of the tissue and the models alone, on all cores?

usage: ingest_rate.py SLIDES [--workers N] [--rounds N] [--plot SVG]

Ours is the wall time of the ingest, from listing the folder to the last commit: hashing, tissue, pyramid, decode,
stain encoder, membrane rule, tables, fsync. The comparisons use as many processes and the same tiles:

- Ray: start and stop of an ingest's session and actors
- decode: every JPEG chunk under a tile once, full size, libjpeg-turbo only (see tiles.py)
- model: stain encoder and rule on tiles in memory

The lower bound is the larger of decode and model when each has its own hardware (GPUs for the models). On CPUs alone
both use the same cores, and the bound is their sum. Both ratios are shown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from ray_start import time_ray
from rounds import draw_bars, median_seconds, run_on_cores, warm_processes
from tiles import time_decode, tissue_tiles

from her2batch.models.membrane_rule import apply_rule
from her2batch.pipeline.cost_model import available_cores
from her2batch.pipeline.tile_reader import plan_reads, read_tiles
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.slides.discover import discover_slides
from her2batch.slides.readers import open_slide
from her2batch.vision.membrane import MEMBRANE_COLUMNS, measure_tiles
from her2batch.vision.stain import Stains
from her2batch.vision.tile_grid import TileGrid

SAMPLE_TILES = 128
"""Tiles per slide and worker on which the models are measured."""


def time_models(path: Path, tiles: np.ndarray) -> float:
    """Return the seconds of the stain encoder and the rule, measured on a sample and scaled to all tiles."""
    sample = tiles[np.unique(np.linspace(0, len(tiles) - 1, SAMPLE_TILES).astype(int))]
    with open_slide(path) as slide:
        plan = plan_reads(slide, TileGrid(Plan().mpp, Plan().tile, sample))
        batches = [batch.pixels for batch in read_tiles(slide, plan, 0, "auto")]
    started = time.perf_counter()
    features = np.concatenate(
        [measure_tiles(one, Plan().mpp, Stains((240.0, 240.0, 240.0), nuclei=0.2)) for one in batches]
    )
    apply_rule({name: features[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)})
    return (time.perf_counter() - started) * len(tiles) / len(sample)


def time_ingest(slides: Path, workers: int) -> float:
    """Return the wall seconds of one ingest into a new cohort."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        summary = ingest(IngestRequest(slides, Path(folder) / "c"), Plan(), Resources(workers=workers))
        assert summary.failed == 0, summary.failures
        return time.perf_counter() - started


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    work = [(source.path, tissue_tiles(source.path)) for source in discover_slides(args.slides)[0]]
    total = sum(len(tiles) for _, tiles in work)
    parts = [(path, part) for path, tiles in work for part in np.array_split(tiles, args.workers)]
    with warm_processes(args.workers) as pool:

        def on_all(function: Callable[..., float]) -> float:
            return sum(
                run_on_cores(pool, function, parts[k : k + args.workers]) for k in range(0, len(parts), args.workers)
            )

        seconds = median_seconds(
            {
                "ingest": lambda: time_ingest(args.slides, args.workers),
                "Ray alone": lambda: time_ray(args.workers),
                "decode alone": lambda: on_all(time_decode),
                "model alone": lambda: on_all(time_models),
            },
            args.rounds,
        )
    wall, ray, decode, alone = seconds.values()
    ours, larger, both = wall - ray, max(decode, alone), decode + alone
    print(
        f"{len(work)} slides, {total} tiles, {args.workers} workers: ingest {wall:.1f} s, {total / wall:,.0f} tiles/s; "
        f"without Ray's {ray:.1f} s {ours:.1f} s, {total / ours:,.0f} tiles/s · decode alone {decode:.1f} s · "
        f"model alone {alone:.1f} s · {ours / larger:.2f} × the larger, {ours / both:.2f} × their sum"
    )
    if args.plot:
        draw_bars(
            args.plot, f"{len(work)} slides, {total} tiles, {args.workers} cores", "seconds", {"8 slides": seconds}
        )


if __name__ == "__main__":
    main()
