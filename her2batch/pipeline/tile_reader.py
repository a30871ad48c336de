"""Reads a slide's overview, and the tiles of a grid in batches. Blocks and batches depend on slide and grid alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from her2batch.vision.background import Mask, fill_missing, filled_tiles, touched_pixels
from her2batch.vision.tile_grid import Block, TileGrid, cut_tiles, plan_blocks

TILES_PER_BATCH = 256
"""Approximate number of tiles that the models get at once: whole blocks, 38 MB. Fewer would leave a GPU idle."""

BATCHES_AHEAD = 4
"""Batches that threads decode while the models work on one: 16 blocks or more, which keep 16 cores busy."""


@dataclass(frozen=True)
class ReadPlan:
    """How the tiles of a grid are read.  source: level, and the factor to shrink it by.  batches: blocks of each."""

    source: tuple[int, int]
    batches: tuple[tuple[Block, ...], ...]
    edge: int  # tile edge, px

    def part(self, lo: int, hi: int) -> ReadPlan:
        """A range of the batches."""
        return ReadPlan(self.source, self.batches[lo:hi], self.edge)


def plan_reads(slide: Slide, grid: TileGrid, source: tuple[int, int] | None = None) -> ReadPlan:
    """Plan how the tiles of a grid are read.  source: level and factor; default: the best for the grid's resolution."""
    assert slide.info.mpp is not None
    source = source or slide.tile_source(grid.mpp / slide.info.mpp)
    size = slide.info.levels[source[0]].downscale(source[1])
    across, down = slide.info.width / size.width, slide.info.height / size.height
    chunk, shape = (size.chunk_width, size.chunk_height), (size.width, size.height)
    blocks = plan_blocks(grid.tiles, (across, down), chunk, shape)
    step = max(1, TILES_PER_BATCH // max((len(block.tiles) for block in blocks), default=1))
    return ReadPlan(source, tuple(tuple(blocks[k : k + step]) for k in range(0, len(blocks), step)), grid.edge)


class Batch(NamedTuple):
    """Decoded tiles.  rows: (n,) of the tiles in the grid.  pixels: (n, edge, edge, 3) uint8.  features: (n, k)."""

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    features: NDArray[np.float32] | None


Measure = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, edge, edge, 3) uint8 → (n, k) float32."""


def read_tiles(
    slide: Slide, reads: ReadPlan, threads: int, reader: str, measure: Measure | None = None
) -> Iterator[Batch]:
    """Read the batches in order; with threads, each of which opens the slide itself, they are decoded ahead.

    measure: applied to the tiles of a block in the thread that decodes it, so that a GPU does not wait for a core.
    Raises SlideError.
    """
    if threads == 0:
        for batch in reads.batches:
            pixels, parts = _allocate(batch, reads.edge)
            features = [_decode_block(slide, reads, *one, measure) for one in zip(batch, parts, strict=True)]
            yield _join_blocks(batch, pixels, features)
        return
    handles = local()

    def work(block: Block, out: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        if not hasattr(handles, "slide"):
            handles.slide = _open_again(slide, reader)
        return _decode_block(handles.slide, reads, block, out, measure)

    with ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[tuple[Block, ...], NDArray[np.uint8], list[Future[NDArray[np.float32] | None]]]] = deque()
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
    slide: Slide, reads: ReadPlan, block: Block, out: NDArray[np.uint8], measure: Measure | None
) -> NDArray[np.float32] | None:
    cut_tiles(slide.read(Box(*block.box), *reads.source, block.tile_rects), block, reads.edge, out)
    return None if measure is None else measure(out)


def _allocate(batch: tuple[Block, ...], edge: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """An array for the tiles of a batch, and its part for each block."""
    counts = [len(block.tiles) for block in batch]
    pixels = np.empty((sum(counts), edge, edge, 3), np.uint8)
    return pixels, np.split(pixels, np.cumsum(counts)[:-1])


def _join_blocks(
    batch: tuple[Block, ...], pixels: NDArray[np.uint8], features: list[NDArray[np.float32] | None]
) -> Batch:
    rows = np.concatenate([np.asarray(block.tiles, np.int64) for block in batch])
    measured = [block for block in features if block is not None]
    return Batch(rows, pixels, np.concatenate(measured) if measured else None)


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
