"""A grid's tiles, decoded in batches: what models eat. Blocks and batches depend on the slide and its grid alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from her2batch.vision.tile_grid import Block, TileGrid, cut_tiles, plan_blocks

BATCH = 256
"""Tiles that the models get at once, about: whole blocks, and 38 MB. A GPU wants no fewer."""

AHEAD = 4
"""Batches that threads work on while the models have one: 16 blocks or more, so that 16 cores have something to do."""


@dataclass(frozen=True)
class ReadPlan:
    """Where a grid's tiles come from. source: level, and by what it is shrunk.  batches: blocks that go together."""

    source: tuple[int, int]
    batches: tuple[tuple[Block, ...], ...]
    edge: int  # of a tile, px

    def part(self, lo: int, hi: int) -> ReadPlan:
        """A range of the batches."""
        return ReadPlan(self.source, self.batches[lo:hi], self.edge)


def plan_reads(slide: Slide, one: TileGrid, source: tuple[int, int] | None = None) -> ReadPlan:
    """How a slide's grid is read; source: another than the slide's own choice."""
    assert slide.info.mpp is not None
    source = source or slide.tile_source(one.mpp / slide.info.mpp)
    size = slide.info.levels[source[0]].downscale(source[1])
    across, down = slide.info.width / size.width, slide.info.height / size.height
    chunk, shape = (size.chunk_width, size.chunk_height), (size.width, size.height)
    cells = plan_blocks(one.tiles, (across, down), chunk, shape)
    step = max(1, BATCH // max((len(block.tiles) for block in cells), default=1))
    return ReadPlan(source, tuple(tuple(cells[k : k + step]) for k in range(0, len(cells), step)), one.edge)


class Batch(NamedTuple):
    """rows: of its tiles in the table of tiles, (n,).  pixels: (n, edge, edge, 3) uint8.  figures: (n, k), if asked."""

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    figures: NDArray[np.float32] | None


Measure = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, edge, edge, 3) uint8 → (n, k) float32."""


def read_tiles(
    slide: Slide, feed: ReadPlan, threads: int, reader: str, measure: Measure | None = None
) -> Iterator[Batch]:
    """Batches in order; with threads (each has the slide open for itself) decoded ahead of whoever takes them.

    measure: done with the tiles of a block where they are decoded, so that a GPU doesn't wait for a core.  Raises
    SlideError.
    """
    if threads == 0:
        for batch in feed.batches:
            pixels, parts = _room(batch, feed.edge)
            figures = [_decode(slide, feed, *one, measure) for one in zip(batch, parts, strict=True)]
            yield _whole(batch, pixels, figures)
        return
    handles = local()

    def work(block: Block, out: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        if not hasattr(handles, "slide"):
            handles.slide = open_slide(slide.info.path, reader)
        return _decode(handles.slide, feed, block, out, measure)

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[tuple[Block, ...], NDArray[np.uint8], list[Future[NDArray[np.float32] | None]]]] = deque()
        for batch in feed.batches:
            pixels, parts = _room(batch, feed.edge)
            waiting.append((batch, pixels, [pool.submit(work, *one) for one in zip(batch, parts, strict=True)]))
            if len(waiting) > AHEAD:
                first, ready, futures = waiting.popleft()
                yield _whole(first, ready, [future.result() for future in futures])
        for first, ready, futures in waiting:
            yield _whole(first, ready, [future.result() for future in futures])


def _decode(
    slide: Slide, feed: ReadPlan, block: Block, out: NDArray[np.uint8], measure: Measure | None
) -> NDArray[np.float32] | None:
    cut_tiles(slide.read(Box(*block.box), *feed.source, block.tile_rects), block, feed.edge, out)
    return None if measure is None else measure(out)


def _room(batch: tuple[Block, ...], edge: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Room for a batch's tiles, and the part of each of its blocks."""
    counts = [len(block.tiles) for block in batch]
    pixels = np.empty((sum(counts), edge, edge, 3), np.uint8)
    return pixels, np.split(pixels, np.cumsum(counts)[:-1])


def _whole(batch: tuple[Block, ...], pixels: NDArray[np.uint8], figures: list[NDArray[np.float32] | None]) -> Batch:
    rows = np.concatenate([np.asarray(block.tiles, np.int64) for block in batch])
    there = [one for one in figures if one is not None]
    return Batch(rows, pixels, np.concatenate(there) if there else None)
