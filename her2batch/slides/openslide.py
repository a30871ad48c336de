"""Slides read through OpenSlide: MRXS, VMS, BIF, SCN, DICOM, unusual NDPI and TIFF files, and more."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import JPEGBaseline8Bit

from her2batch.errors import SlideError, one_line
from her2batch.slides.jpeg import RGB, YCBCR, decide_colorspace, shown_colorspace, ycbcr_to_rgb
from her2batch.slides.slide import DEFAULT_CHUNK, Box, Level, MissingArea, Slide, SlideInfo, resolve_mpp, split_box
from her2batch.slides.tiff.padding import StoredLevel, picture_sizes
from her2batch.slides.tiff.resolution import Resolution, Statement, choose_resolution
from her2batch.slides.tiff_tables import read_resolution

CHUNK_RANGE = (64, 2048)
"""Useful chunk sizes, px. For NDPI, OpenSlide states chunks that are 8 px high and as wide as a restart interval."""

CELL = 1024
"""Edge of the cells in which a level is read when its downsample is no integer, px. OpenSlide interpolates such levels
depending on where a read starts; fixed cells make a px independent of the box that is read."""

SAMPLED_FRAMES, MAX_FRAME_BYTES = 9, 4_000_000
"""Number of frames of a DICOM file on which its colour space is decided, and the largest size of one of them."""

MAX_ALPHA_PIXELS, HALF_OPAQUE = 20_000_000, 128
"""Largest level from which the transparency of a slide is read, px; alpha value below which a px has no image."""

MAX_TABLE_BYTES = 80_000_000
"""Largest size of a DICOM file's table of frame offsets."""

HEADER_ERRORS = (InvalidDicomError, OSError, ValueError, NotImplementedError, AttributeError, KeyError, TypeError,
                 struct.error)  # fmt: skip
"""Exceptions for a DICOM header that cannot be read. OpenSlide, which opened the file, decides whether it is sound."""

ITEM_TAG = 0xE000FFFE
"""Tag (FFFE,E000) of an item, as little-endian number."""

SAMPLED_EDGE = 1024
"""Edge of the area on which the colour space of other slides is decided, px."""

UNTAGGED = ("mirax", "hamamatsu", "hamamatsu-vms-vmu")
"""Formats whose JPEG streams OpenSlide reads without a colour tag."""

