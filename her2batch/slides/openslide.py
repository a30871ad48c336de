"""Slides read through OpenSlide: MRXS, VMS, BIF, SCN, DICOM, unusual NDPI and TIFF files, and more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from her2batch.errors import SlideError, one_line
from her2batch.slides.slide import DEFAULT_CHUNK, Box, Level, Slide, SlideInfo, resolve_mpp

CHUNK_RANGE = (64, 2048)
"""Useful chunk sizes, px. For NDPI, OpenSlide states chunks that are 8 px high and as wide as a restart interval."""

CELL = 1024
"""Edge of the cells in which a level is read when its downsample is no integer, px. OpenSlide interpolates such levels
depending on where a read starts; fixed cells make a px independent of the box that is read."""

TRUNCATION_WORDS = ("truncated", "premature", "eof", "short read", "end of file", "restart marker", "corrupt jpeg")
"""Words in error messages of OpenSlide and its libraries that mean truncated data."""


class OpenSlideSlide(Slide):
    """A slide read through OpenSlide. After an error, OpenSlide refuses all further reads of the slide."""

    def __init__(self, path: Path) -> None:
        """Open a slide. Raises SlideError unreadable or truncated."""
        try:
            self._slide = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError, UnicodeError) as error:
            raise _slide_error(path, error) from error
        self._closed = False
        properties = self._slide.properties
        objective = _parse_float(properties.get("openslide.objective-power"))
        mpp_x, mpp_y = (_parse_float(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        mpp, source = resolve_mpp(mpp_x, mpp_y, objective)
        sizes = self._slide.level_dimensions
        levels = tuple(Level(*size, *_chunk_size(properties, k)) for k, size in enumerate(sizes))
        self._downsamples = self._slide.level_downsamples
        background = properties.get("openslide.background-color", "FFFFFF")
        self._background = np.array([int(background[k : k + 2], 16) for k in (0, 2, 4)], np.uint16)
        self.info = SlideInfo(path, properties["openslide.vendor"], "openslide", levels, mpp, source, objective)

    def close(self) -> None:
        """Close the file."""
        if not self._closed:
            self._slide.close()
        self._closed = True

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Read the last chunk of every level, which a truncated file lacks, and everything if the file has holes."""
        for level, size in enumerate(self.info.levels):
            width, height = min(size.width, size.chunk_width), min(size.height, size.chunk_height)
            self._pixels(Box(size.width - width, size.height - height, width, height), level)
        super().validate(holes)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        if self._downsamples[level].is_integer():
            return self._read_region(box, level)
        size = self.info.levels[level]
        out = np.empty((box.height, box.width, 3), np.uint8)
        for y in range(box.y // CELL * CELL, box.bottom, CELL):
            for x in range(box.x // CELL * CELL, box.right, CELL):
                cell = Box(x, y, min(CELL, size.width - x), min(CELL, size.height - y))
                left, top = max(x, box.x), max(y, box.y)
                right, bottom = min(cell.right, box.right), min(cell.bottom, box.bottom)
                pixels = self._read_region(cell, level)[top - y : bottom - y, left - x : right - x]
                out[top - box.y : bottom - box.y, left - box.x : right - box.x] = pixels
        return out

    def _read_region(self, box: Box, level: int) -> NDArray[np.uint8]:
        corner = (round(box.x * self._downsamples[level]), round(box.y * self._downsamples[level]))
        try:
            rgba = np.asarray(self._slide.read_region(corner, level, (box.width, box.height)))
        except (openslide.OpenSlideError, OSError) as error:
            raise _slide_error(self.info.path, error) from error
        return self._blend_background(rgba)

    def _blend_background(self, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert (h, w, 4) to (h, w, 3) uint8: transparent pixels get the background colour of the slide."""
        alpha = rgba[..., 3]
        pixels = np.ascontiguousarray(rgba[..., :3])
        if alpha.min() == 255:
            return pixels
        opacity = alpha[..., None].astype(np.uint16)
        return ((pixels * opacity + self._background * (255 - opacity) + 127) // 255).astype(np.uint8)


def _chunk_size(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    """Return width and height of a level's chunks as stated by OpenSlide, or the default if they are not useful."""
    names = (f"openslide.level[{level}].tile-{axis}" for axis in ("width", "height"))
    width, height = (_parse_float(properties.get(name)) or 0 for name in names)
    low, high = CHUNK_RANGE
    if low <= min(width, height) and max(width, height) <= high:
        return int(width), int(height)
    return DEFAULT_CHUNK, DEFAULT_CHUNK


def _slide_error(path: Path, error: Exception) -> SlideError:
    reason = one_line(error) or type(error).__name__
    code = "truncated" if any(word in reason.lower() for word in TRUNCATION_WORDS) else "unreadable"
    return SlideError(code, path, f"OpenSlide cannot read the file ({reason})")


def _parse_float(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
