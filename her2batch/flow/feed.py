"""A grid's tiles, decoded in batches: what models eat. Blocks and batches depend on the slide and its grid alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import local

import numpy as np
from numpy.typing import NDArray

from her2batch.flow.stages import Grid
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from her2batch.vision.grid import Block, blocks, cut

BATCH = 256
"""Tiles that the models get at once, about: whole blocks, and 38 MB. A GPU wants no fewer."""

AHEAD = 1
"""Batches that threads decode while the models have one."""


@dataclass(frozen=True)
class Feed:
    """Where a grid's tiles come from. source: level, and by what it is shrunk.  batches: blocks that go together."""

    source: tuple[int, int]
    batches: tuple[tuple[Block, ...], ...]
    edge: int  # of a tile, px

    def part(self, lo: int, hi: int) -> Feed:
        """A range of the batches."""
        return Feed(self.source, self.batches[lo:hi], self.edge)


def feed_of(slide: Slide, one: Grid, source: tuple[int, int] | None = None) -> Feed:
    """How a slide's grid is read; source: another than the slide's own choice."""
    assert slide.info.mpp is not None
    source = source or slide.source_for(one.mpp / slide.info.mpp)
    size = slide.info.levels[source[0]].shrunk(source[1])
    across, down = slide.info.width / size.width, slide.info.height / size.height
    chunk, shape = (size.chunk_width, size.chunk_height), (size.width, size.height)
    cells = blocks(one.tiles, (across, down), chunk, shape)
    step = max(1, BATCH // max((len(block.tiles) for block in cells), default=1))
    return Feed(source, tuple(tuple(cells[k : k + step]) for k in range(0, len(cells), step)), one.edge)


Batch = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Rows of tiles in the table of tiles, (n,), and their pixels, (n, edge, edge, 3) uint8."""


def decoded(slide: Slide, feed: Feed, threads: int, reader: str) -> Iterator[Batch]:
    """Batches in order; with threads (each has the slide open for itself) decoded ahead of whoever takes them.

    Raises SlideError.
    """
    if threads == 0:
        for batch in feed.batches:
            pixels, parts = _room(batch, feed.edge)
            for block, part in zip(batch, parts, strict=True):
                _decode(slide, feed, block, part)
            yield _rows(batch), pixels
        return
    handles = local()

    def work(block: Block, out: NDArray[np.uint8]) -> None:
        if not hasattr(handles, "slide"):
            handles.slide = open_slide(slide.info.path, reader)
        _decode(handles.slide, feed, block, out)

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        for batch in feed.batches:
            pixels, parts = _room(batch, feed.edge)
            futures = [pool.submit(work, block, part) for block, part in zip(batch, parts, strict=True)]
            waiting.append(((_rows(batch), pixels), futures))
            if len(waiting) > AHEAD:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())


def _decode(slide: Slide, feed: Feed, block: Block, out: NDArray[np.uint8]) -> None:
    cut(slide.read(Box(*block.box), *feed.source, block.places), block, feed.edge, out)


def _room(batch: tuple[Block, ...], edge: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Room for a batch's tiles, and the part of each of its blocks."""
    counts = [len(block.tiles) for block in batch]
    pixels = np.empty((sum(counts), edge, edge, 3), np.uint8)
    return pixels, np.split(pixels, np.cumsum(counts)[:-1])


def _rows(batch: tuple[Block, ...]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(block.tiles, np.int64) for block in batch])


def _ready(batch: Batch, futures: list[Future[None]]) -> Batch:
    """A batch once its blocks are there. Raises what decoding one of them raised."""
    for future in futures:
        future.result()
    return batch
