"""Runs the stages over a grid on a range of its batches, on the host or with the tiles on a device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.pipeline.cells.block_image import BlockFrames
from her2batch.pipeline.cells.block_work import plan_frames
from her2batch.pipeline.slide_state import SlidePart, SlideState, Stage, StageContext, TileColumns, Work
from her2batch.pipeline.tile_reader import ReadPlan, plan_reads, read_tiles
from her2batch.slides.slide import Slide
from her2batch.vision.membrane import TileBatch, measure_tiles
from her2batch.vision.stain import Stains


class _Reading(NamedTuple):
    """How the tiles of a call are read and measured.

    reader: of the plan.  threads: that decode while the stages work; 0: decode in this thread.  ahead: these threads
    measure the tiles too.  device: see `StageContext.tile_device`.
    """

    reads: ReadPlan
    mpp: float
    stains: Stains
    reader: str
    threads: int
    ahead: bool
    device: str | None


class _ReadBatch(NamedTuple):
    """A batch of tiles.  rows: (n,) in the grid.  found: what the stages over blocks gave."""

    rows: NDArray[np.int64]
    tiles: TileBatch
    found: tuple[Any, ...]


def run_tile_stages(
    slide: Slide,
    state: SlideState,
    grid_name: str,
    batches: tuple[int, int],
    works: Sequence[tuple[Stage, Work]],
    context: StageContext,
    threads: int,
) -> SlidePart:
    """Run the stages of a grid over its batches from the first number up to, not including, the second.

    works: each stage and its work.  threads: that decode while the stages work; 0: decode in this thread.
    """
    grid, stains = state.tissue_tiles.grids[grid_name], state.stain_fit.stains
    reads = plan_reads(slide, grid).part(*batches)
    ahead = threads > 0 and any(stage.measures for stage, _ in works)
    over_tiles = [(stage, work) for stage, work in works if stage.margin_um is None]
    over_blocks = [(stage, work) for stage, work in works if stage.margin_um is not None]
    frames = plan_frames(over_blocks, state, grid, slide.info.mpp, reads.scale, reads.size)
    outputs: dict[str, list[TileColumns]] = {stage.gives: [] for stage, _ in works if stage.gives is not None}
    seconds = dict.fromkeys(["decode", *(stage.name for stage, _ in works)], 0.0)
    reading = _Reading(reads, grid.mpp, stains, context.plan.reader, threads, ahead, context.tile_device)
    mark = time.perf_counter()
    for rows, tiles, found in _read_batches(slide, reading, frames):
        seconds["decode"] += time.perf_counter() - mark
        for name, gives, value, took in (each for block in found for each in block or ()):
            outputs[gives].append(value)
            seconds[name] += took
            seconds["decode"] -= 0.0 if threads else took
        for stage, work in over_tiles:
            mark = time.perf_counter()
            value = work(tiles)
            if stage.gives is not None:
                outputs[stage.gives].append(TileColumns.of_batch(rows, value))
            seconds[stage.name] += time.perf_counter() - mark
        mark = time.perf_counter()
    return SlidePart({name: TileColumns.join(parts) for name, parts in outputs.items()}, seconds)


def _read_batches(slide: Slide, reading: _Reading, frames: BlockFrames | None) -> Iterator[_ReadBatch]:
    """Read the batches in order. Raises SlideError."""
    device, mpp, stains = reading.device, reading.mpp, reading.stains
    if device is None:
        measure = partial(measure_tiles, mpp=mpp, stains=stains) if reading.ahead else None
        for rows, pixels, features, found in read_tiles(
            slide, reading.reads, reading.threads, reading.reader, measure, frames
        ):
            yield _ReadBatch(rows, TileBatch(pixels, mpp, stains, features), found)
        return
    from her2batch.models.device_measurements.tile_batch import DeviceTileBatch

    for rows, pixels, _, found in read_tiles(slide, reading.reads, reading.threads, reading.reader, None, frames):
        yield _ReadBatch(rows, DeviceTileBatch(pixels, mpp, stains, device), found)
