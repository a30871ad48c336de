"""Deep zoom straight from the store: which part of a pyramid a tile of the viewer is, and that part as JPEG.

Deep Zoom counts levels from the coarsest, 1 × 1 px, each twice as large as the one before; the last is the slide's
own. Where such a tile is a stored chunk, its bytes are handed out untouched; otherwise it is put together from the
pyramid, or, as coarse as that, from the slide's stored picture. No second copy of anything is kept.
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
"""Edge of a tile where the pyramid's chunks don't say otherwise, px."""

CHUNK_PX_RANGE = (128, 1024)
"""Chunks of such edges are tiles of the viewer as they are."""

JPEG_QUALITY = 88
"""Of tiles that are put together."""

WHITE = 255


@dataclass(frozen=True)
class DeepZoom:
    """A slide in the viewer's terms: its size in level-0 px and the edge of a tile."""

    width: int
    height: int
    tile: int

    @property
    def last(self) -> int:
        """The finest level: the slide's own px."""
        return math.ceil(math.log2(max(self.width, self.height, 1)))

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level, px."""
        scale = self.scale(level)
        return -(-self.width // scale), -(-self.height // scale)

    def scale(self, level: int) -> int:
        """Level-0 px per px of a level."""
        return int(2 ** (self.last - level))

    def box(self, level: int, column: int, row: int) -> Box:
        """A tile, in px of its level. Raises ValueError when the level has none there."""
        if not 0 <= level <= self.last:
            raise ValueError(f"there is no level {level}; the last is {self.last}")
        width, height = self.size(level)
        x, y = column * self.tile, row * self.tile
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"there is no tile {column}, {row} at level {level}")
        return Box(x, y, min(self.tile, width - x), min(self.tile, height - y))

    def descriptor(self) -> str:
        """The .dzi file.  Source: the Deep Zoom file format of 2008."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" Overlap="0" '
            f'TileSize="{self.tile}">'
            f'<Size Width="{self.width}" Height="{self.height}"/></Image>\n'
        )


def deep_zoom_of(info: SlideInfo) -> DeepZoom:
    """How a pyramid is shown: in tiles of its own chunks' size, where those are square and of a useful size."""
    finest = info.levels[0]
    low, high = CHUNK_PX_RANGE
    square = finest.chunk_width == finest.chunk_height and low <= finest.chunk_width <= high
    return DeepZoom(info.width, info.height, finest.chunk_width if square else DEFAULT_TILE_PX)


def deep_zoom_tile(
    slide: Pyramid, picture: NDArray[np.uint8] | None, zoom: DeepZoom, level: int, column: int, row: int
) -> bytes:
    """One tile as JPEG; white where no tissue is stored.

    picture: (h, w, 3) uint8, the whole slide small, for levels as coarse as it.  Raises ValueError when there is no
    such tile, SlideError when the pyramid is damaged.
    """
    box = zoom.box(level, column, row)
    if (stored := _stored_chunk(slide, zoom, level, column, row, box)) is not None:
        return stored
    return encode_jpeg(_read_pixels(slide, picture, zoom, level, box), JPEG_QUALITY)


def _stored_chunk(slide: Pyramid, zoom: DeepZoom, level: int, column: int, row: int, box: Box) -> bytes | None:
    """The chunk that a tile is, if it is one; at the slide's right and lower edge chunks are larger than their tile."""
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
    slide: Pyramid, picture: NDArray[np.uint8] | None, zoom: DeepZoom, level: int, box: Box
) -> NDArray[np.uint8]:
    scale = zoom.scale(level)
    if picture is not None and picture.shape[1] * scale >= zoom.width:
        return _cut_thumbnail(picture, zoom, level, box)
    whole = Box(box.x * scale, box.y * scale, box.width * scale, box.height * scale)
    assert slide.info.mpp is not None  # no slide is in the store without
    return resample(slide.region(whole, slide.info.mpp * scale), box.width, box.height)


def _cut_thumbnail(picture: NDArray[np.uint8], zoom: DeepZoom, level: int, box: Box) -> NDArray[np.uint8]:
    """A tile of a level that is coarser than the picture."""
    high, wide = picture.shape[:2]
    width, height = zoom.size(level)
    left, right = box.x * wide // width, -(-box.right * wide // width)
    top, bottom = box.y * high // height, -(-box.bottom * high // height)
    return np.asarray(
        cv2.resize(picture[top:bottom, left:right], (box.width, box.height), interpolation=cv2.INTER_AREA)
    )
