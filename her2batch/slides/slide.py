"""What a slide is: its facts (SlideInfo), rectangles (Box) and the base class every reader fills in.

Bounds, mpp and resampling are handled here once. A reader opens a file, states its facts and hands out the pixels
of a rectangle of one level: `_pixels(box, level)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError

MPP_RANGE = (0.05, 20.0)
"""µm/px that a slide can have; anything else in a file's tags (72 dpi defaults) counts as none."""

MPP_OF_20X = 0.5
"""µm/px of a 20× scan; mpp · objective is close to 10 on all common scanners."""

WHITE = 255

DEFAULT_CHUNK = 256
"""Edge of the chunks that a slide is worked through in where its file has none of a useful size, px."""

TILE_OVERSAMPLING = 2
"""Tiles are read from a level that is finer by this, where there is one, and shrunk: JPEG keeps colour at half
resolution (4:2:0), and a membrane's brown is one or two px wide at 0.5 µm/px. Read from the level at 0.5 µm/px itself,
11 of 28 synthetic HER2 0 slides came out as 1+, and none from the level at 0.25."""

SHRINK_FACTORS = (8, 4, 2, 1)
"""By what a level can be shrunk while it is read: what the transform inside JPEG offers, coarsest first."""

MAX_READ_PIXELS = 400_000_000
"""Pixels one read may hold (1.2 GB): a larger request is a fault of the caller, or of a hostile tag."""

MIN_BLACK_PIXELS = 170
"""Pixels that 512 zero bytes are in an uncompressed image."""

STRIP_PIXELS = 64_000_000
"""Pixels of a strip in which a whole level is read (192 MB)."""


BoxArray = NDArray[np.int64]
"""(n, 4) x, y, width, height of rectangles."""


