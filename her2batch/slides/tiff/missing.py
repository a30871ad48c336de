"""Tiles that a TIFF does not store: where level 0 lacks them, and how lower levels are completed from finer ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from her2batch.slides.slide import Box, MissingArea, resample

MAX_STEP, MAX_READ = 32, 16_000_000
"""Largest factor between two levels over which missing tiles are rebuilt, and the px that are read for it at once."""

ReadLevel = Callable[[int, Box], NDArray[np.uint8]]
"""Function from the number of a level and a box in it to its pixels, (h, w, 3) uint8."""


class StoredTiles(Protocol):
    """The part of a level's tile table that is needed here."""

    @property
    def width(self) -> int:
        """Width of the level, px."""

    @property
    def height(self) -> int:
        """Height of the level, px."""

    @property
    def tile_width(self) -> int:
        """Width of a tile, px."""

    @property
    def tile_height(self) -> int:
        """Height of a tile, px."""

    @property
    def stored(self) -> NDArray[np.bool_]:
        """Which tiles are stored: (down, across) bool."""


def missing_tiles(table: StoredTiles) -> MissingArea | None:
    """Return the tiles that a level lacks, as an area of the slide; None if it has all. table: of level 0."""
    missing = ~table.stored
    down, across = missing.shape
    return MissingArea(missing, across * table.tile_width, down * table.tile_height) if missing.any() else None


def present_tiles(levels: Sequence[StoredTiles], level: int) -> NDArray[np.bool_]:
    """Return which tiles of a level are stored, or can be rebuilt from a finer level: (down, across) bool."""
    table = levels[level]
    if level == 0 or table.stored.all():
        return table.stored
    finer = levels[level - 1]
    if max(finer.width / table.width, finer.height / table.height) > MAX_STEP:
        return table.stored
    down, across = table.stored.shape
    y0, y1 = _finer_range(down, table.tile_height, table.height, finer.tile_height, finer.height)
    x0, x1 = _finer_range(across, table.tile_width, table.width, finer.tile_width, finer.width)
    sums = np.pad(present_tiles(levels, level - 1).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    return np.asarray(table.stored | (found > 0), bool)


def _finer_range(
    count: int, tile: int, length: int, finer_tile: int, finer_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tiles (first, end) of the finer level under each tile of a level, along one axis."""
    starts = np.arange(count, dtype=np.int64) * tile
    ratio = finer_length / length
    first = (starts * ratio).astype(np.int64)
    last = np.minimum(np.ceil(np.minimum(starts + tile, length) * ratio).astype(np.int64), finer_length)
    return first // finer_tile, -(-last // finer_tile)


def rebuild_tile(
    levels: Sequence[StoredTiles], level: int, tile: tuple[int, int], shrink: int, read: ReadLevel
) -> NDArray[np.uint8] | None:
    """Make a tile (row, column) that a level lacks from the next finer level, area-resampled: (h, w, 3) uint8.

    The tile is cut at the edge of the level, and shrunk by a factor.  None if no finer level has an image there, or if
    the next finer level is more than MAX_STEP times finer.
    """
    box = _tile_box(levels[level], *tile)
    source = _finer_box(levels, level, box)
    if source is None or not _has_image(levels, level - 1, source):
        return None
    out = np.empty((-(-box.height // shrink), -(-box.width // shrink), 3), np.uint8)
    rows = max(1, MAX_READ * len(out) // (source.width * source.height))  # output rows of one read
    for top in range(0, len(out), rows):
        bottom = min(len(out), top + rows)
        first, last = source.y + top * source.height // len(out), source.y + bottom * source.height // len(out)
        part = read(level - 1, Box(source.x, first, source.width, max(1, last - first)))
        out[top:bottom] = resample(part, out.shape[1], bottom - top)
    return out


def _tile_box(table: StoredTiles, row: int, column: int) -> Box:
    """Return a tile, cut at the edge of its level, in px of the level."""
    x, y = column * table.tile_width, row * table.tile_height
    return Box(x, y, min(table.tile_width, table.width - x), min(table.tile_height, table.height - y))


def _finer_box(levels: Sequence[StoredTiles], level: int, box: Box) -> Box | None:
    """Return a box of a level in px of the next finer one; None without a finer level that is close enough."""
    if level == 0:
        return None
    table, finer = levels[level], levels[level - 1]
    fx, fy = finer.width / table.width, finer.height / table.height
    if max(fx, fy) > MAX_STEP:
        return None
    x, y = int(box.x * fx), int(box.y * fy)
    right, bottom = min(finer.width, math.ceil(box.right * fx)), min(finer.height, math.ceil(box.bottom * fy))
    return Box(x, y, right - x, bottom - y)


def _has_image(levels: Sequence[StoredTiles], level: int, box: Box) -> bool:
    """Return whether a level, or a finer one, stores a tile of a box."""
    table = levels[level]
    rows = slice(box.y // table.tile_height, -(-box.bottom // table.tile_height))
    columns = slice(box.x // table.tile_width, -(-box.right // table.tile_width))
    if table.stored[rows, columns].any():
        return True
    finer = _finer_box(levels, level, box)
    return finer is not None and _has_image(levels, level - 1, finer)
