"""Runs the stages that work on blocks of tiles with a margin, in the threads that decode them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from her2batch.pipeline.cells.block_image import BlockFrames, BlockImage
from her2batch.pipeline.slide_state import SlideState, Stage, TileColumns, Work
from her2batch.vision.tile_grid import TileGrid

BlockResult = tuple[str, str, TileColumns, float]
"""Name of a stage, what it gives, its value, and the seconds that it took."""


def plan_frames(
    works: Sequence[tuple[Stage, Work]],
    state: SlideState,
    grid: TileGrid,
    slide_mpp: float | None,
    scale: tuple[float, float],
    level: tuple[int, int],
) -> BlockFrames | None:
    """Plan the frames of a slide's blocks for the stages that work on them; None without such stages.

    scale, level: of the level that is read, see `BlockFrames.plan`.
    """
    if not works:
        return None

    def examine(image: BlockImage) -> list[BlockResult]:
        found: list[BlockResult] = []
        for stage, work in works:
            mark = time.perf_counter()
            value = work(image, state, grid.mpp)
            found.append((stage.name, str(stage.gives), value, time.perf_counter() - mark))
        return found

    assert slide_mpp is not None
    margin = max(stage.margin_um or 0.0 for stage, _ in works)
    step = math.lcm(*(stage.step(grid.mpp) for stage, _ in works))
    return BlockFrames.plan(grid, slide_mpp, scale, level, margin, step, examine)
