"""The interface of all slide readers: metadata (SlideInfo), rectangles (Box) and the base class Slide.

Bounds, resolution and resampling are handled here for all formats. A reader opens a file, fills in `info` and returns
the pixels of a rectangle of one level: `_pixels(box, level)`.
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
from her2batch.settings import is_same_mpp

MPP_RANGE = (0.05, 20.0)
"""Plausible resolutions of a slide, µm/px. Other values in a file's tags, such as the default 72 dpi, are ignored."""

DISAGREE = "mpp-sources-disagree"
"""Flag of a slide whose file contradicts itself about its resolution."""

MPP_OF_20X = 0.5
"""Resolution of a 20× scan, µm/px; mpp · objective is close to 10 on all common scanners."""

WHITE = 255
"""Grey level of pixels that a slide has no image for."""

DEFAULT_CHUNK = 256
"""Edge of the chunks in which a slide is processed when the chunks of its file have no useful size, px."""

TILE_OVERSAMPLING = 2
"""Tiles are read from a level finer than their resolution by this factor, where one exists, and shrunk. JPEG stores
colour at half resolution (4:2:0), and stained membranes are one or two px wide at 0.5 µm/px: read from the level at
0.5 µm/px itself, 11 of 28 synthetic HER2 0 slides were scored 1+, and none when read from the level at 0.25."""

SHRINK_FACTORS = (8, 4, 2, 1)
"""Factors by which a level can be shrunk while it is decoded (scaled inverse DCT of JPEG), coarsest first."""

MAX_READ_PIXELS = 400_000_000
"""Largest number of pixels of one read (1.2 GB). A larger request is a programming error or a malicious tag."""

MIN_BLACK_PIXELS = 170
"""Number of black pixels that 512 zero bytes make in an uncompressed image."""

STRIP_PIXELS = 64_000_000
"""Largest number of pixels of a strip when a whole level is read (192 MB)."""

BoxArray = NDArray[np.int64]
"""Rectangles: (n, 4) x, y, width, height."""


