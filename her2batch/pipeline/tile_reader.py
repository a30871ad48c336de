"""Reads a slide's overview, and the tiles of a grid in batches. Blocks and batches depend on slide and grid alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import local
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.pipeline.cells.block_image import BlockFrames
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from her2batch.vision.background import Mask, fill_missing, filled_tiles, touched_pixels
from her2batch.vision.tile_grid import Block, Rect, TileGrid, cut_tiles, plan_blocks, true_downsample

TILES_PER_BATCH = 256
"""Approximate number of tiles that the models get at once: whole blocks, 38 MB. Fewer would leave a GPU idle."""

BATCHES_AHEAD = 4
"""Batches that threads decode while the models work on one: 16 blocks or more, which keep 16 cores busy."""


@dataclass(frozen=True)
class ReadPlan:
    """How the tiles of a grid are read.

    source: level, and the factor to shrink it by.  batches: blocks of each.  edge: of a tile, px.  size: width and
    height of the source, px.  scale: level-0 px per px of the source along x and y.
    """

    source: tuple[int, int]
    batches: tuple[tuple[Block, ...], ...]
    edge: int
    size: tuple[int, int]
    scale: tuple[float, float]

    def part(self, lo: int, hi: int) -> ReadPlan:
        """A range of the batches."""
        return replace(self, batches=self.batches[lo:hi])


def plan_reads(slide: Slide, grid: TileGrid, source: tuple[int, int] | None = None) -> ReadPlan:
    """Plan how the tiles of a grid are read.  source: level and factor; default: the best for the grid's resolution."""
    assert slide.info.mpp is not None
    source = source or slide.tile_source(grid.mpp / slide.info.mpp)
    size = slide.info.levels[source[0]].downscale(source[1])
    across, down = slide.info.width / size.width, slide.info.height / size.height
    chunk, shape = (size.chunk_width, size.chunk_height), (size.width, size.height)
    blocks = plan_blocks(grid.tiles, (across, down), chunk, shape)
    step = max(1, TILES_PER_BATCH // max((len(block.tiles) for block in blocks), default=1))
    batches = tuple(tuple(blocks[k : k + step]) for k in range(0, len(blocks), step))
    scale = true_downsample(across, size.width), true_downsample(down, size.height)
    return ReadPlan(source, batches, grid.edge, shape, scale)


class Batch(NamedTuple):
    """Decoded tiles.

    rows: (n,) of the tiles in the grid.  pixels: (n, edge, edge, 3) uint8.  features: (n, k).  found: what the frames
    of each block gave.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    features: NDArray[np.float32] | None
    found: tuple[Any, ...] = ()


Measure = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, edge, edge, 3) uint8 → (n, k) float32."""


Decoded = tuple[NDArray[np.float32] | None, Any]
"""Features of a block's tiles, and what its frame gave."""


def read_tiles(
    slide: Slide,
    reads: ReadPlan,
    threads: int,
    reader: str,
    measure: Measure | None = None,
    frames: BlockFrames | None = None,
) -> Iterator[Batch]:
    """Read the batches in order; with threads, each of which opens the slide itself, they are decoded ahead.

    measure: applied to the tiles of a block in the thread that decodes it, so that a GPU does not wait for a core.
    frames: applied to each block with its margin, in the same thread.  Raises SlideError.
    """
    if threads == 0:
        for batch in reads.batches:
            pixels, parts = _allocate(batch, reads.edge)
            decoded = [_decode_block(slide, reads, *one, measure, frames) for one in zip(batch, parts, strict=True)]
            yield _join_blocks(batch, pixels, decoded)
        return
    handles = local()

    def work(block: Block, out: NDArray[np.uint8]) -> Decoded:
        if not hasattr(handles, "slide"):
            handles.slide = _open_again(slide, reader)
        return _decode_block(handles.slide, reads, block, out, measure, frames)

    with ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[tuple[Block, ...], NDArray[np.uint8], list[Future[Decoded]]]] = deque()
        for batch in reads.batches:
            pixels, parts = _allocate(batch, reads.edge)
            pending.append((batch, pixels, [pool.submit(work, *one) for one in zip(batch, parts, strict=True)]))
            if len(pending) > BATCHES_AHEAD:
                first, ready, futures = pending.popleft()
                yield _join_blocks(first, ready, [future.result() for future in futures])
        for first, ready, futures in pending:
            yield _join_blocks(first, ready, [future.result() for future in futures])


def _open_again(slide: Slide, reader: str) -> Slide:
    """Open a slide once more, for another thread."""
    if isinstance(slide, Pyramid):
        return Pyramid(slide.info.path)
    return open_slide(slide.info.path, reader, slide.info.members)


def _decode_block(
    slide: Slide,
    reads: ReadPlan,
    block: Block,
    out: NDArray[np.uint8],
    measure: Measure | None,
    frames: BlockFrames | None,
) -> Decoded:
    area, pixels = _read_block(slide, reads, block, frames)
    left, top = block.box.x - area.x, block.box.y - area.y
    cut_tiles(pixels[top : top + block.box.height, left : left + block.box.width], block, reads.edge, out)
    features = None if measure is None else measure(out)
    return features, None if frames is None else frames(block, area, pixels)


def _read_block(
    slide: Slide, reads: ReadPlan, block: Block, frames: BlockFrames | None
) -> tuple[Rect, NDArray[np.uint8]]:
    """Read a block with its margin. A margin that cannot be read is left out: the tiles themselves may be intact."""
    if frames is not None:
        area = frames.area(block)
        with suppress(SlideError):
            return area, slide.read(Box(*area), *reads.source, frames.needed(block, area))
    return block.box, slide.read(Box(*block.box), *reads.source, block.tile_rects)


def _allocate(batch: tuple[Block, ...], edge: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """An array for the tiles of a batch, and its part for each block."""
    counts = [len(block.tiles) for block in batch]
    pixels = np.empty((sum(counts), edge, edge, 3), np.uint8)
    return pixels, np.split(pixels, np.cumsum(counts)[:-1])


def _join_blocks(batch: tuple[Block, ...], pixels: NDArray[np.uint8], decoded: list[Decoded]) -> Batch:
    rows = np.concatenate([np.asarray(block.tiles, np.int64) for block in batch])
    measured = [features for features, _ in decoded if features is not None]
    return Batch(rows, pixels, np.concatenate(measured) if measured else None, tuple(found for _, found in decoded))


def read_overview(slide: Slide, mpp: float) -> tuple[NDArray[np.uint8], Mask | None, Mask | None]:
    """Read the fields rgb, missing and filled of an Overview at `mpp` µm/px. Raises SlideError `blank-tiles`."""
    rgb, base = slide.overview(mpp), slide.info.levels[0]
    scale = base.height / rgb.shape[0], base.width / rgb.shape[1]
    filled = filled_tiles(rgb, (base.chunk_height / scale[0], base.chunk_width / scale[1]))
    missing, area = filled, slide.missing_area()
    if area is not None:
        extent, size = (area.height, area.width), (base.height, base.width)
        not_stored = touched_pixels(area.mask, extent, size, rgb.shape[:2])
        missing, filled = filled | not_stored, filled & ~not_stored
        if missing.all():
            raise SlideError("blank-tiles", slide.info.path, "none of its tiles has an image")
    return (fill_missing(rgb, missing), missing, filled) if missing.any() else (rgb, None, None)
