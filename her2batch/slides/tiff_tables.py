"""The tile table of a TIFF slide: where every compressed tile lies, checked against the file before it is used.

tifffile parses, it does not validate: where a file is cut it stops and calls the rest the whole (23 of 60 slides cut
at random). So the chain of directories is walked here first, every number is checked, and pixels come only from
ranges that passed.
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

COMPRESSIONS = {1: "raw", 5: "lzw", 7: "jpeg", 8: "deflate", 32946: "deflate", 33003: "jpeg2000", 33005: "jpeg2000",
                34712: "jpeg2000", 34925: "lzma", 50000: "zstd", 50001: "webp"}  # fmt: skip

YCBCR_J2K = 33003
RGB, YCBCR = 2, 6
TIFFFILE_ERRORS = (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error,
           OverflowError, ZeroDivisionError, RuntimeError, EOFError)  # fmt: skip
"""What tifffile raises on files it can't make sense of."""

NATIVE_FORMATS = frozenset({"aperio", "philips", "ome-tiff", "generic-tiff"})
"""Formats whose tile tables we read ourselves; the others keep their tiles in ways of their own."""

MOST_TILES = 20_000_000
LARGEST_TILE = 100_000_000
"""px; larger strips are for a reader that doesn't take them whole."""

MOST_INFLATED = 1_000_000
"""Bytes that a compressed tile may take on top of eight times its pixels'."""

MOST_LEVELS = 100
"""Of a Philips description: further ones are not looked at."""

ASPECT = 0.02


class UnsupportedTiff(SlideError):
    """A sound TIFF in a form that a tile table doesn't take; another reader may."""

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__("unreadable", path, what)
        self.args = (path, what)


@dataclass(frozen=True)
class TileTable:
    """One level: (across · down) compressed tiles, row-major. A tile of 0 bytes is not there (sparse files)."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    compression: str
    jpeg_tables: bytes | None
    colorspace: str  # RGB · YCBCR: of the stream
    full_tiles: bool  # every stream holds a whole tile, at the edges too; not so for strips
    unpack: Callable[[bytes, int], NDArray[np.uint8]] | None  # for what is neither JPEG nor JPEG 2000

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
    """What a TIFF slide says: its levels, its other images (never shown: they bear names), its resolution."""

    format: str
    levels: tuple[TileTable, ...]
    others: tuple[TileTable, ...]
    mpp: tuple[float | None, float | None]
    objective: float | None
    directories: tuple[ByteRange, ...]  # bytes that say what the slide is
    tile_lists: tuple[ByteRange, ...]  # bytes that say where its tiles are


def detect_tiff_format(path: Path) -> str | None:
    """One of OWN, or a format that OpenSlide reads; None when the file is no TIFF.

    Raises SlideError `truncated` or `unreadable` for a TIFF whose first page can't be parsed.
    """
    try:
        with open_tifffile(path) as file:
            return _vendor(file.pages[0])
    except OSError as error:
        raise SlideError("unreadable", path, f"it can't be opened ({error.strerror})") from error
    except TIFFFILE_ERRORS as error:
        if not is_tiff(path):
            return None
        check_directories(path)
        raise SlideError("unreadable", path, f"its first page can't be parsed ({error})") from error


def parse_tiff(path: Path) -> TiffStructure:
    """The tile tables of a slide, their ranges checked. Raises SlideError truncated, unreadable or not-a-slide."""
    directories, tile_lists = check_directories(path)
    try:
        with open_tifffile(path) as file:
            pages = list(_pages(file))
            kind = _vendor(pages[0])
            _check_pixels(path, kind, pages[0])
            levels, others = _sort(kind, pages)
            mpp, objective = _mpp(kind, pages[0]), _objective(kind, str(pages[0].description or ""))
    except TIFFFILE_ERRORS as error:
        raise SlideError("unreadable", path, f"its structure can't be parsed ({error})") from error
    size = path.stat().st_size
    for table in levels:
        _check_shape(path, table)
    for table in (*levels, *others):
        _check_ranges(path, table, size)
    if kind == "philips":
        levels = _unpadded(levels, _spacings(str(pages[0].description or "")))
    return TiffStructure(kind, tuple(levels), tuple(others), mpp, objective, directories, tile_lists)


@contextmanager
def open_tifffile(path: Path, **flags: Any) -> Iterator[tifffile.TiffFile]:
    """A file as tifffile sees it; flags: what it should take it for.

    What it would only log to the screen is found by our own checks.
    """
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True
    try:
        with tifffile.TiffFile(path, **flags) as file:
            yield file
    finally:
        log.disabled = before


def _vendor(page: Any) -> str:
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
    """Refuse what is no brightfield image, and what a tile table doesn't take."""
    if int(page.compression) not in COMPRESSIONS:
        raise UnsupportedTiff(path, f"its compression {int(page.compression)} can't be decoded")
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4) or int(page.photometric) not in (RGB, YCBCR):
        what = f"no 8-bit RGB image ({page.samplesperpixel} × {page.dtype}): not a brightfield slide"
        raise SlideError("not-a-slide", path, what)
    if kind not in NATIVE_FORMATS:
        raise UnsupportedTiff(path, f"a {kind} slide keeps its tiles in its own way: use the reader openslide")
    compression = COMPRESSIONS[int(page.compression)]
    if page.planarconfig != 1 or page.imagedepth != 1:
        raise UnsupportedTiff(path, "its colours lie in separate planes, or it is a volume")
    if int(page.photometric) == YCBCR and compression not in ("jpeg", "jpeg2000"):
        raise UnsupportedTiff(path, f"it holds YCbCr packed as {compression}")