class Box(NamedTuple):
    """A rectangle: x, y (top left), width, height. In level-0 px, unless a function documents another unit."""

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
    """One resolution level of a slide: its size and the size of its compressed chunks, in px of this level."""

    width: int
    height: int
    chunk_width: int
    chunk_height: int

    def shrinks_by(self, factor: int) -> bool:
        """Return whether chunks that are shrunk by a factor still join without a gap: it divides their edges."""
        return self.chunk_width % factor == 0 and self.chunk_height % factor == 0

    def downscale(self, factor: int) -> Level:
        """Return the level as it is when read shrunk by a factor. Sizes are rounded up to whole px."""
        if factor == 1:
            return self
        width, height = -(-self.width // factor), -(-self.height // factor)
        return Level(width, height, max(1, self.chunk_width // factor), max(1, self.chunk_height // factor))


class MissingArea(NamedTuple):
    """Where level 0 of a slide has no image.

    mask: (h, w) bool, of cells that together cover width × height level-0 px from the top left corner of the slide; the
    last cells may extend beyond it.
    """

    mask: NDArray[np.bool_]
    width: float
    height: float


@dataclass(frozen=True)
class SlideInfo:
    """Metadata of a slide. `mpp` is µm per level-0 px, None when the file states neither mpp nor objective."""

    path: Path
    format: str  # aperio · philips · ome-tiff · generic-tiff · hamamatsu · dicom · … · pyramid
    reader: str  # tiff · cucim · nvimgcodec · openslide · pyramid
    levels: tuple[Level, ...]  # finest first
    mpp: float | None
    mpp_source: str | None  # file · objective · override
    objective: float | None
    notes: tuple[str, ...] = ()  # corrections made by the reader, and doubts of it; they become quality flags
    members: tuple[Path, ...] = ()  # all files of the slide, where `path` alone is not enough to open it
    mpp_problem: str | None = None  # why the resolution that the file states cannot be used

    @property
    def width(self) -> int:
        """Width of the slide, level-0 px."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Height of the slide, level-0 px."""
        return self.levels[0].height

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 px per px of each level (mean of the two axes)."""
        base = self.levels[0]
        return tuple((base.width / level.width + base.height / level.height) / 2 for level in self.levels)

    def with_mpp(self, override: float | None, force: float | None = None) -> SlideInfo:
        """Return the metadata with a resolution: from the file, else from the objective, else the override (µm/px).

        force: replaces all three, with the flag `mpp-forced` where the file states another resolution.  Raises
        SlideError `no-mpp` when there is none of the four.
        """
        if force is not None and (self.mpp is None or not is_same_mpp(self.mpp, force)):
            notes = tuple(note for note in self.notes if note != DISAGREE)
            notes += ("mpp-forced",) if self.mpp is not None or self.mpp_problem else ()
            return replace(self, mpp=force, mpp_source="override", notes=notes)
        if self.mpp is not None:
            return self
        if override is None:
            what = "the file states neither a plausible mpp nor an objective"
            raise SlideError("no-mpp", self.path, f"{what}: {self.mpp_problem}" if self.mpp_problem else what)
        return replace(self, mpp=override, mpp_source="override")


def resolve_mpp(mpp_x: float | None, mpp_y: float | None, objective: float | None) -> tuple[float | None, str | None]:
    """Return the resolution (µm/px) and its source, from the values stated in a file.

    Both axes must lie in MPP_RANGE and agree within 10 %. Otherwise the objective is used (20× is 0.5 µm/px), and
    without a plausible objective the result is (None, None).
    """
    axes = [mpp for mpp in (mpp_x, mpp_y) if mpp is not None and math.isfinite(mpp)]
    low, high = MPP_RANGE
    if axes and all(low <= mpp <= high for mpp in axes) and max(axes) <= 1.1 * min(axes):
        return sum(axes) / len(axes), "file"
    if objective is not None and math.isfinite(objective) and objective > 0:
        mpp = MPP_OF_20X * 20 / objective
        if low <= mpp <= high:
            return mpp, "objective"
    return None, None


class Slide(ABC):
    """An open slide. Subclasses set `info` and implement `_pixels`."""

    info: SlideInfo

    @abstractmethod
    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read the pixels of a box (in px of `level`, inside the level): (height, width, 3) uint8 RGB.

        Raises SlideError `truncated` or `unreadable`. Never returns pixels that could not be decoded.
        """

    def _read_shrunk(self, box: Box, level: int, shrink: int, needed: BoxArray | None) -> NDArray[np.uint8]:
        """Read a box of a level that is shrunk. Readers that decode chunks override this and decode less."""
        if shrink == 1:
            return self._pixels(box, level)
        size = self.info.levels[level]
        x, y = box.x * shrink, box.y * shrink
        unshrunk = Box(x, y, min(box.width * shrink, size.width - x), min(box.height * shrink, size.height - y))
        needed_unshrunk = None if needed is None else needed * shrink
        return resample(self._read_shrunk(unshrunk, level, 1, needed_unshrunk), box.width, box.height)

    def close(self) -> None:  # noqa: B027  (a reader without a handle has nothing to free)
        """Close the file. The slide cannot be read afterwards."""

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Refuse a damaged file before its pixels are used. Raises SlideError `truncated` or `unreadable`.

        holes: byte ranges (start, end) of the file that contain only zeros (`Fingerprint.holes`). A file with holes
        is read once completely, every level, so that decoding errors are found here. An uncompressed image decodes
        zeros to black without an error, so as many black pixels as a hole would leave count as damage. Readers that
        have a table of their chunks override this with a more precise check.
        """
        for level, size in enumerate(self.info.levels if holes else ()):
            boxes = split_box(Box(0, 0, size.width, size.height), 2048)
            black = sum(int(np.count_nonzero(~self._pixels(box, level).any(axis=2))) for box in boxes)
            if black >= MIN_BLACK_PIXELS:
                what = f"parts of the file are zeros, and {black} px of its level {level} are pure black"
                raise SlideError("truncated", self.info.path, what)

    def read(self, box: Box, level: int = 0, shrink: int = 1, needed: BoxArray | None = None) -> NDArray[np.uint8]:
        """Read a box, in px of `level` or of the level shrunk by 2, 4 or 8: (height, width, 3) uint8 RGB.

        JPEG is shrunk while it is decoded: a level of 4:2:0 JPEG that is halved has its own colour in every px, and
        takes 0.6–0.7 of the time.  needed: (n, 4) x, y, width, height inside the box; pixels outside these rectangles
        are undefined.  Raises ValueError when the box is empty or leaves the level, SlideError when the pixels cannot
        be read.
        """
        if not 0 <= level < len(self.info.levels):
            raise ValueError(f"{self.info.path}: no level {level}; the slide has {len(self.info.levels)}")
        size = self.info.levels[level].downscale(shrink)
        inside = min(box.x, box.y) >= 0 and box.right <= size.width and box.bottom <= size.height
        if box.width < 1 or box.height < 1 or not inside:
            raise ValueError(f"{self.info.path}: {box} leaves level {level} ({size.width} × {size.height} px)")
        if box.width * box.height > MAX_READ_PIXELS:
            raise SlideError("out-of-memory", self.info.path, f"one read of {box.width} × {box.height} px is too large")
        return self._read_shrunk(box, level, shrink, needed)

    def missing_area(self) -> MissingArea | None:
        """Return where level 0 has no image, because its tiles were never stored; None for a complete slide."""
        return None

    def level_for(self, downsample: float) -> int:
        """Return the coarsest level that is no coarser than `downsample` (level-0 px per px; tolerance 1 %)."""
        fine_enough = [k for k, ds in enumerate(self.info.level_downsamples) if ds <= downsample * 1.01]
        return fine_enough[-1] if fine_enough else 0

    def tile_source(self, downsample: float) -> tuple[int, int]:
        """Return the level from which tiles of a downsample are read, and the factor by which it is shrunk."""
        level = self.level_for(downsample / TILE_OVERSAMPLING)
        return level, self.shrink_for(level, downsample)

    def shrink_for(self, level: int, downsample: float) -> int:
        """Return the largest factor that leaves a shrunk level no coarser than `downsample` (tolerance 3 %)."""
        level_downsample = self.info.level_downsamples[level]
        return next((factor for factor in SHRINK_FACTORS if level_downsample * factor <= downsample * 1.03), 1)

    def region(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Read a box in level-0 px, area-resampled to `mpp` µm/px: (h, w, 3) uint8 RGB, white outside the slide.

        h, w: height and width of the box divided by mpp / slide mpp, rounded, at least 1.
        """
        if self.info.mpp is None:
            raise SlideError("no-mpp", self.info.path, "the slide has no resolution, so it cannot be read at an mpp")
        scale = mpp / self.info.mpp
        out_w, out_h = max(1, round(box.width / scale)), max(1, round(box.height / scale))
        level = self.level_for(scale)
        return resample(self._padded(box, level, self.shrink_for(level, scale)), out_w, out_h)

    def overview(self, mpp: float) -> NDArray[np.uint8]:
        """Read the whole slide at about `mpp` µm/px, strip by strip: (h, w, 3) uint8 RGB."""
        if self.info.mpp is None:
            raise SlideError("no-mpp", self.info.path, "the slide has no resolution, so it cannot be read at an mpp")
        return self.whole_slide(mpp / self.info.mpp)

    def whole_slide(self, downsample: float) -> NDArray[np.uint8]:
        """Read the whole slide with `downsample` level-0 px per px: (h, w, 3) uint8 RGB, area-resampled."""
        level = self.level_for(downsample)
        shrink = self.shrink_for(level, downsample)
        size = self.info.levels[level].downscale(shrink)
        out_w = max(1, round(self.info.width / downsample))
        out_h = max(1, round(self.info.height / downsample))
        out = np.empty((out_h, out_w, 3), np.uint8)
        strip_height = min(size.chunk_height * 2, max(1, STRIP_PIXELS // size.width))
        rows = max(1, math.ceil(out_h * strip_height / size.height))  # output rows of one strip
        for top in range(0, out_h, rows):
            bottom = min(out_h, top + rows)
            y0 = top * size.height // out_h
            y1 = max(bottom * size.height // out_h, y0 + 1)
            strip = self.read(Box(0, y0, size.width, y1 - y0), level, shrink)
            out[top:bottom] = resample(strip, out_w, bottom - top)
        return out

    def _padded(self, box: Box, level: int, shrink: int) -> NDArray[np.uint8]:
        """Read a level-0 box from a shrunk level, white outside the slide."""
        size = self.info.levels[level].downscale(shrink)
        fx, fy = size.width / self.info.width, size.height / self.info.height
        x0, y0 = round(box.x * fx), round(box.y * fy)
        x1, y1 = max(round(box.right * fx), x0 + 1), max(round(box.bottom * fy), y0 + 1)
        cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, size.width), min(y1, size.height)
        if (cx0, cy0, cx1, cy1) == (x0, y0, x1, y1):
            return self.read(Box(x0, y0, x1 - x0, y1 - y0), level, shrink)
        if (x1 - x0) * (y1 - y0) > MAX_READ_PIXELS:
            raise SlideError("out-of-memory", self.info.path, f"one read of {x1 - x0} × {y1 - y0} px is too large")
        out = np.full((y1 - y0, x1 - x0, 3), WHITE, np.uint8)
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
    """Resize (h, w, 3) uint8 to (height, width, 3) uint8: area mean to shrink, linear interpolation to enlarge."""
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = rgb.shape[0] >= height and rgb.shape[1] >= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cast(NDArray[np.uint8], cv2.resize(rgb, (width, height), interpolation=interpolation))


def split_box(box: Box, edge: int) -> list[Box]:
    """Split a box into squares of at most `edge` px, row by row."""
    return [
        Box(x, y, min(edge, box.right - x), min(edge, box.bottom - y))
        for y in range(box.y, box.bottom, edge)
        for x in range(box.x, box.right, edge)
    ]


def assemble_chunks(
    box: Box,
    chunk: tuple[int, int],
    decode_chunk: Callable[[int, int], NDArray[np.uint8] | None],
    needed: BoxArray | None = None,
) -> NDArray[np.uint8]:
    """Assemble a box from the chunks that it overlaps: (height, width, 3) uint8.

    chunk: width and height.  decode_chunk: (row, column) → (h, w, 3) uint8 that covers at least the overlap with the
    box; None for a white chunk.  needed: see `Slide.read`; chunks outside these rectangles are not decoded.
    """
    chunk_width, chunk_height = chunk
    out = np.empty((box.height, box.width, 3), np.uint8)
    first_row, first_column = box.y // chunk_height, box.x // chunk_width
    rows, columns = -(-box.bottom // chunk_height) - first_row, -(-box.right // chunk_width) - first_column
    decode = np.full((rows, columns), needed is None)
    for x, y, width, height in () if needed is None else needed.tolist():
        top, bottom = (box.y + y) // chunk_height, -(-(box.y + y + height) // chunk_height)
        left, right = (box.x + x) // chunk_width, -(-(box.x + x + width) // chunk_width)
        decode[top - first_row : bottom - first_row, left - first_column : right - first_column] = True
    for row, column in (np.argwhere(decode) + np.array([first_row, first_column])).tolist():
        x, y = column * chunk_width, row * chunk_height
        left, top = max(box.x, x), max(box.y, y)
        right, bottom = min(box.right, x + chunk_width), min(box.bottom, y + chunk_height)
        pixels = decode_chunk(row, column)
        target = out[top - box.y : bottom - box.y, left - box.x : right - box.x]
        target[:] = WHITE if pixels is None else pixels[top - y : bottom - y, left - x : right - x]
    return out
