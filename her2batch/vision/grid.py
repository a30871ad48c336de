"""The tiles of a slide: where they lie, which block is read for them, how they are cut from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

WHITE = 255

BLOCK = (1500, 4096)
"""Level px along a block's edge, least and most: large enough that chunks on its rim cost little, 50 MB at most."""


class Rect(NamedTuple):
    """x, y (top left), width, height, in px of the level a block is read from."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Block:
    """Tiles that are decoded together.

    box: what to read, inside the level.  tiles: their numbers.  places: (n, 4) int64 x, y, width, height of each tile
    in level px, relative to the box; they may leave it at the slide's edge.
    """

    box: Rect
    tiles: tuple[int, ...]
    places: NDArray[np.int64]


def plan(width: int, height: int, slide_mpp: float, mpp: float, tile: int) -> NDArray[np.int32]:
    """Non-overlapping tiles of `tile` px at `mpp` over a slide: (n, 3) int32 x, y, size in level-0 px, row by row.

    width, height: of level 0.  slide_mpp, mpp: µm/px.  The grid is anchored at (0, 0); a step that is no whole number
    of level-0 px is rounded tile by tile, so nothing drifts. Tiles at the right and lower edge may leave the slide.
    """
    step = tile * mpp / slide_mpp
    x = np.round(np.arange(math.ceil(width / step)) * step).astype(np.int32)
    y = np.round(np.arange(math.ceil(height / step)) * step).astype(np.int32)
    ys, xs = np.meshgrid(y[y < height], x[x < width], indexing="ij")
    size = np.full(xs.size, max(1, round(step)), np.int32)
    return np.stack([xs.ravel(), ys.ravel(), size], axis=1)


def blocks(
    tiles: NDArray[np.int32], downsample: tuple[float, float], chunk: tuple[int, int], level: tuple[int, int]
) -> list[Block]:
    """Group tiles into blocks that are read at once: a function of its arguments alone, every tile in one block.

    tiles: (n, 3) as `plan` gives them, any selection.  downsample: level-0 px per level px along x and y.  chunk,
    level: (width, height) in level px. A block spans so many tiles that its edge falls on the chunk grid as nearly as
    it can (0.25 to 0.5 µm/px with 256-px chunks: 4 × 448 = 7 × 256), and is read as far as it holds tiles.
    """
    if not len(tiles):
        return []
    size = int(tiles[0, 2])
    spans = [_span(size / ds, edge) for ds, edge in zip(downsample, chunk, strict=True)]
    step = size if len(tiles) == 1 else _step(tiles, size)
    cells = np.floor((tiles[:, :2] + step / 2) / step).astype(np.int64) // np.array(spans)
    order = np.lexsort((np.arange(len(tiles)), cells[:, 0], cells[:, 1]))
    starts = np.flatnonzero(np.r_[True, np.any(np.diff(cells[order], axis=0) != 0, axis=1)])
    groups = np.split(order, starts[1:])
    return [_block(group, tiles, downsample, level) for group in groups]


def _step(tiles: NDArray[np.int32], size: int) -> float:
    """The grid's true step, level-0 px: x and y are its multiples, rounded, so the largest says it best."""
    largest = int(tiles[:, :2].max())
    return largest / max(1, round(largest / size)) if largest else float(size)


def _span(step: float, chunk: int) -> int:
    """Tiles along a block's edge: the edge within BLOCK that lies nearest to the chunk grid, the smallest of equals."""
    least, most = max(1, math.ceil(BLOCK[0] / step)), max(1, int(BLOCK[1] / step))
    wanted = range(least, max(least, min(most, 3 * least)) + 1)
    return min(wanted, key=lambda n: (round(abs(n * step / chunk - round(n * step / chunk)) / n, 6), n))


def _block(
    group: NDArray[np.int64], tiles: NDArray[np.int32], downsample: tuple[float, float], level: tuple[int, int]
) -> Block:
    near = np.round(tiles[group, :2] / np.array(downsample)).astype(np.int64)
    edges = np.maximum(1, np.round(tiles[group, 2:] / np.array(downsample))).astype(np.int64)
    corner = np.minimum(near.min(axis=0), np.array(level) - 1)
    far = np.minimum((near + edges).max(axis=0), np.array(level))
    box = Rect(int(corner[0]), int(corner[1]), *(max(1, int(v)) for v in far - corner))
    return Block(box, tuple(int(one) for one in group), np.concatenate([near - corner, edges], axis=1))


def cut(pixels: NDArray[np.uint8], block: Block, tile: int) -> NDArray[np.uint8]:
    """The tiles of a block: (h, w, 3) uint8 → (n, tile, tile, 3) uint8, area-resampled; white outside the slide.

    When all tiles shrink by one whole factor and lie on it, the block is resampled once and sliced: the mean of the
    same pixels either way.
    """
    factor = block.places[0, 2] // tile
    even = factor >= 1 and (block.places[:, 2:] == factor * tile).all() and (block.places[:, :2] % factor == 0).all()
    if even and factor > 1:
        h, w = (-(-edge // factor) * factor for edge in pixels.shape[:2])
        whole = _padded(pixels, 0, 0, w, h)
        small = cv2.resize(whole, (w // factor, h // factor), interpolation=cv2.INTER_AREA)
        places = block.places // factor
        return np.stack([_padded(small, x, y, tile, tile) for x, y, _, _ in places.tolist()])
    parts = [_padded(pixels, *place) for place in block.places.tolist()]
    return np.stack([_resample(part, tile) for part in parts])


def _padded(pixels: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """A rectangle of an image; white where it leaves it."""
    part = pixels[y : y + height, x : x + width]
    if part.shape[:2] == (height, width):
        return part
    out = np.full((height, width, 3), WHITE, np.uint8)
    out[: part.shape[0], : part.shape[1]] = part
    return out


def _resample(part: NDArray[np.uint8], tile: int) -> NDArray[np.uint8]:
    if part.shape[:2] == (tile, tile):
        return part
    how = cv2.INTER_AREA if min(part.shape[:2]) >= tile else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (tile, tile), interpolation=how), np.uint8)
