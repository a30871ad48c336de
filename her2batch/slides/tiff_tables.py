"""Tile tables of TIFF slides: the position of every compressed tile, checked against the file before it is used.

tifffile parses a file, but does not validate it: of a truncated file it returns the part before the cut as if it were
complete (23 of 60 slides cut at random). Therefore all directories and numbers are checked here first, and pixels are
read only from byte ranges that passed.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import ByteRange, Directory, check_directories, is_tiff, read_directories
from her2batch.slides.tiff.formats import DETECTED_PAGES, pages_format, philips_spacings, slide_resolution
from her2batch.slides.tiff.pages import Image, Page, choose_pages, load_pages
from her2batch.slides.tiff.resolution import Resolution
from her2batch.slides.tiff.segments import (
    COMPRESSIONS,
    PICTURE_CODECS,
    Samples,
    SegmentDecoder,
    compression_remedy,
    page_samples,
    segment_decoder,
)

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

ASSOCIATED_DAMAGED = "associated-image-damaged"
"""Flag of a slide whose label, macro image or thumbnail is wiped or damaged. They are never used."""


class UnsupportedTiff(SlideError):
    """A valid TIFF with a feature that tile tables do not support; OpenSlide may read it."""

    def __init__(self, path: Path | str, what: str, remedy: str = "") -> None:
        super().__init__("unreadable", path, what, remedy)
        self.args = (path, what, remedy)


@dataclass(frozen=True)
class TileTable:
    """Compressed tiles of one level: (across · down), row-major. A tile of 0 bytes is not stored (sparse files).

    With several planes, the tiles of red, green and blue follow one another: (planes · across · down).
    """

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
    decode_segment: SegmentDecoder | None  # for what is neither JPEG nor JPEG 2000
    is_stated: bool = field(default=True, kw_only=True)  # the file says that it is a level of the slide
    samples: Samples = field(default=Samples(), kw_only=True)
    planes: int = field(default=1, kw_only=True)  # 1: a tile has all colours; 3 or 4: each colour has tiles of its own

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return math.ceil(self.width / self.tile_width)

    @property
    def down(self) -> int:
        """Rows of tiles."""
        return math.ceil(self.height / self.tile_height)

    @cached_property
    def stored(self) -> NDArray[np.bool_]:
        """Which tiles are stored, in all their planes: (down, across) bool."""
        return np.asarray((self.byte_counts.reshape(self.planes, self.down, self.across) > 0).all(axis=0), bool)


@dataclass(frozen=True)
class TiffStructure:
    """The parsed structure of a TIFF slide."""

    format: str
    levels: tuple[TileTable, ...]  # finest first
    others: tuple[TileTable, ...]  # other colour images: label, macro; never shown, because they may have names
    mpp: tuple[float | None, float | None]  # x, y
    objective: float | None
    directories: tuple[ByteRange, ...]  # of directories, and of the sizes and descriptions of the levels
    tile_lists: tuple[ByteRange, ...]  # of offsets and sizes of the levels' tiles
    unused: tuple[ByteRange, ...] = ()  # of descriptions and lists of the other images
    notes: tuple[str, ...] = ()  # quality flags
    mpp_problem: str | None = None  # why the stated resolution cannot be used


def detect_tiff_format(path: Path) -> str | None:
    """Return the format of a TIFF: one of NATIVE_FORMATS, or one that OpenSlide reads. None for other files.

    Raises SlideError `truncated` or `unreadable` for a TIFF whose first pages cannot be parsed.
    """
    try:
        with open_tifffile(path) as file:
            return pages_format(islice(file.pages, DETECTED_PAGES))
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
    directories = read_directories(path)
    try:
        with open_tifffile(path) as file:
            pages = load_pages(file, directories)
            kind = pages_format(page.page for page in pages[:DETECTED_PAGES])
            chosen = choose_pages(pages, ignores_shape=kind == "philips")
            for page in chosen.levels[0]:
                _check_pixels(path, kind, page.page, len(chosen.levels[0]))
            levels = [replace(_image_table(image), is_stated=_is_stated(kind, image[0])) for image in chosen.levels]
            others, damaged = _other_tables(page for page in chosen.others if page.is_colour)
            unchecked, _ = _other_tables(page for page in chosen.others if not page.is_colour)
            resolution = slide_resolution(kind, pages[0], chosen)
    except TIFFFILE_ERRORS as error:
        raise SlideError("unreadable", path, f"its TIFF structure cannot be parsed ({error})") from error
    size = path.stat().st_size
    for table in levels:
        _check_shape(path, table)
        _check_ranges(path, table, size)
    for table in (*others, *unchecked):
        _check_end(path, table, size)
    if kind == "philips":
        levels = _remove_padding(levels, philips_spacings(pages[0].description))
    used = {page.directory.at for image in chosen.levels for page in image}
    notes = dict.fromkeys((*chosen.notes, *resolution.notes, *((ASSOCIATED_DAMAGED,) if damaged else ())))
    return TiffStructure(
        kind, tuple(levels), tuple(others), (resolution.x, resolution.y), resolution.objective,
        *_byte_ranges(directories, used), tuple(notes), resolution.problem,
    )  # fmt: skip


def _byte_ranges(
    directories: list[Directory], used: set[int]
) -> tuple[tuple[ByteRange, ...], tuple[ByteRange, ...], tuple[ByteRange, ...]]:
    """Return the byte ranges of all directories with the descriptions of those in use; of their tile lists; of others.

    used: offsets of the directories of the levels. A directory that is not used still leads to the next one.
    """
    fixed, lists, unused = list[ByteRange](), list[ByteRange](), list[ByteRange]()
    for item in directories:
        fixed.append((item.at, item.end))
        (fixed if item.at in used else unused).extend(item.descriptive)
        (lists if item.at in used else unused).extend(item.tile_lists)
    return tuple(fixed), tuple(lists), tuple(unused)


def read_resolution(path: Path, size: tuple[int, int]) -> Resolution | None:
    """Return the resolution of the slide in a TIFF that another library reads; None if its pages cannot be parsed.

    size: of the finest level as the library shows it, px.  Raises SlideError `unreadable` if the library shows another
    image of the file, such as a macro image or one colour.
    """
    try:
        directories = read_directories(path)
        with open_tifffile(path) as file:
            pages = load_pages(file, directories)
            kind = pages_format(page.page for page in pages[:DETECTED_PAGES])
            chosen = choose_pages(pages, ignores_shape=kind == "philips")
            resolution = slide_resolution(kind, pages[0], chosen)
    except (SlideError, *TIFFFILE_ERRORS):
        return None
    if chosen.base.size == size and len(chosen.levels[0]) == 1:
        return resolution
    shown, finest = (f"{width} × {height} px" for width, height in (size, chosen.base.size))
    what = f"OpenSlide shows an image of {shown} of this file, not its finest level in colour, {finest}"
    raise SlideError("unreadable", path, what, "use --reader auto")


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


def _check_pixels(path: Path, kind: str, page: Any, planes: int) -> None:
    """Refuse images that are not brightfield, and features that tile tables do not support.

    planes: number of pages that make the image; with three, each has one sample.
    """
    if int(page.compression) not in COMPRESSIONS:
        raise UnsupportedTiff(path, *compression_remedy(int(page.compression)))
    is_colour = page.samplesperpixel in (3, 4) and int(page.photometric) in (RGB, YCBCR)
    if page.dtype not in (np.uint8, np.uint16) or not (is_colour or planes == 3):
        found = f"{page.samplesperpixel} × {page.dtype}"
        what = f"the image is not RGB of 8 or 16 bits ({found}), so it is not a brightfield slide"
        if page.dtype == np.uint8 and page.samplesperpixel == 1 and kind == "ome-tiff":
            remedy = "if its channels are red, green and blue, name them so in its OME-XML, or convert it to RGB"
            raise SlideError("not-a-slide", path, what, remedy)
        raise SlideError("not-a-slide", path, what)
    if kind not in NATIVE_FORMATS:
        raise UnsupportedTiff(path, f"the tiles of {kind} slides cannot be read directly; use the reader openslide")
    compression = COMPRESSIONS[int(page.compression)]
    if page.imagedepth != 1:
        raise UnsupportedTiff(path, "it is a volume")
    if page.planarconfig != 1 and int(page.photometric) == YCBCR:
        raise UnsupportedTiff(path, "its luminance and colours are stored in separate planes")
    if int(page.photometric) == YCBCR and compression not in PICTURE_CODECS:
        raise UnsupportedTiff(path, f"YCbCr with compression {compression} is not supported")


def _is_stated(kind: str, page: Page) -> bool:
    """Return whether a file says that a page is a level. Aperio tags labels and macro images, but not levels."""
    if kind == "aperio":
        return not page.is_reduced
    return kind == "philips" or page.is_stated_level


def _image_table(image: Image) -> TileTable:
    """Return the tile table of an image: of one page, or of the pages of its red, green and blue."""
    tables = [_tile_table(page.page) for page in image]
    if len(tables) == 1:
        return tables[0]
    offsets = np.concatenate([table.offsets for table in tables])
    counts = np.concatenate([table.byte_counts for table in tables])

    def decode(data: bytes, index: int) -> NDArray[Any]:
        plane, tile = divmod(index, len(tables[0].offsets))
        decoder = tables[plane].decode_segment
        assert decoder is not None
        return decoder(data, tile)

    return replace(tables[0], offsets=offsets, byte_counts=counts, decode_segment=decode, planes=3)


def _other_tables(pages: Iterable[Page]) -> tuple[list[TileTable], bool]:
    """Return the tile tables of images that are not read, and whether the table of one of them is damaged."""
    tables, damaged = [], False
    for page in pages:
        try:
            table = _tile_table(page.page)
            if len(table.offsets) != len(table.byte_counts) or min(table.offsets.min(), table.byte_counts.min()) < 0:
                raise ValueError("offsets and sizes differ in number, or are negative")
            tables.append(table)
        except TIFFFILE_ERRORS:
            damaged = True
    return tables, damaged


def _tile_table(page: Any) -> TileTable:
    compression = COMPRESSIONS.get(int(page.compression), f"compression {int(page.compression)}")
    ycbcr = int(page.compression) == YCBCR_J2K or int(page.photometric) == YCBCR
    width, height = int(page.imagewidth), int(page.imagelength)  # raises TypeError for a tag with several values
    strip = (width, min(int(page.rowsperstrip), height))  # a tile as wide as the image
    tile = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else strip
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    return TileTable(
        width, height, tile[0], tile[1], offsets, counts, compression, page.jpegtables,
        "YCBCR" if ycbcr else "RGB", bool(page.is_tiled), segment_decoder(page, compression, tile),
        samples=page_samples(page), planes=planes,
    )  # fmt: skip


def _check_shape(path: Path, table: TileTable) -> None:
    """Check that a level lists as many tiles as its size requires, and that their size is plausible."""
    if min(table.width, table.height, table.tile_width, table.tile_height) < 1:
        raise SlideError("unreadable", path, "the size of a level is 0")
    expected = table.across * table.down * table.planes
    if expected > MAX_TILES or len(table.offsets) != expected or len(table.byte_counts) != expected:
        raise SlideError("unreadable", path, f"a level of {expected} tiles lists {len(table.offsets)}")
    if table.tile_width * table.tile_height > MAX_TILE_PIXELS:
        raise UnsupportedTiff(path, f"its tiles of {table.tile_width} × {table.tile_height} px are too large")


def _check_ranges(path: Path, table: TileTable, size: int) -> None:
    """Check that every tile lies inside the file."""
    if len(table.offsets) != len(table.byte_counts) or (table.offsets < 0).any() or (table.byte_counts < 0).any():
        raise SlideError("unreadable", path, "a tile list has negative values, or offsets and sizes differ in number")
    _check_end(path, table, size)
    if (
        len(table.byte_counts)
        and table.byte_counts.max() > MAX_EXTRA_BYTES + 8 * 3 * table.tile_width * table.tile_height
    ):
        raise SlideError("unreadable", path, f"a tile has {table.byte_counts.max()} bytes, which is implausible")


def _check_end(path: Path, table: TileTable, size: int) -> None:
    """Check that no tile ends after the file: a file that ends inside its label was cut off, and may lack more."""
    if ((table.byte_counts > 0) & (table.offsets > size - np.minimum(table.byte_counts, size + 1))).any():
        raise SlideError("truncated", path, f"the file ends at {size} bytes, before its last tile")


def crop_table(table: TileTable, width: int, height: int) -> TileTable:
    """Return the table of the upper left part of a level, px."""
    across, down = math.ceil(width / table.tile_width), math.ceil(height / table.tile_height)
    offsets, byte_counts = (
        values.reshape(table.planes, table.down, table.across)[:, :down, :across].ravel()
        for values in (table.offsets, table.byte_counts)
    )
    return replace(table, width=width, height=height, offsets=offsets, byte_counts=byte_counts)


def _remove_padding(levels: list[TileTable], spacings: list[tuple[float, float]]) -> list[TileTable]:
    """Remove the padding of Philips levels. They are padded to whole tiles; pixel spacings give the true downsample."""
    if len(spacings) != len(levels):
        return levels
    base, cut = levels[0], [levels[0]]
    for table, (x, y) in zip(levels[1:], spacings[1:], strict=True):
        downsample = max(1, round((x / spacings[0][0] + y / spacings[0][1]) / 2))
        width = min(table.width, max(1, base.width // downsample))
        height = min(table.height, max(1, base.height // downsample))
        cut.append(crop_table(table, width, height))
    return cut
