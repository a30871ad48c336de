"""Are fused actors or Ray Data's streaming executor faster on the ingest's hot path: decode, cut, stain encoder?

usage: ray_data.py SLIDES [--workers N] [--rounds N]

Both get the same blocks of the same slides and measure the same figures. Fused: each actor decodes a range of blocks
and measures it. Ray Data: a dataset of blocks, decoded by one map, measured by the next (an actor pool), so that
pixels cross the object store. Ray is started once, before both.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"

import cv2
import numpy as np

from her2batch.pipeline.cost_model import cores
from her2batch.pipeline.tile_reader import plan_reads
from her2batch.runtime.ray_session import connect
from her2batch.settings import Plan, Resources
from her2batch.slides.discover import discover_slides
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
from her2batch.vision.membrane import measure_tiles
from her2batch.vision.stain import Stains
from her2batch.vision.tile_grid import Block, Rect, TileGrid, cut_tiles, plan_tiles
from her2batch.vision.tissue import segment_tissue, tile_fractions

RANGE = 16


def work_of(path: Path) -> tuple[tuple[int, int], list[Block]]:
    """What a slide's tiles are read from (level, shrink), and its blocks."""
    settings = Plan()
    with open_slide(path) as slide:
        info = slide.info
        assert info.mpp is not None
        mask = segment_tissue(slide.overview(8.0), 8.0).mask
        tiles = plan_tiles(info.width, info.height, info.mpp, settings.mpp, settings.tile)
        tiles = tiles[tile_fractions(mask, info.width, info.height, tiles) >= settings.min_tissue]
        feed = plan_reads(slide, TileGrid(settings.mpp, settings.tile, tiles))
        return feed.source, [block for batch in feed.batches for block in batch]


def decode(path: str, source: tuple[int, int], block: Block) -> np.ndarray:
    """A block's tiles."""
    with open_slide(Path(path)) as slide:
        return cut_tiles(slide.read(Box(*block.box), *source, block.tile_rects), block, Plan().tile)


class Fused:
    """Decodes and measures in one process."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)

    def run(self, path: str, source: tuple[int, int], some: list[Block]) -> np.ndarray:
        """Figures of a range of blocks."""
        with open_slide(Path(path)) as slide:
            parts = [
                cut_tiles(slide.read(Box(*block.box), *source, block.tile_rects), block, Plan().tile) for block in some
            ]
        return measure_tiles(np.concatenate(parts), Plan().mpp, Stains())


class Measure:
    """Ray Data's model stage."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Figures of the tiles of a batch of blocks."""
        return {"figures": [measure_tiles(pixels, Plan().mpp, Stains()).mean() for pixels in batch["pixels"]]}


def fused(ray: Any, work: list[tuple[str, tuple[int, int], list[Block]]], workers: int) -> float:
    """Seconds over the pool."""
    pool = [ray.remote(Fused).options(num_cpus=1).remote() for _ in range(workers)]
    calls = [(path, source, some[k : k + RANGE]) for path, source, some in work for k in range(0, len(some), RANGE)]
    ray.get([actor.run.remote(*calls[0]) for actor in pool])
    started = time.perf_counter()
    waiting = {actor.run.remote(*calls.pop()): actor for actor in pool if calls}
    while waiting:
        done, _ = ray.wait(list(waiting))
        actor = waiting.pop(done[0])
        if calls:
            waiting[actor.run.remote(*calls.pop())] = actor
    seconds = time.perf_counter() - started
    for actor in pool:
        ray.kill(actor)
    return seconds


def streamed(ray: Any, work: list[tuple[str, tuple[int, int], list[Block]]], workers: int) -> float:
    """Seconds for the same through Ray Data."""
    rows = [
        {"path": path, "source": [*source], "box": [*block.box], "tiles": [*block.tiles], "places": block.tile_rects}
        for path, source, some in work
        for block in some
    ]

    def read(row: dict[str, Any]) -> dict[str, Any]:
        block = Block(Rect(*map(int, row["box"])), tuple(row["tiles"]), np.asarray(row["places"]))
        level, shrink = map(int, row["source"])
        return {"pixels": decode(row["path"], (level, shrink), block)}

    started = time.perf_counter()
    data = ray.data.from_items(rows).map(read).map_batches(Measure, batch_size=RANGE, concurrency=max(1, workers // 2))
    assert data.count() >= len(rows)
    return time.perf_counter() - started


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = [(str(one.path), *work_of(one.path)) for one in discover_slides(args.slides)[0]]
    tiles = sum(len(block.tiles) for _, _, some in work for block in some)
    ours, theirs = [], []
    with connect(Resources(workers=args.workers)) as session:
        importlib.import_module("ray.data")
        ray = session.ray
        for _ in range(args.rounds):
            ours.append(fused(ray, work, args.workers))
            theirs.append(streamed(ray, work, args.workers))
    a, b = tiles / statistics.median(ours), tiles / statistics.median(theirs)
    print(
        f"{tiles} tiles, {args.workers} workers: fused {a:.0f} tiles/s · Ray Data {b:.0f} tiles/s · ratio {a / b:.2f}"
    )


if __name__ == "__main__":
    main()
