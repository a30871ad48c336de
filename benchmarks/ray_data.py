"""Are fused actors or Ray Data's streaming executor faster on the ingest's hot path: decode, cut, stain encoder?

usage: ray_data.py SLIDES [--workers N] [--rounds N]

Both read the same blocks of the same slides and compute the same features. Fused: each actor decodes a range of blocks
and computes their features. Ray Data: a dataset of blocks, decoded by one map and measured by the next (an actor pool),
so that pixels cross the object store. Ray is started once, before both.
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

from her2batch.pipeline.cost_model import available_cores
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

BLOCKS_PER_CALL = 16


def slide_blocks(path: Path) -> tuple[tuple[int, int], list[Block]]:
    """Return the source of a slide's tiles (level, reduction) and its blocks."""
    settings = Plan()
    with open_slide(path) as slide:
        info = slide.info
        assert info.mpp is not None
        mask = segment_tissue(slide.overview(8.0), 8.0).mask
        tiles = plan_tiles(info.width, info.height, info.mpp, settings.mpp, settings.tile)
        tiles = tiles[tile_fractions(mask, info.width, info.height, tiles) >= settings.min_tissue]
        feed = plan_reads(slide, TileGrid(settings.mpp, settings.tile, tiles))
        return feed.source, [block for batch in feed.batches for block in batch]


def decode_block(path: str, source: tuple[int, int], block: Block) -> np.ndarray:
    """Return the tiles of a block."""
    with open_slide(Path(path)) as slide:
        return cut_tiles(slide.read(Box(*block.box), *source, block.tile_rects), block, Plan().tile)


class FusedActor:
    """An actor that decodes blocks and computes features in one process."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)

    def run(self, path: str, source: tuple[int, int], some: list[Block]) -> np.ndarray:
        """Return the features of a range of blocks."""
        with open_slide(Path(path)) as slide:
            parts = [
                cut_tiles(slide.read(Box(*block.box), *source, block.tile_rects), block, Plan().tile) for block in some
            ]
        return measure_tiles(np.concatenate(parts), Plan().mpp, Stains())


class MeasureStage:
    """The model stage of the Ray Data pipeline."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the mean feature of each block in a batch."""
        return {"figures": [measure_tiles(pixels, Plan().mpp, Stains()).mean() for pixels in batch["pixels"]]}


def time_fused(ray: Any, work: list[tuple[str, tuple[int, int], list[Block]]], workers: int) -> float:
    """Return the seconds of the fused actors."""
    pool = [ray.remote(FusedActor).options(num_cpus=1).remote() for _ in range(workers)]
    calls = [
        (path, source, some[k : k + BLOCKS_PER_CALL])
        for path, source, some in work
        for k in range(0, len(some), BLOCKS_PER_CALL)
    ]
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


def time_ray_data(ray: Any, work: list[tuple[str, tuple[int, int], list[Block]]], workers: int) -> float:
    """Return the seconds of the Ray Data pipeline."""
    rows = [
        {"path": path, "source": [*source], "box": [*block.box], "tiles": [*block.tiles], "places": block.tile_rects}
        for path, source, some in work
        for block in some
    ]

    def read(row: dict[str, Any]) -> dict[str, Any]:
        block = Block(Rect(*map(int, row["box"])), tuple(row["tiles"]), np.asarray(row["places"]))
        level, shrink = map(int, row["source"])
        return {"pixels": decode_block(row["path"], (level, shrink), block)}

    started = time.perf_counter()
    data = (
        ray.data.from_items(rows)
        .map(read)
        .map_batches(MeasureStage, batch_size=BLOCKS_PER_CALL, concurrency=max(1, workers // 2))
    )
    assert data.count() >= len(rows)
    return time.perf_counter() - started


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = [(str(one.path), *slide_blocks(one.path)) for one in discover_slides(args.slides)[0]]
    tiles = sum(len(block.tiles) for _, _, some in work for block in some)
    ours, theirs = [], []
    with connect(Resources(workers=args.workers)) as session:
        importlib.import_module("ray.data")
        ray = session.ray
        for _ in range(args.rounds):
            ours.append(time_fused(ray, work, args.workers))
            theirs.append(time_ray_data(ray, work, args.workers))
    a, b = tiles / statistics.median(ours), tiles / statistics.median(theirs)
    print(
        f"{tiles} tiles, {args.workers} workers: fused {a:.0f} tiles/s · Ray Data {b:.0f} tiles/s · ratio {a / b:.2f}"
    )


if __name__ == "__main__":
    main()