def _sort(kind: str, pages: list[Any]) -> tuple[list[TileTable], list[TileTable]]:
    """Levels are the first page and the tiled pages of its shape, finest first; the rest are other images."""
    first, levels = pages[0], [_table(pages[0])]
    others: list[TileTable] = []
    for page in pages[1:]:
        table = _table(page)
        same_kind = (page.dtype, page.samplesperpixel, page.planarconfig) == (
            first.dtype, first.samplesperpixel, first.planarconfig,
        )  # fmt: skip
        smaller = table.width < levels[-1].width and table.height < levels[-1].height
        is_level = page.is_tiled and same_kind and smaller and (kind == "philips" or has_same_aspect(table, levels[0]))
        (levels if is_level else others).append(table)
    return levels, others


def has_same_aspect(table: TileTable, base: TileTable) -> bool:
    """Whether a level is as wide and high, in proportion, as the finest."""
    aspect = table.width * base.height / (table.height * base.width)
    return abs(aspect - 1) < ASPECT + 2 / min(table.width, table.height)  # small levels are rounded


def _table(page: Any) -> TileTable:
    compression = COMPRESSIONS.get(int(page.compression), f"compression {int(page.compression)}")
    ycbcr = int(page.compression) == YCBCR_J2K or (compression == "jpeg" and int(page.photometric) == YCBCR)
    width, height = int(page.imagewidth), int(page.imagelength)  # of a tag with several values: a TypeError
    strip = (width, min(int(page.rowsperstrip), height))  # a tile as wide as the image
    tile = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else strip
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    return TileTable(
        width, height, tile[0], tile[1], offsets, counts, compression, page.jpegtables,
        "YCBCR" if ycbcr else "RGB", bool(page.is_tiled), _unpacker(page),
    )  # fmt: skip


def _unpacker(page: Any) -> Callable[[bytes, int], NDArray[np.uint8]]:
    """Decoder of a page's segments, whatever they are packed with."""

    def unpack(data: bytes, index: int) -> NDArray[np.uint8]:
        pixels = page.decode(data, index)[0]
        if pixels is None:
            raise ValueError("an empty segment")
        return np.asarray(pixels[0], np.uint8)

    return unpack


def _check_shape(path: Path, table: TileTable) -> None:
    """As many tiles as the image has, none of an absurd size."""
    if min(table.width, table.height, table.tile_width, table.tile_height) < 1:
        raise SlideError("unreadable", path, "a level has no size")
    wanted = table.across * table.down
    if wanted > MOST_TILES or len(table.offsets) != wanted or len(table.byte_counts) != wanted:
        raise SlideError("unreadable", path, f"a level of {wanted} tiles lists {len(table.offsets)}")
    if table.tile_width * table.tile_height > LARGEST_TILE:
        raise UnsupportedTiff(path, f"its tiles of {table.tile_width} × {table.tile_height} px are too large")


