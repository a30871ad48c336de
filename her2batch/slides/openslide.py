"""Everything OpenSlide opens: NDPI, MRXS, VMS, BIF, SCN, DICOM and more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from her2batch.errors import SlideError, one_line
from her2batch.slides.slide import DEFAULT_CHUNK, Box, Level, Slide, SlideInfo, resolve_mpp

CHUNK_RANGE = (64, 2048)
"""px; NDPI states chunks as wide as a run between restart markers and 8 px high: of no use to work in."""

CELL = 1024
"""px; where a level isn't a whole number of times smaller, OpenSlide interpolates between px by where a read starts.
So such levels are read in fixed cells, and a px doesn't depend on the box it is asked in."""

CUT = ("truncated", "premature", "eof", "short read", "end of file", "restart marker", "corrupt jpeg")
"""Words by which OpenSlide and its libraries say that data ends too early."""


class OpenSlideSlide(Slide):
    """A slide through OpenSlide. After an error its handle is dead; the slide has failed anyway."""

    def __init__(self, path: Path) -> None:
        """Open a slide. Raises SlideError unreadable or truncated."""
        try:
            self._slide = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError, UnicodeError) as error:
            raise _as_slide_error(path, error) from error
        self._closed = False
        facts = self._slide.properties
        objective = _number(facts.get("openslide.objective-power"))
        mpp, source = resolve_mpp(
            _number(facts.get("openslide.mpp-x")), _number(facts.get("openslide.mpp-y")), objective
        )
        levels = tuple(Level(*size, *_chunk(facts, k)) for k, size in enumerate(self._slide.level_dimensions))
        self._downsamples = self._slide.level_downsamples
        background = facts.get("openslide.background-color", "FFFFFF")
        self._background = np.array([int(background[k : k + 2], 16) for k in (0, 2, 4)], np.uint16)
        self.info = SlideInfo(path, facts["openslide.vendor"], "openslide", levels, mpp, source, objective)

    def close(self) -> None:
        """Free the file."""
        if not self._closed:
            self._slide.close()
        self._closed = True

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Read the last chunk of every level, where a cut file has nothing; and everything when there are holes."""
        for level, size in enumerate(self.info.levels):
            width, height = min(size.width, size.chunk_width), min(size.height, size.chunk_height)
            self._pixels(Box(size.width - width, size.height - height, width, height), level)
        super().validate(holes)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        if self._downsamples[level].is_integer():
            return self._region(box, level)
        size = self.info.levels[level]
        out = np.empty((box.height, box.width, 3), np.uint8)
        for y in range(box.y // CELL * CELL, box.bottom, CELL):
            for x in range(box.x // CELL * CELL, box.right, CELL):
                cell = Box(x, y, min(CELL, size.width - x), min(CELL, size.height - y))
                left, top = max(x, box.x), max(y, box.y)
                right, bottom = min(cell.right, box.right), min(cell.bottom, box.bottom)
                pixels = self._region(cell, level)[top - y : bottom - y, left - x : right - x]
                out[top - box.y : bottom - box.y, left - box.x : right - box.x] = pixels
        return out

    def _region(self, box: Box, level: int) -> NDArray[np.uint8]:
        corner = (round(box.x * self._downsamples[level]), round(box.y * self._downsamples[level]))
        try:
            rgba = np.asarray(self._slide.read_region(corner, level, (box.width, box.height)))
        except (openslide.OpenSlideError, OSError) as error:
            raise _as_slide_error(self.info.path, error) from error
        return self._composed(rgba)

    def _composed(self, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(h, w, 4) → (h, w, 3) uint8: what holds no image shows the slide's background colour."""
        alpha = rgba[..., 3]
        pixels = np.ascontiguousarray(rgba[..., :3])
        if alpha.min() == 255:
            return pixels
        a = alpha[..., None].astype(np.uint16)
        return ((pixels * a + self._background * (255 - a) + 127) // 255).astype(np.uint8)


def _chunk(facts: Mapping[str, str], level: int) -> tuple[int, int]:
    """Width and height of a level's chunks as OpenSlide states them, where they are of a useful size."""
    stated = [_number(facts.get(f"openslide.level[{level}].tile-{axis}")) or 0 for axis in ("width", "height")]
    low, high = CHUNK_RANGE
    return (
        (int(stated[0]), int(stated[1]))
        if low <= min(stated) and max(stated) <= high
        else (DEFAULT_CHUNK, DEFAULT_CHUNK)
    )


def _as_slide_error(path: Path, error: Exception) -> SlideError:
    words = one_line(error) or type(error).__name__
    code = "truncated" if any(word in words.lower() for word in CUT) else "unreadable"
    return SlideError(code, path, f"OpenSlide can't read it ({words})")


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