class Box(NamedTuple):
    """A rectangle: x, y (top left), width, height, in level-0 px unless the function that takes it says otherwise."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """First column right of the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row below the box."""
        return self.y + self.height


@dataclass(frozen=True)
class Level:
    """One step of the pyramid: its size and the size of the chunks it is compressed in, in px of this level."""

    width: int
    height: int
    chunk_width: int
    chunk_height: int

    def downscale(self, by: int) -> Level:
        """The level as it is when it is read shrunk; a last px counts though only part of it is there."""
        if by == 1:
            return self
        return Level(-(-self.width // by), -(-self.height // by), self.chunk_width // by, self.chunk_height // by)


@dataclass(frozen=True)
class SlideInfo:
    """The facts of a slide. `mpp` is µm per level-0 px, None when the file gives neither mpp nor objective."""

    path: Path
    format: str  # aperio · philips · ome-tiff · generic-tiff · hamamatsu · dicom · … · pyramid
    reader: str  # tiff · cucim · openslide · pyramid
    levels: tuple[Level, ...]  # 0 the finest
    mpp: float | None
    mpp_source: str | None  # file · objective · override
    objective: float | None
    notes: tuple[str, ...] = ()  # what the reader had to mend; they become quality flags

    @property
    def width(self) -> int:
        """Level-0 px."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Level-0 px."""
        return self.levels[0].height

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 px per px of each level (mean of the two axes)."""
        base = self.levels[0]
        return tuple((base.width / one.width + base.height / one.height) / 2 for one in self.levels)

    def with_mpp(self, override: float | None) -> SlideInfo:
        """The same slide with its resolution settled: the file's, else the objective's, else the override.

        Raises SlideError `no-mpp` when none of the three gives one.
        """
        if self.mpp is not None:
            return self
        if override is None:
            raise SlideError("no-mpp", self.path, "the file gives neither a plausible mpp nor an objective")
        return replace(self, mpp=override, mpp_source="override")


def resolve_mpp(mpp_x: float | None, mpp_y: float | None, objective: float | None) -> tuple[float | None, str | None]:
    """Resolution (µm/px) and where it comes from, out of what a file says.

    Both axes must lie in MPP_RANGE and agree within 10 %; otherwise the objective decides (20× is 0.5 µm/px);
    otherwise (None, None).
    """
    axes = [v for v in (mpp_x, mpp_y) if v is not None and math.isfinite(v)]
    low, high = MPP_RANGE
    if axes and all(low <= v <= high for v in axes) and max(axes) <= 1.1 * min(axes):
        return sum(axes) / len(axes), "file"
    if objective is not None and math.isfinite(objective) and objective > 0:
        mpp = MPP_OF_20X * 20 / objective
        if low <= mpp <= high:
            return mpp, "objective"
    return None, None


class Slide(ABC):
    """An open slide. Subclasses set `info` and fill in `_pixels`."""

    info: SlideInfo

    @abstractmethod
    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Pixels of a box (px of `level`, inside it): (height, width, 3) uint8.

        Raises SlideError `truncated` or `unreadable`; never hands out pixels it could not decode.
        """

    def _read_shrunk(self, box: Box, level: int, shrink: int, parts: BoxArray | None) -> NDArray[np.uint8]:
        """The same of a level that is `shrink` times smaller. A reader of chunks does better: it decodes less."""
        if shrink == 1:
            return self._pixels(box, level)
        size = self.info.levels[level]
        x, y = box.x * shrink, box.y * shrink
        whole = Box(x, y, min(box.width * shrink, size.width - x), min(box.height * shrink, size.height - y))
        wanted = None if parts is None else parts * shrink
        return resample(self._read_shrunk(whole, level, 1, wanted), box.width, box.height)

    def close(self) -> None:  # noqa: B027  (a reader without a handle has nothing to free)
        """Free the file. The slide can't be read afterwards."""

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Refuse a damaged file before its pixels are used. Raises SlideError `truncated` or `unreadable`.

        holes: byte ranges (start, end) of the file that hold nothing but zeros (see `files.fingerprint`). Here a file
        with holes is read through once, every level, so that what its decoder notices is noticed now; and as zeros in
        an uncompressed image are no more than black to a decoder, as much black as a hole would leave counts as one.
        A reader that knows where its chunks lie does better.
        """
        for level, size in enumerate(self.info.levels if holes else ()):
            boxes = split_box(Box(0, 0, size.width, size.height), 2048)
            black = sum(int(np.count_nonzero(~self._pixels(box, level).any(axis=2))) for box in boxes)
            if black >= MIN_BLACK_PIXELS:
                what = f"parts of the file are zeros, and {black} px of its level {level} are black without any noise"
                raise SlideError("truncated", self.info.path, what)

    def read(self, box: Box, level: int = 0, shrink: int = 1, parts: BoxArray | None = None) -> NDArray[np.uint8]:
        """Pixels of a box in px of `level`, or of the level shrunk by 2, 4 or 8: (height, width, 3) uint8 RGB.

        Shrinking is part of decoding where the slide is JPEG: a level of 4:2:0 JPEG, halved, has the colour of every
        px, at 0.6–0.7 of the time.  parts: (n, 4) x, y, width, height inside the box; the pixels outside of them are
        not asked for, and hold anything.  Raises ValueError when the box is empty or leaves the level, SlideError when
        the file can't give the pixels.
        """
        if not 0 <= level < len(self.info.levels):
            raise ValueError(f"{self.info.path}: no level {level}; it has {len(self.info.levels)}")
        size = self.info.levels[level].downscale(shrink)
        inside = min(box.x, box.y) >= 0 and box.right <= size.width and box.bottom <= size.height
        if box.width < 1 or box.height < 1 or not inside:
            raise ValueError(f"{self.info.path}: {box} leaves level {level} ({size.width} × {size.height} px)")
        if box.width * box.height > MAX_READ_PIXELS:
            raise SlideError("out-of-memory", self.info.path, f"one read of {box.width} × {box.height} px")
        return self._read_shrunk(box, level, shrink, parts)

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is no coarser than `downsample` (level-0 px per px; 1 % of slack)."""
        fitting = [k for k, ds in enumerate(self.info.level_downsamples) if ds <= downsample * 1.01]
        return fitting[-1] if fitting else 0

    def tile_source(self, downsample: float) -> tuple[int, int]:
        """The level that tiles of a downsample are read from, and by what it is shrunk."""
        level = self.level_for(downsample / TILE_OVERSAMPLING)
        return level, self.shrink_for(level, downsample)

    def shrink_for(self, level: int, downsample: float) -> int:
        """By what a level can be shrunk so that it is no coarser than `downsample` (3 % of slack)."""
        ours = self.info.level_downsamples[level]
        return next((by for by in SHRINK_FACTORS if ours * by <= downsample * 1.03), 1)

    def region(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """A box in level-0 px, area-resampled to `mpp` µm/px: (h, w, 3) uint8; what lies outside the slide is white.

        h, w: the box over mpp / slide mpp, rounded, at least 1.
        """
        if self.info.mpp is None:
            raise SlideError("no-mpp", self.info.path, "a region at an mpp needs the slide's own")
        scale = mpp / self.info.mpp
        out_w, out_h = max(1, round(box.width / scale)), max(1, round(box.height / scale))
        level = self.level_for(scale)
        return resample(self._padded(box, level, self.shrink_for(level, scale)), out_w, out_h)

    def overview(self, mpp: float) -> NDArray[np.uint8]:
        """The whole slide at about `mpp` µm/px, read strip by strip: (h, w, 3) uint8."""
        if self.info.mpp is None:
            raise SlideError("no-mpp", self.info.path, "an overview at an mpp needs the slide's own")
        return self.whole_slide(mpp / self.info.mpp)

    def whole_slide(self, downsample: float) -> NDArray[np.uint8]:
        """The whole slide with `downsample` level-0 px per px: (h, w, 3) uint8, area-resampled."""
        level = self.level_for(downsample)
        shrink = self.shrink_for(level, downsample)
        size = self.info.levels[level].downscale(shrink)
        out_w = max(1, round(self.info.width / downsample))
        out_h = max(1, round(self.info.height / downsample))
        out = np.empty((out_h, out_w, 3), np.uint8)
        high = min(size.chunk_height * 2, max(1, STRIP_PIXELS // size.width))
        rows = max(1, math.ceil(out_h * high / size.height))  # output rows a strip
        for top in range(0, out_h, rows):
            bottom = min(out_h, top + rows)
            y0 = top * size.height // out_h
            y1 = max(bottom * size.height // out_h, y0 + 1)
            strip = self.read(Box(0, y0, size.width, y1 - y0), level, shrink)
            out[top:bottom] = resample(strip, out_w, bottom - top)
        return out

    def _padded(self, box: Box, level: int, shrink: int) -> NDArray[np.uint8]:
        """A level-0 box read at a level that is shrunk; white outside the slide."""
        size = self.info.levels[level].downscale(shrink)
        fx, fy = size.width / self.info.width, size.height / self.info.height
        x0, y0 = round(box.x * fx), round(box.y * fy)
        x1, y1 = max(round(box.right * fx), x0 + 1), max(round(box.bottom * fy), y0 + 1)
        cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, size.width), min(y1, size.height)
        if (cx0, cy0, cx1, cy1) == (x0, y0, x1, y1):
            return self.read(Box(x0, y0, x1 - x0, y1 - y0), level, shrink)
        if (x1 - x0) * (y1 - y0) > MAX_READ_PIXELS:
            raise SlideError("out-of-memory", self.info.path, f"one read of {x1 - x0} × {y1 - y0} px")
        out = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
        if cx0 < cx1 and cy0 < cy1:
            inside = Box(cx0, cy0, cx1 - cx0, cy1 - cy0)
            out[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0] = self.read(inside, level, shrink)
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def resample(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 → (height, width, 3) uint8: area mean when shrinking, linear when growing."""
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = rgb.shape[0] >= height and rgb.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cast(NDArray[np.uint8], cv2.resize(rgb, (width, height), interpolation=how))


def split_box(box: Box, edge: int) -> list[Box]:
    """A box cut into squares of at most `edge` px, row by row."""
    return [
        Box(x, y, min(edge, box.right - x), min(edge, box.bottom - y))
        for y in range(box.y, box.bottom, edge)
        for x in range(box.x, box.right, edge)
    ]


def assemble_chunks(
    box: Box,
    chunk: tuple[int, int],
    decoded: Callable[[int, int], NDArray[np.uint8] | None],
    parts: BoxArray | None = None,
) -> NDArray[np.uint8]:
    """A box put together from the chunks it touches: (height, width, 3) uint8.

    chunk: width, height.  decoded: row and column → (h, w, 3) uint8, of which the box's part is there; None for white.
    parts: see `Slide.read`; a chunk that none of them touches is left out.
    """
    wide, high = chunk
    out = np.empty((box.height, box.width, 3), np.uint8)
    top_row, left_column = box.y // high, box.x // wide
    wanted = np.full((-(-box.bottom // high) - top_row, -(-box.right // wide) - left_column), parts is None)
    for x, y, width, height in () if parts is None else parts.tolist():
        rows = slice((box.y + y) // high - top_row, -(-(box.y + y + height) // high) - top_row)
        wanted[rows, (box.x + x) // wide - left_column : -(-(box.x + x + width) // wide) - left_column] = True
    for down, across in np.argwhere(wanted).tolist():
        row, column = top_row + down, left_column + across
        x, y = column * wide, row * high
        left, top = max(box.x, x), max(box.y, y)
        right, bottom = min(box.right, x + wide), min(box.bottom, y + high)
        pixels = decoded(row, column)
        place = out[top - box.y : bottom - box.y, left - box.x : right - box.x]
        place[:] = WHITE if pixels is None else pixels[top - y : bottom - y, left - x : right - x]
    return out