def _check_ranges(path: Path, table: TileTable, size: int) -> None:
    """Every tile inside the file."""
    if len(table.offsets) != len(table.byte_counts) or (table.offsets < 0).any() or (table.byte_counts < 0).any():
        raise SlideError("unreadable", path, "a list of tiles makes no sense")
    if ((table.byte_counts > 0) & (table.offsets > size - np.minimum(table.byte_counts, size + 1))).any():
        raise SlideError("truncated", path, f"the file ends at {size} bytes, before its last tile")
    if (
        len(table.byte_counts)
        and table.byte_counts.max() > MOST_INFLATED + 8 * 3 * table.tile_width * table.tile_height
    ):
        raise SlideError("unreadable", path, f"a tile takes {table.byte_counts.max()} bytes")


def _unpadded(levels: list[TileTable], spacings: list[tuple[float, float]]) -> list[TileTable]:
    """Philips pads every level to whole tiles and says so; the pixel spacings give the true downsample."""
    if len(spacings) != len(levels):
        return levels
    base, cut = levels[0], [levels[0]]
    for table, (x, y) in zip(levels[1:], spacings[1:], strict=True):
        downsample = max(1, round((x / spacings[0][0] + y / spacings[0][1]) / 2))
        width = min(table.width, max(1, base.width // downsample))
        height = min(table.height, max(1, base.height // downsample))
        across, down = math.ceil(width / table.tile_width), math.ceil(height / table.tile_height)
        offsets, counts = (
            one.reshape(table.down, table.across)[:down, :across].ravel() for one in (table.offsets, table.byte_counts)
        )
        cut.append(replace(table, width=width, height=height, offsets=offsets, byte_counts=counts))
    return cut


def _spacings(description: str) -> list[tuple[float, float]]:
    """(x, y) of every level in mm, as a Philips description lists them: row spacing first."""
    found = []
    parts = description.split('ObjectType="PixelDataRepresentation"', MOST_LEVELS)[1:] or [description]
    for part in parts:
        spacing = re.search(r'DICOM_PIXEL_SPACING"[^>]*>\W*([\d.eE-]+)\W+([\d.eE-]+)', html.unescape(part[:20_000]))
        x, y = (_number(spacing[2]), _number(spacing[1])) if spacing else (None, None)
        if x and y and min(x, y) > 0:
            found.append((x, y))
    return found


def _mpp(kind: str, page: Any) -> tuple[float | None, float | None]:
    """µm/px along x and y, as the file says it."""
    description = str(page.description or "")
    if kind == "aperio":
        found = re.search(r"\|\s*MPP\s*=\s*([\d.eE+-]+)", description)
        return (_number(found[1]),) * 2 if found else (None, None)
    if kind == "philips":
        x, y = min(_spacings(description), default=(None, None))
        return x and x * 1000, y and y * 1000
    if kind == "ome-tiff" and "PhysicalSizeX" in description:
        return _ome(description, "X"), _ome(description, "Y")
    return tag_resolution(page)


def tag_resolution(page: Any) -> tuple[float | None, float | None]:
    """µm/px along x and y, as the tags say that every TIFF has for it."""
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, 2)))
    axes = [page.tags.valueof(code) for code in (282, 283)]
    if unit is None or not all(axes):
        return None, None
    x, y = (unit * bottom / top if top else None for top, bottom in axes)
    return x, y


def _ome(description: str, axis: str) -> float | None:
    scale = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    value = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', description)
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', description)
    factor = scale.get(html.unescape(unit[1] if unit else "µm").replace("μ", "µ"))
    number = _number(value[1]) if value else None
    return number * factor if number is not None and factor is not None else None


def _objective(kind: str, description: str) -> float | None:
    patterns = {"aperio": r"\|\s*AppMag\s*=\s*([\d.]+)", "ome-tiff": r'NominalMagnification="([\d.]+)"'}
    found = re.search(patterns[kind], description) if kind in patterns else None
    return _number(found[1]) if found else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
