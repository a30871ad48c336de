"""Tile tables of TIFF slides: the position of every compressed tile, checked against the file before it is used.

tifffile parses a file, but does not validate it: of a truncated file it returns the part before the cut as if it were
complete (23 of 60 slides cut at random). Therefore all directories and numbers are checked here first, and pixels are
read only from byte ranges that passed.
"""

from __future__ import annotations

import html
import logging
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import ByteRange, check_directories, is_tiff

COMPRESSIONS = {1: "raw", 5: "lzw", 7: "jpeg", 8: "deflate", 32946: "deflate", 33003: "jpeg2000", 33004: "jpeg2000",
                33005: "jpeg2000", 34712: "jpeg2000", 34925: "lzma", 50000: "zstd", 50001: "webp"}  # fmt: skip

YCBCR_J2K = 33003
RGB, YCBCR = 2, 6
TIFFFILE_ERRORS = (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error,
           OverflowError, ZeroDivisionError, RuntimeError, EOFError)  # fmt: skip
"""Exceptions that tifffile raises for damaged files."""

NATIVE_FORMATS = frozenset({"aperio", "philips", "ome-tiff", "generic-tiff"})
"""TIFF formats whose tile tables are read here. OpenSlide reads the others, which store tiles in proprietary ways."""

MAX_TILES = 20_000_000
MAX_TILE_PIXELS = 100_000_000
"""Largest tile or strip, px: tiles are decoded as a whole."""

MAX_EXTRA_BYTES = 1_000_000
"""Bytes that a compressed tile may have in addition to eight times the bytes of its pixels."""

MAX_LEVELS = 100
"""Largest number of levels that is read from a Philips description."""

ASPECT_TOLERANCE = 0.02
"""Relative difference between the aspect ratios of two levels of one slide."""


class UnsupportedTiff(SlideError):
    """A valid TIFF with a feature that tile tables do not support; OpenSlide may read it."""

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__("unreadable", path, what)
        self.args = (path, what)


