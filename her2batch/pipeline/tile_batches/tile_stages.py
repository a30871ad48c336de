"""Runs the stages over a grid on a range of its batches, on the host or with the tiles on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.models.execution.smaller_batches import collect_smaller_batches
from her2batch.pipeline.cells.block_image import BlockFrames
from her2batch.pipeline.cells.block_work import plan_frames
from her2batch.pipeline.slide_state import SlidePart, SlideState, Stage, StageContext, TileColumns, Work
from her2batch.pipeline.tile_reader import ReadPlan, plan_reads, read_tiles
from her2batch.slides.cucim.chunk_decoder import cucim_chunk_decoder
from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.nvimgcodec.chunk_decoder import ChunkDecoder, DeviceDecodeRefused, chunk_decoder
from her2batch.slides.nvimgcodec.slide import NvImageCodecSlide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from her2batch.vision.membrane import TileBatch, measure_tiles
from her2batch.vision.stain import Stains

DEVICE_READERS: dict[str, Callable[[Slide, int, int | None], ChunkDecoder | None]] = {
    "auto": chunk_decoder,
    NvImageCodecSlide.name: chunk_decoder,
    CucimSlide.name: cucim_chunk_decoder,
}
"""Readers of a plan with which tiles are decoded on the device on which they are measured → how."""


@dataclass(frozen=True)
class _Call:
    """One call on a range of a grid's batches.

    threads: that decode while the stages work; 0: decode in this thread.  device: on which the tiles are measured; on
    the host, by the reference, if it is None.
    """

    slide: Slide
    reads: ReadPlan
    mpp: float
    stains: Stains
    works: Sequence[tuple[Stage, Work]]
    frames: BlockFrames | None
    reader: str
    threads: int
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
    Where the tiles are measured on a device they are decoded there too, if nvImageCodec can, or cuCIM where it is the
    reader; otherwise, and where it shows other pixels than the strict decoder or meets damage, they are decoded on the
    host.  Raises SlideError.
    """
    grid, stains, reader = state.tissue_tiles.grids[grid_name], state.stain_fit.stains, context.plan.reader
    reads = plan_reads(slide, grid).part(*batches)
    over_blocks = [(stage, work) for stage, work in works if stage.margin_um is not None]
    frames = plan_frames(over_blocks, state, grid, slide.info.mpp, reads.scale, reads.size)
    device = "cpu" if context.tile_device is None and reader == NvImageCodecSlide.name else context.tile_device
    call = _Call(slide, reads, grid.mpp, stains, works, frames, reader, threads, device)
    with collect_smaller_batches() as notes:
        part = _decode_and_run(call)
    part.smaller_batches = "; ".join(notes)
    return part


def _decode_and_run(call: _Call) -> SlidePart:
    """Run the stages on tiles that are decoded on the device where possible, else on the host."""
    decoded = _decode_on_device(call)
    if decoded is None:
        return _run(call, _decode_on_host(call))
    try:
        return _run(call, decoded)
    except DeviceDecodeRefused as refused:
        with _strict(call) as strict:
            part = _run(strict, _decode_on_host(strict))
        part.decoded_on_cpu = str(refused)
        return part


@contextmanager
def _strict(call: _Call) -> Iterator[_Call]:
    """Give a call whose slide is decoded strictly: cuCIM would conceal on the host the damage that stopped it."""
    if not isinstance(call.slide, CucimSlide):
        yield call
        return
    with open_slide(call.slide.info.path, "tiff") as slide:
        yield replace(call, slide=slide, reader="tiff")


def _run(call: _Call, batches: Iterator[_ReadBatch]) -> SlidePart:
    """Run the stages on batches of tiles."""
    stages = [stage for stage, _ in call.works]
    outputs: dict[str, list[TileColumns]] = {stage.gives: [] for stage in stages if stage.gives is not None}
    seconds = dict.fromkeys(["decode", *(stage.name for stage in stages)], 0.0)
    mark = time.perf_counter()
    for rows, tiles, found in batches:
        seconds["decode"] += time.perf_counter() - mark
        for name, gives, value, took in (each for block in found for each in block or ()):
            outputs[gives].append(value)
            seconds[name] += took
            seconds["decode"] -= 0.0 if call.threads else took
        for stage, work in call.works:
            if stage.margin_um is not None:
                continue
            mark = time.perf_counter()
            value = work(tiles)
            if stage.gives is not None:
                outputs[stage.gives].append(TileColumns.of_batch(rows, value))
            seconds[stage.name] += time.perf_counter() - mark
        mark = time.perf_counter()
    return SlidePart({name: TileColumns.join(parts) for name, parts in outputs.items()}, seconds)


def _decode_on_host(call: _Call) -> Iterator[_ReadBatch]:
    """Decode the batches strictly, in order. Threads that decode also measure, unless a device does."""
    device, mpp, stains = call.device, call.mpp, call.stains
    ahead = device is None and call.threads > 0 and any(stage.measures for stage, _ in call.works)
    measure = partial(measure_tiles, mpp=mpp, stains=stains) if ahead else None
    for rows, pixels, features, found in read_tiles(
        call.slide, call.reads, call.threads, call.reader, measure, call.frames
    ):
        if device is None:
            yield _ReadBatch(rows, TileBatch(pixels, mpp, stains, features), found)
        else:
            from her2batch.models.device_measurements.tile_batch import DeviceTileBatch

            yield _ReadBatch(rows, DeviceTileBatch(pixels, mpp, stains, device), found)


def _decode_on_device(call: _Call) -> Iterator[_ReadBatch] | None:
    """Return the batches as they are decoded on the device; None where they have to be decoded on the host."""
    if call.device is None or call.reader not in DEVICE_READERS:
        return None
    from her2batch.models.device import gpu_number

    device = call.device
    decoder = DEVICE_READERS[call.reader](call.slide, call.reads.source[0], gpu_number(device))
    if decoder is None:
        return None
    from her2batch.models.device_measurements.tile_batch import DeviceTileBatch
    from her2batch.pipeline.tile_batches.device_reader import read_tiles_on_device

    read = read_tiles_on_device(decoder, call.reads, device, call.threads, call.frames)
    return (
        _ReadBatch(rows, DeviceTileBatch(tensor, call.mpp, call.stains, device), found) for rows, tensor, found in read
    )
