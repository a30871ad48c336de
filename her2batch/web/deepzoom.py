"""Deep Zoom tiles from the pyramids of the store, for slide viewers.

Deep Zoom counts levels from the coarsest, 1 × 1 px. Each level is twice as large as the one before, and the last is
level 0 of the slide. A tile that equals a stored chunk is returned without re-encoding. Other tiles are computed from
the pyramid, and those of coarse levels from the thumbnail. No second copy of the slide is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.slides.codecs import encode_jpeg
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box, SlideInfo, resample

DEFAULT_TILE_PX = 256
"""Edge of a tile where the chunks of the pyramid are not used as tiles, px."""

CHUNK_PX_RANGE = (128, 1024)
"""Smallest and largest edge of chunks that are used as tiles, px."""

JPEG_QUALITY = 88
"""JPEG quality of computed tiles."""

WHITE = 255


@dataclass(frozen=True)
class DeepZoom:
    """The geometry of a Deep Zoom image. width, height: level-0 px.  tile: edge of a tile, px."""

    width: int
    height: int
    tile: int

    @property
    def max_level(self) -> int:
        """The finest level, which is level 0 of the slide."""
        return math.ceil(math.log2(max(self.width, self.height, 1)))

    def size(self, level: int) -> tuple[int, int]:
        """Return the width and height of a level, px."""
        scale = self.scale(level)
        return -(-self.width // scale), -(-self.height // scale)

    def scale(self, level: int) -> int:
        """Return the number of level-0 px per px of a level."""
        return int(2 ** (self.max_level - level))

    def box(self, level: int, column: int, row: int) -> Box:
        """Return the box of a tile, in px of its level. Raises ValueError when there is no such tile."""
        if not 0 <= level <= self.max_level:
            raise ValueError(f"there is no level {level}; the finest is {self.max_level}")
        width, height = self.size(level)
        x, y = column * self.tile, row * self.tile
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"there is no tile {column}, {row} at level {level}")
        return Box(x, y, min(self.tile, width - x), min(self.tile, height - y))

    def descriptor(self) -> str:
        """Return the .dzi file.  Source: the Deep Zoom file format of 2008."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" Overlap="0" '
            f'TileSize="{self.tile}">'
            f'<Size Width="{self.width}" Height="{self.height}"/></Image>\n'
        )


def deep_zoom_of(info: SlideInfo) -> DeepZoom:
    """Return the Deep Zoom geometry of a pyramid, with its chunks as tiles if they are square and of a useful size."""
    finest = info.levels[0]
    low, high = CHUNK_PX_RANGE
    square = finest.chunk_width == finest.chunk_height and low <= finest.chunk_width <= high
    return DeepZoom(info.width, info.height, finest.chunk_width if square else DEFAULT_TILE_PX)


def deep_zoom_tile(
    slide: Pyramid, thumbnail: NDArray[np.uint8] | None, zoom: DeepZoom, level: int, column: int, row: int
) -> bytes:
    """Return one tile as JPEG; white where no tissue is stored.

    thumbnail: (h, w, 3) uint8 RGB of the whole slide, used for levels that are not finer.  Raises ValueError when there
    is no such tile, SlideError when the pyramid is damaged.
    """
    box = zoom.box(level, column, row)
    if (stored := _stored_chunk(slide, zoom, level, column, row, box)) is not None:
        return stored
    return encode_jpeg(_read_pixels(slide, thumbnail, zoom, level, box), JPEG_QUALITY)


def _stored_chunk(slide: Pyramid, zoom: DeepZoom, level: int, column: int, row: int, box: Box) -> bytes | None:
    """Return the stored chunk that equals a tile, or None.

    At the right and lower edge of the slide chunks are larger than their tile.
    """
    if (box.width, box.height) != (zoom.tile, zoom.tile):
        return None
    width, height = zoom.size(level)
    for number, own in enumerate(slide.info.levels):
        same = abs(own.width - width) <= 1 and abs(own.height - height) <= 1
        inside = box.right <= own.width and box.bottom <= own.height
        if same and inside and (own.chunk_width, own.chunk_height) == (zoom.tile, zoom.tile):
            return slide.jpeg_chunk(number, row, column)
    return None


def _read_pixels(
    slide: Pyramid, thumbnail: NDArray[np.uint8] | None, zoom: DeepZoom, level: int, box: Box
) -> NDArray[np.uint8]:
    scale = zoom.scale(level)
    if thumbnail is not None and thumbnail.shape[1] * scale >= zoom.width:
        return _cut_thumbnail(thumbnail, zoom, level, box)
    whole = Box(box.x * scale, box.y * scale, box.width * scale, box.height * scale)
    assert slide.info.mpp is not None  # every slide of the store has one
    return resample(slide.region(whole, slide.info.mpp * scale), box.width, box.height)


def _cut_thumbnail(thumbnail: NDArray[np.uint8], zoom: DeepZoom, level: int, box: Box) -> NDArray[np.uint8]:
    """Cut a tile of a level that is not finer than the thumbnail out of the thumbnail."""
    rows, columns = thumbnail.shape[:2]
    width, height = zoom.size(level)
    left, right = box.x * columns // width, -(-box.right * columns // width)
    top, bottom = box.y * rows // height, -(-box.bottom * rows // height)
    return np.asarray(
        cv2.resize(thumbnail[top:bottom, left:right], (box.width, box.height), interpolation=cv2.INTER_AREA)
    )