@dataclass(frozen=True)
class TileTable:
    """Compressed tiles of one level: (across · down), row-major. A tile of 0 bytes is not stored (sparse files)."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.int64]  # of each tile in the file
    byte_counts: NDArray[np.int64]  # of each compressed tile
    compression: str  # jpeg, jpeg2000 or another value of COMPRESSIONS
    jpeg_tables: bytes | None
    colorspace: str  # of the streams: RGB · YCBCR
    full_tiles: bool  # every stream holds a whole tile, also at the edges of the image; false for strips
    decode_segment: Callable[[bytes, int], NDArray[np.uint8]] | None  # for what is neither JPEG nor JPEG 2000

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return math.ceil(self.width / self.tile_width)

    @property
    def down(self) -> int:
        """Rows of tiles."""
        return math.ceil(self.height / self.tile_height)


@dataclass(frozen=True)
class TiffStructure:
    """The parsed structure of a TIFF slide."""

    format: str
    levels: tuple[TileTable, ...]  # finest first
    others: tuple[TileTable, ...]  # label, macro image and thumbnail; never shown, because they may have names
    mpp: tuple[float | None, float | None]  # x, y
    objective: float | None
    directories: tuple[ByteRange, ...]  # of directories, sizes and descriptions
    tile_lists: tuple[ByteRange, ...]  # of offsets and sizes of the tiles


def detect_tiff_format(path: Path) -> str | None:
    """Return the format of a TIFF: one of NATIVE_FORMATS, or one that OpenSlide reads. None for other files.

    Raises SlideError `truncated` or `unreadable` for a TIFF whose first page cannot be parsed.
    """
    try:
        with open_tifffile(path) as file:
            return _page_format(file.pages[0])
    except OSError as error:
        raise SlideError("unreadable", path, f"the file cannot be opened ({error.strerror})") from error
    except TIFFFILE_ERRORS as error:
        if not is_tiff(path):
            return None
        check_directories(path)
        raise SlideError("unreadable", path, f"its first TIFF page cannot be parsed ({error})") from error


def parse_tiff(path: Path) -> TiffStructure:
    """Read the tile tables of a slide and check their ranges.

    Raises SlideError truncated, unreadable or not-a-slide, and UnsupportedTiff.
    """
    directories, tile_lists = check_directories(path)
    try:
        with open_tifffile(path) as file:
            pages = list(_pages(file))
            kind = _page_format(pages[0])
            _check_pixels(path, kind, pages[0])
            levels, others = _split_pages(kind, pages)
            mpp, objective = _page_mpp(kind, pages[0]), _parse_objective(kind, str(pages[0].description or ""))
    except TIFFFILE_ERRORS as error:
        raise SlideError("unreadable", path, f"its TIFF structure cannot be parsed ({error})") from error
    size = path.stat().st_size
    for table in levels:
        _check_shape(path, table)
    for table in (*levels, *others):
        _check_ranges(path, table, size)
    if kind == "philips":
        levels = _remove_padding(levels, _philips_spacings(str(pages[0].description or "")))
    return TiffStructure(kind, tuple(levels), tuple(others), mpp, objective, directories, tile_lists)


@contextmanager
def open_tifffile(path: Path, **flags: Any) -> Iterator[tifffile.TiffFile]:
    """Open a file with tifffile, without its log messages: the checks of this module find what they warn of.

    flags: passed to TiffFile.
    """
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True
    try:
        with tifffile.TiffFile(path, **flags) as file:
            yield file
    finally:
        log.disabled = before


def _page_format(page: Any) -> str:
    description, software = str(page.description or ""), str(page.software or "")
    if 65420 in page.tags:
        return "hamamatsu"
    if description.startswith("Aperio"):
        return "aperio"
    if software.startswith("Philips") or "DPUfsImport" in description[:2000]:
        return "philips"
    if "leica-microsystems" in description[:2000]:
        return "leica"
    if b"iScan" in bytes(str(page.tags.valueof(700) or ""), "utf8", "replace")[:20_000]:
        return "ventana"
    if software.startswith("MedScan"):
        return "trestle"
    return "ome-tiff" if "<OME" in description[:5000] else "generic-tiff"


def _pages(file: tifffile.TiffFile) -> Iterator[Any]:
    for page in file.pages:
        yield page
        yield from page.pages or ()


def _check_pixels(path: Path, kind: str, page: Any) -> None:
    """Refuse images that are not brightfield, and features that tile tables do not support."""
    if int(page.compression) not in COMPRESSIONS:
        raise UnsupportedTiff(path, f"its compression {int(page.compression)} is not supported")
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4) or int(page.photometric) not in (RGB, YCBCR):
        what = f"the image is not 8-bit RGB ({page.samplesperpixel} × {page.dtype}), so it is not a brightfield slide"
        raise SlideError("not-a-slide", path, what)
    if kind not in NATIVE_FORMATS:
        raise UnsupportedTiff(path, f"the tiles of {kind} slides cannot be read directly; use the reader openslide")
    compression = COMPRESSIONS[int(page.compression)]
    if page.planarconfig != 1 or page.imagedepth != 1:
        raise UnsupportedTiff(path, "its colours are stored in separate planes, or it is a volume")
    if int(page.photometric) == YCBCR and compression not in ("jpeg", "jpeg2000"):
        raise UnsupportedTiff(path, f"YCbCr with compression {compression} is not supported")


def _split_pages(kind: str, pages: list[Any]) -> tuple[list[TileTable], list[TileTable]]:
    """Split pages into levels and other images. Levels are the first page and smaller tiled pages of its shape."""
    first, levels = pages[0], [_tile_table(pages[0])]
    others: list[TileTable] = []
    for page in pages[1:]:
        table = _tile_table(page)
        same_kind = (page.dtype, page.samplesperpixel, page.planarconfig) == (
            first.dtype, first.samplesperpixel, first.planarconfig,
        )  # fmt: skip
        smaller = table.width < levels[-1].width and table.height < levels[-1].height
        is_level = page.is_tiled and same_kind and smaller and (kind == "philips" or has_same_aspect(table, levels[0]))
        (levels if is_level else others).append(table)
    return levels, others


def has_same_aspect(table: TileTable, base: TileTable) -> bool:
    """Return whether a level has the aspect ratio of the finest level."""
    aspect = table.width * base.height / (table.height * base.width)
    return abs(aspect - 1) < ASPECT_TOLERANCE + 2 / min(table.width, table.height)  # small levels are rounded


def _tile_table(page: Any) -> TileTable:
    compression = COMPRESSIONS.get(int(page.compression), f"compression {int(page.compression)}")
    ycbcr = int(page.compression) == YCBCR_J2K or int(page.photometric) == YCBCR
    width, height = int(page.imagewidth), int(page.imagelength)  # raises TypeError for a tag with several values
    strip = (width, min(int(page.rowsperstrip), height))  # a tile as wide as the image
    tile = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else strip
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    return TileTable(
        width, height, tile[0], tile[1], offsets, counts, compression, page.jpegtables,
        "YCBCR" if ycbcr else "RGB", bool(page.is_tiled), _segment_decoder(page),
    )  # fmt: skip


def _segment_decoder(page: Any) -> Callable[[bytes, int], NDArray[np.uint8]]:
    """Return the decoder of a page's segments (tiles or strips), for any compression that tifffile supports."""

    def decode(data: bytes, index: int) -> NDArray[np.uint8]:
        pixels = page.decode(data, index)[0]
        if pixels is None:
            raise ValueError("the segment is empty")
        return np.asarray(pixels[0], np.uint8)

    return decode