PLAIN_TIFF = ("generic-tiff", "aperio")
"""Formats whose resolution may be stated in more ways than OpenSlide reads."""

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
        properties = dict(self._slide.properties)  # after an error, OpenSlide refuses these too
        sizes = self._slide.level_dimensions
        try:
            stated = _stated_resolution(path, properties, sizes[0])
        except SlideError:
            self.close()
            raise
        mpp, source = resolve_mpp(stated.x, stated.y, stated.objective)
        levels = tuple(Level(*size, *_chunk_size(properties, k)) for k, size in enumerate(sizes))
        self._downsamples = self._slide.level_downsamples
        self._numbers = tuple(range(len(sizes)))  # of the levels, as OpenSlide counts them
        background = properties.get("openslide.background-color", "FFFFFF")
        self._background = np.array([int(background[k : k + 2], 16) for k in (0, 2, 4)], np.uint16)
        vendor = properties["openslide.vendor"]
        self._holds_ycbcr, self._is_transparent = False, False
        self.info = SlideInfo(
            path, vendor, "openslide", levels, mpp, source, stated.objective, mpp_problem=stated.problem
        )  # fmt: skip
        try:
            self._holds_ycbcr = self._colour_tag_is_wrong()
        except SlideError:
            self.close()
            raise
        self._drop_padded_levels(properties)
        notes = ("colour-tag-mended",) if self._holds_ycbcr else ()
        self.info = replace(self.info, notes=(*stated.notes, *notes))

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

    def missing_area(self) -> MissingArea | None:
        """Return where the slide is transparent: sparse DICOM and other formats store no tiles there.

        None if no transparent px was read so far. Transparency is read from a level of up to MAX_ALPHA_PIXELS px.
        """
        if not self._is_transparent:
            return None
        sizes = self.info.levels
        level = next(
            (k for k, size in enumerate(sizes) if size.width * size.height <= MAX_ALPHA_PIXELS), len(sizes) - 1
        )
        size = sizes[level]
        mask = np.zeros((size.height, size.width), bool)
        for box in split_box(Box(0, 0, size.width, size.height), CELL):
            mask[box.y : box.bottom, box.x : box.right] = self._read_rgba(box, level)[..., 3] < HALF_OPAQUE
        return MissingArea(mask, self.info.width, self.info.height) if mask.any() else None

    def _drop_padded_levels(self, properties: Mapping[str, str]) -> None:
        """Drop levels of a plain TIFF that are padded to whole tiles: OpenSlide takes the padding for picture."""
        if self.info.format not in PLAIN_TIFF:
            return
        levels = []
        for k, level in enumerate(self.info.levels):
            names = (f"openslide.level[{k}].tile-{axis}" for axis in ("width", "height"))
            tile = tuple(int(_parse_float(properties.get(name)) or 1) for name in names)
            count = -(-level.width // tile[0]) * -(-level.height // tile[1])
            levels.append(
                StoredLevel((level.width, level.height), (tile[0], tile[1]), np.ones(min(count, 10**6), np.int64))
            )
        sizes = picture_sizes(levels, lambda number, box: self._pixels(box, number))
        self._numbers = tuple(k for k, level in enumerate(levels) if sizes[k] == level.size)
        self._downsamples = tuple(self._downsamples[k] for k in self._numbers)
        self.info = replace(self.info, levels=tuple(self.info.levels[k] for k in self._numbers))

    def _colour_tag_is_wrong(self) -> bool:
        """Return whether YCbCr is stored under the tag RGB, which OpenSlide follows: its pixels are then not converted.

        Raises SlideError if RGB is stored under the tag YCbCr: OpenSlide's conversion then clips, and cannot be undone.
        """
        path, vendor = self.info.path, self.info.format
        if vendor == "dicom":
            tag, streams = _sample_frames(path)
            decided = decide_colorspace(tag, streams, None) if streams else tag
            if decided == RGB and tag == YCBCR:
                remedy = 'correct the tag of all files of the slide: dcmodify -m "(0028,0004)=RGB" FILE'
                raise SlideError("unreadable", path, "its frames hold RGB under the tag YBR_FULL_422", remedy)
            return decided != tag
        if vendor in UNTAGGED:
            return False
        level = len(self.info.levels) - 1
        size = self.info.levels[level]
        width, height = min(size.width, SAMPLED_EDGE), min(size.height, SAMPLED_EDGE)
        box = Box((size.width - width) // 2, (size.height - height) // 2, width, height)
        try:
            picture = self._pixels(box, level)
        except SlideError:  # validation reports it
            return False
        return shown_colorspace(RGB, [picture]) == YCBCR

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
        return self._blend_background(self._read_rgba(box, level))

    def _read_rgba(self, box: Box, level: int) -> NDArray[np.uint8]:
        corner = (round(box.x * self._downsamples[level]), round(box.y * self._downsamples[level]))
        try:
            return np.asarray(self._slide.read_region(corner, self._numbers[level], (box.width, box.height)))
        except (openslide.OpenSlideError, OSError) as error:
            raise _slide_error(self.info.path, error) from error

    def _blend_background(self, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert (h, w, 4) to (h, w, 3) uint8: transparent pixels get the background colour of the slide."""
        alpha = rgba[..., 3]
        pixels = ycbcr_to_rgb(rgba) if self._holds_ycbcr else np.ascontiguousarray(rgba[..., :3])
        if alpha.min() == 255:
            return pixels
        self._is_transparent = True
        opacity = alpha[..., None].astype(np.uint16)
        return ((pixels * opacity + self._background * (255 - opacity) + 127) // 255).astype(np.uint8)


def _stated_resolution(path: Path, properties: Mapping[str, str], size: tuple[int, int]) -> Resolution:
    """Return the resolution of a slide. For plain TIFF files OpenSlide knows fewer statements than `read_resolution`.

    size: of the finest level, px.  Raises SlideError if OpenSlide shows another image of the file.
    """
    found = read_resolution(path, size) if properties["openslide.vendor"] in PLAIN_TIFF else None
    if found is not None and found.x is not None:
        return found
    x, y = (_parse_float(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    objective = _parse_float(properties.get("openslide.objective-power"))
    return choose_resolution([Statement("the slide states", x, y)], objective)


def _chunk_size(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    """Return width and height of a level's chunks as stated by OpenSlide, or the default if they are not useful."""
    names = (f"openslide.level[{level}].tile-{axis}" for axis in ("width", "height"))
    width, height = (_parse_float(properties.get(name)) or 0 for name in names)
    low, high = CHUNK_RANGE
    if low <= min(width, height) and max(width, height) <= high:
        return int(width), int(height)
    return DEFAULT_CHUNK, DEFAULT_CHUNK


def _sample_frames(path: Path) -> tuple[str, list[bytes]]:
    """Return the tagged colour space of a DICOM file, and up to SAMPLED_FRAMES of its JPEG frames, evenly spread.

    There is no frame if the file is damaged or not in baseline JPEG. Source: DICOM PS3.5, A.4.
    """
    frames: list[bytes] = []
    tag = RGB
    try:
        with path.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True, specific_tags=["PhotometricInterpretation"])
            tag = RGB if header.PhotometricInterpretation == "RGB" else YCBCR
            if header.file_meta.TransferSyntaxUID != JPEGBaseline8Bit:
                return tag, []
            file.seek(12, 1)  # tag, VR and length of PixelData
            _, size = struct.unpack("<II", file.read(8))
            if size > MAX_TABLE_BYTES:
                return tag, []
            offsets = np.frombuffer(file.read(size), "<u4")
            first = file.tell()
            picked = np.unique(np.linspace(0, max(len(offsets) - 1, 0), SAMPLED_FRAMES).astype(int))
            for k in picked if len(offsets) else range(SAMPLED_FRAMES):  # without a table of offsets: the first ones
                if len(offsets):
                    file.seek(first + int(offsets[k]))
                item, size = struct.unpack("<II", file.read(8))
                if item != ITEM_TAG or size > MAX_FRAME_BYTES:
                    break
                frames.append(file.read(size))
    except HEADER_ERRORS:
        pass
    return tag, frames


def _slide_error(path: Path, error: Exception) -> SlideError:
    reason = one_line(error) or type(error).__name__
    code = "truncated" if any(word in reason.lower() for word in TRUNCATION_WORDS) else "unreadable"
    what = f"OpenSlide cannot read the file ({reason})"
    if "photometric interpretation YBR_FULL" in reason:
        remedy = 'give all files of the slide the tag that says the same: dcmodify -m "(0028,0004)=YBR_FULL_422" FILE'
        return SlideError(code, path, what, remedy)
    return SlideError(code, path, what)


def _parse_float(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
