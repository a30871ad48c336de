"""Blocks of a slide with a margin around them, on one pixel grid for the whole slide.

Tiles are decoded block by block. Cells are measured on the same pixels, and on a margin around the block, so that a
cell at its border is seen whole. All blocks lie on one grid of px, whose first px begins at the corner of the slide:
blocks that both see a cell see the same px, and a cell belongs to the tile in which its centre lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.background import Mask
from her2batch.vision.tile_grid import Block, Rect, TileGrid

WHITE = 255

WHOLE = 1e-6
"""Difference from a whole number up to which two grids of px are the same."""


class BlockImage(NamedTuple):
    """A block with its margin.

    pixels: (h, w, 3) uint8.  left, top: of its first px, on the grid of the slide.  excluded: (h, w) bool, px that were
    not read, which are white; None: all were.  tiles: rows of the block's tiles in the grid of tiles.  edge: of a tile,
    px.
    """

    pixels: NDArray[np.uint8]
    left: int
    top: int
    excluded: Mask | None
    tiles: NDArray[np.int64]
    edge: int


Examine = Callable[[BlockImage], Any]


@dataclass(frozen=True)
class BlockFrames:
    """The frames of blocks: what is read around each block, and how it becomes an image.

    ratio: px of the level along x and y per px of the slide's grid.  level: width and height, px.  edge: of a tile, px
    of the grid.  margin: px of the grid.  step: the frame's corner is a multiple of it.  corners: (n, 2) column and row
    of all tiles of the slide.  examine: gets each image.
    """

    ratio: tuple[float, float]
    level: tuple[int, int]
    edge: int
    margin: int
    step: int
    corners: NDArray[np.int64]
    examine: Examine

    @classmethod
    def plan(
        cls,
        tiles: TileGrid,
        slide_mpp: float,
        scale: tuple[float, float],
        level: tuple[int, int],
        margin_um: float,
        step: int,
        examine: Examine,
    ) -> BlockFrames:
        """Plan the frames of a slide.

        tiles: all tiles of the slide.  slide_mpp: µm per level-0 px.  scale: level-0 px per px of the level.
        """
        zoom = tiles.mpp / slide_mpp  # level-0 px per px of the grid
        corners = np.round(tiles.tiles[:, :2] / (tiles.edge * zoom)).astype(np.int64)
        ratio = zoom / scale[0], zoom / scale[1]
        return cls(ratio, level, tiles.edge, math.ceil(margin_um / tiles.mpp), step, corners, examine)

    def spans(self, block: Block) -> list[tuple[int, int]]:
        """First px, and px after the last, of a block's frame along x and y, on the grid of the slide."""
        own = self.corners[list(block.tiles)]
        spans = []
        for axis in (0, 1):
            first = int(own[:, axis].min()) * self.edge - self.margin
            last = (int(own[:, axis].max()) + 1) * self.edge + self.margin
            most = math.floor(self.level[axis] / self.ratio[axis] + WHOLE)
            spans.append((max(0, first // self.step * self.step), min(last, max(most, 1))))
        return spans

    def area(self, block: Block) -> Rect:
        """The area of the level to read for a block: its frame, and all of its tiles."""
        box, ends = block.box, []
        for axis, (first, last) in enumerate(self.spans(block)):
            near = min(math.floor(first * self.ratio[axis] + WHOLE), box[axis])
            far = max(math.ceil(last * self.ratio[axis] - WHOLE), box[axis] + box[axis + 2])
            ends.append((near, min(far, self.level[axis])))
        (left, right), (top, bottom) = ends
        return Rect(left, top, right - left, bottom - top)

    def needed(self, block: Block, area: Rect) -> NDArray[np.int64]:
        """The parts of the area to read: tiles with their margins, (n, 4) x, y, width, height inside the area."""
        reach = np.array([math.ceil((self.margin + self.step) * ratio) for ratio in self.ratio])
        shift = np.array([block.box.x - area.x, block.box.y - area.y])
        near = np.maximum(block.tile_rects[:, :2] + shift - reach, 0)
        far = block.tile_rects[:, :2] + block.tile_rects[:, 2:] + shift + reach
        far = np.minimum(far, np.array([area.width, area.height]))
        return np.concatenate([near, far - near], axis=1)

    def __call__(self, block: Block, area: Rect, pixels: NDArray[np.uint8]) -> Any:
        """What `examine` finds in a block.  pixels: of its area."""
        (left, right), (top, bottom) = self.spans(block)
        image = resample_to_grid(pixels, (area.x, area.y), self.ratio, (left, top, right - left, bottom - top))
        excluded = self._not_read(block, area, left, top, image.shape[:2])
        if excluded is not None:
            image[excluded] = WHITE
        return self.examine(BlockImage(image, left, top, excluded, np.asarray(block.tiles, np.int64), self.edge))

    def _not_read(self, block: Block, area: Rect, left: int, top: int, shape: tuple[int, ...]) -> Mask | None:
        """Px of the frame at `left`, `top` that are outside the area, or too far from every tile of the block."""
        own = self.corners[list(block.tiles)] * self.edge - np.array([left, top])
        read = np.zeros(shape, bool)
        for x, y in own.tolist():
            low, high = (max(0, start - self.margin) for start in (x, y))
            read[high : y + self.edge + self.margin, low : x + self.edge + self.margin] = True
        x, y = (area[axis] / self.ratio[axis] - first for axis, first in enumerate((left, top)))
        right, bottom = x + area.width / self.ratio[0], y + area.height / self.ratio[1]
        read[:, : max(0, math.ceil(x - WHOLE))] = read[: max(0, math.ceil(y - WHOLE))] = False
        read[:, math.floor(right + WHOLE) :] = read[math.floor(bottom + WHOLE) :] = False
        return None if read.all() else ~read


def resample_to_grid(
    pixels: NDArray[np.uint8], origin: tuple[int, int], ratio: tuple[float, float], frame: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """Resample px of a level to the grid of the slide: (h, w, 3) uint8 → (height, width, 3) uint8, a new array.

    origin: of `pixels`, px of the level.  ratio: px of the level per px of the grid.  frame: x, y, width, height on the
    grid. A ratio that is no whole number takes two steps, as for tiles: linearly to the nearest whole multiple of the
    grid, then by the mean of whole px; both steps depend on the position on the slide alone.
    """
    x, y, width, height = frame
    many = [max(1, math.floor(one + 0.5)) for one in ratio]
    pitch = [one / parts for one, parts in zip(ratio, many, strict=True)]
    start = [
        (first * parts + 0.5) * step - 0.5 - own
        for first, parts, step, own in zip((x, y), many, pitch, origin, strict=True)
    ]
    size = (width * many[0], height * many[1])
    aligned = all(
        abs(step - 1) < WHOLE and abs(own - round(own)) < WHOLE for step, own in zip(pitch, start, strict=True)
    )
    left, top = round(start[0]), round(start[1])
    if aligned and left >= 0 and top >= 0 and left + size[0] <= pixels.shape[1] and top + size[1] <= pixels.shape[0]:
        fine = pixels[top : top + size[1], left : left + size[0]]
    else:
        transform = np.array([[pitch[0], 0, start[0]], [0, pitch[1], start[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        fine = np.asarray(
            cv2.warpAffine(np.ascontiguousarray(pixels), transform, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        )
    if many == [1, 1]:
        return np.array(fine, np.uint8)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