def _check_shape(path: Path, table: TileTable) -> None:
    """Check that a level lists as many tiles as its size requires, and that their size is plausible."""
    if min(table.width, table.height, table.tile_width, table.tile_height) < 1:
        raise SlideError("unreadable", path, "the size of a level is 0")
    expected = table.across * table.down
    if expected > MAX_TILES or len(table.offsets) != expected or len(table.byte_counts) != expected:
        raise SlideError("unreadable", path, f"a level of {expected} tiles lists {len(table.offsets)}")
    if table.tile_width * table.tile_height > MAX_TILE_PIXELS:
        raise UnsupportedTiff(path, f"its tiles of {table.tile_width} × {table.tile_height} px are too large")


def _check_ranges(path: Path, table: TileTable, size: int) -> None:
    """Check that every tile lies inside the file."""
    if len(table.offsets) != len(table.byte_counts) or (table.offsets < 0).any() or (table.byte_counts < 0).any():
        raise SlideError("unreadable", path, "a tile list has negative values, or offsets and sizes differ in number")
    if ((table.byte_counts > 0) & (table.offsets > size - np.minimum(table.byte_counts, size + 1))).any():
        raise SlideError("truncated", path, f"the file ends at {size} bytes, before its last tile")
    if (
        len(table.byte_counts)
        and table.byte_counts.max() > MAX_EXTRA_BYTES + 8 * 3 * table.tile_width * table.tile_height
    ):
        raise SlideError("unreadable", path, f"a tile has {table.byte_counts.max()} bytes, which is implausible")


def _remove_padding(levels: list[TileTable], spacings: list[tuple[float, float]]) -> list[TileTable]:
    """Remove the padding of Philips levels. They are padded to whole tiles; pixel spacings give the true downsample."""
    if len(spacings) != len(levels):
        return levels
    base, cut = levels[0], [levels[0]]
    for table, (x, y) in zip(levels[1:], spacings[1:], strict=True):
        downsample = max(1, round((x / spacings[0][0] + y / spacings[0][1]) / 2))
        width = min(table.width, max(1, base.width // downsample))
        height = min(table.height, max(1, base.height // downsample))
        across, down = math.ceil(width / table.tile_width), math.ceil(height / table.tile_height)
        offsets, byte_counts = (
            values.reshape(table.down, table.across)[:down, :across].ravel()
            for values in (table.offsets, table.byte_counts)
        )
        cut.append(replace(table, width=width, height=height, offsets=offsets, byte_counts=byte_counts))
    return cut


def _philips_spacings(description: str) -> list[tuple[float, float]]:
    """Return the pixel spacings (x, y) of all levels in mm. A Philips description lists the row spacing first."""
    spacings = []
    parts = description.split('ObjectType="PixelDataRepresentation"', MAX_LEVELS)[1:] or [description]
    for part in parts:
        spacing = re.search(r'DICOM_PIXEL_SPACING"[^>]*>\W*([\d.eE-]+)\W+([\d.eE-]+)', html.unescape(part[:20_000]))
        x, y = (_parse_float(spacing[2]), _parse_float(spacing[1])) if spacing else (None, None)
        if x and y and min(x, y) > 0:
            spacings.append((x, y))
    return spacings


def _page_mpp(kind: str, page: Any) -> tuple[float | None, float | None]:
    """Return the resolution along x and y (µm/px) stated in a page."""
    description = str(page.description or "")
    if kind == "aperio":
        match = re.search(r"\|\s*MPP\s*=\s*([\d.eE+-]+)", description)
        return (_parse_float(match[1]),) * 2 if match else (None, None)
    if kind == "philips":
        x, y = min(_philips_spacings(description), default=(None, None))
        return x and x * 1000, y and y * 1000
    if kind == "ome-tiff" and "PhysicalSizeX" in description:
        return _ome_mpp(description, "X"), _ome_mpp(description, "Y")
    return tag_resolution(page)


def tag_resolution(page: Any) -> tuple[float | None, float | None]:
    """Return the resolution along x and y (µm/px) from the standard TIFF tags of a page."""
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, 2)))
    axes = [page.tags.valueof(code) for code in (282, 283)]
    if unit is None or not all(axes):
        return None, None
    x, y = (unit * bottom / top if top else None for top, bottom in axes)
    return x, y


def _ome_mpp(description: str, axis: str) -> float | None:
    scale = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    value = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', description)
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', description)
    factor = scale.get(html.unescape(unit[1] if unit else "µm").replace("μ", "µ"))
    number = _parse_float(value[1]) if value else None
    return number * factor if number is not None and factor is not None else None


def _parse_objective(kind: str, description: str) -> float | None:
    patterns = {"aperio": r"\|\s*AppMag\s*=\s*([\d.]+)", "ome-tiff": r'NominalMagnification="([\d.]+)"'}
    match = re.search(patterns[kind], description) if kind in patterns else None
    return _parse_float(match[1]) if match else None


def _parse_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
