"""A TIFF slide read from its own tile table, every tile decoded strictly."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides import jpeg
from her2batch.slides.slide import DEFAULT_CHUNK, Box, BoxArray, Level, Slide, SlideInfo, assemble_chunks, resolve_mpp
from her2batch.slides.tiff_tables import TiffStructure, TileTable, parse_tiff

HEAD, TAIL = 1024, 16
"""Bytes of a stream's ends that are looked at first; the whole stream where they don't say enough."""

LOOKED_AT = 9
"""Tiles on which a slide's colour tag is checked."""

NO_GLASS, MUCH_GLASS = 0.001, 0.2
"""Shares of a tile that are bright and neutral, below and above which a colour tag is wrong and its opposite right."""


class TiledTiffSlide(Slide):
    """Aperio, Philips, OME-TIFF and generic tiled TIFF; also striped images of one level."""

    name = "tiff"

    def __init__(self, path: Path) -> None:
        """Open and check the tile tables. Raises SlideError truncated, unreadable or not-a-slide."""
        self._path, self._tiff = path, self._parse(path)
        self._handle = os.open(path, os.O_RDONLY)
        self._buffer = np.empty(0, np.uint8)
        try:
            notes = self._mend_colour()
        except SlideError:
            self.close()
            raise
        mpp, source = resolve_mpp(*self._tiff.mpp, self._tiff.objective)
        levels = tuple(_level(one) for one in self._tiff.levels)
        self.info = SlideInfo(path, self._tiff.format, self.name, levels, mpp, source, self._tiff.objective, notes)

    def close(self) -> None:
        """Free the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _parse(self, path: Path) -> TiffStructure:
        return parse_tiff(path)

    def table(self, level: int) -> TileTable:
        """Where the level's compressed tiles lie."""
        return self._tiff.levels[level]

    def raw_tile(self, level: int, index: int) -> bytes:
        """A compressed tile as it stands in the file; b'' when a sparse file leaves it out."""
        return self._raw(self.table(level), index)

    def read_bytes(self, start: int, count: int) -> bytes:
        """Bytes of the file as they stand: tiles that lie one behind the other. Raises SlideError."""
        try:
            data = os.pread(self._handle, count, start)
        except OSError as error:
            raise SlideError("unreadable", self._path, f"its tiles can't be read ({error.strerror})") from error
        if len(data) != count:
            raise SlideError("truncated", self._path, f"ends before byte {start + count}, inside its tiles")
        return data

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Every stream starts and ends as one, and fits its tile; what a hole touches is decoded or refused."""
        self._check_directories(holes)
        for table in (*self._tiff.levels, *self._tiff.others):
            self._check_holes(table, holes)
        for table in self._tiff.others:
            self._check_streams(table)
        levels = tuple(replace(one, full_tiles=self._check_streams(one)) for one in self._tiff.levels)
        self._tiff = replace(self._tiff, levels=levels)

    def _mend_colour(self) -> tuple[str, ...]:
        """Some writers store RGB under a tag that says YCbCr: the glass turns magenta in every viewer.

        When none of the slide is bright and neutral as tagged, and much of it is as RGB, the tag is taken for wrong.
        """
        smallest = self._tiff.levels[-1]
        if smallest.compression != "jpeg" or smallest.colorspace != "YCBCR":
            return ()
        there = np.flatnonzero(smallest.byte_counts)
        chosen = there[np.unique(np.linspace(0, len(there) - 1, LOOKED_AT).astype(int))] if len(there) else there
        streams = [self._raw(smallest, index) for index in chosen.tolist()]
        if not streams or any(b"Adobe" in data[:200] for data in streams):
            return ()
        if any(_glass_share(data, smallest, "YCBCR") > NO_GLASS for data in streams):
            return ()
        if all(_glass_share(data, smallest, "RGB") < MUCH_GLASS for data in streams):
            return ()
        levels = tuple(replace(one, colorspace="RGB") for one in self._tiff.levels)
        self._tiff = replace(self._tiff, levels=levels)
        return ("colour-tag-mended",)

    def _check_directories(self, holes: tuple[tuple[int, int], ...]) -> None:
        """Nothing that says what the slide is, or where its tiles are, may lie in a hole."""
        for start, end in holes:
            if any(start < last and first < end for first, last in self._tiff.directories):
                raise SlideError("truncated", self._path, f"bytes {start}–{end} of its directories are zeros")
            if any(start < last and first < end for first, last in self._tiff.tile_lists):
                # Philips leaves tiles out, and then both their offset and their size are 0
                half = any(((one.offsets == 0) != (one.byte_counts == 0)).any() for one in self._tiff.levels)
                if half or self._tiff.format != "philips":
                    raise SlideError("truncated", self._path, f"bytes {start}–{end} of its lists of tiles are zeros")

    def _check_holes(self, table: TileTable, holes: tuple[tuple[int, int], ...]) -> None:
        """A hole in a JPEG tile shows when it is decoded strictly; no other stream has 512 zero bytes in a row.

        OpenJPEG took 4 kB of zeros for image in 12 of 20 slides, so JPEG 2000 may have them only behind its end; in
        an uncompressed image they would be 170 px of utter black.
        """
        ends = table.offsets + table.byte_counts
        for start, end in holes:
            for index in np.flatnonzero((table.offsets < end) & (ends > start) & (table.byte_counts > 0)).tolist():
                if table.compression == "jpeg":
                    self._decode(table, index)
                    continue
                data = self._raw(table, index)
                used = len(data.rstrip(b"\0")) if table.compression == "jpeg2000" else len(data)
                if start < table.offsets[index] + used:
                    raise SlideError("truncated", self._path, f"bytes {start}–{end} of its image are zeros")

    def _check_streams(self, table: TileTable) -> bool:
        """Whether every stream holds a full tile. Raises SlideError for one that is cut, or is not of this level."""
        if table.compression not in ("jpeg", "jpeg2000"):
            return table.full_tiles
        full = table.full_tiles
        for index in np.flatnonzero(table.byte_counts).tolist():
            size = self._frame_size(table, index)
            if size is None:
                what = f"tile {index} of its level of {table.width} × {table.height} px is cut or empty"
                raise SlideError("truncated", self._path, what)
            if not _fits(size, table, index):
                raise SlideError("unreadable", self._path, f"tile {index} is of {size} px, not of its level's")
            full &= size == (table.tile_height, table.tile_width)
        return full

    def _frame_size(self, table: TileTable, index: int) -> tuple[int, int] | None:
        """(height, width) of the image in a stream that starts and ends as one; None when it doesn't."""
        offset, count = int(table.offsets[index]), int(table.byte_counts[index])
        look = jpeg.frame_size if table.compression == "jpeg" else jpeg.codestream_size
        head = os.pread(self._handle, min(HEAD, count), offset)
        tail = head if count <= HEAD else os.pread(self._handle, TAIL, offset + count - TAIL)
        size = look(head) if jpeg.has_end_marker(tail) else None
        if size is None and count > HEAD:  # a long header, or much padding
            whole = self._raw(table, index)
            size = look(whole) if jpeg.has_end_marker(whole) else None
        return size

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        return self._assembled(box, self._tiff.levels[level], 1, None)

    def _read_shrunk(self, box: Box, level: int, shrink: int, parts: BoxArray | None) -> NDArray[np.uint8]:
        """Shrunk inside the decoder, where each px has its colour: RGB under a wrong tag has green and blue at half."""
        table = self._tiff.levels[level]
        if shrink == 1 or (table.compression == "jpeg" and table.full_tiles and not self.info.notes):
            return self._assembled(box, table, shrink, parts)
        return super()._read_shrunk(box, level, shrink, parts)

    def _assembled(self, box: Box, table: TileTable, shrink: int, parts: BoxArray | None) -> NDArray[np.uint8]:
        def decoded(row: int, column: int) -> NDArray[np.uint8] | None:
            index = row * table.across + column
            return None if table.byte_counts[index] == 0 else self._decode(table, index, shrink)

        return assemble_chunks(box, (table.tile_width // shrink, table.tile_height // shrink), decoded, parts)

    def _raw(self, table: TileTable, index: int) -> bytes:
        count = int(table.byte_counts[index])
        try:
            data = os.pread(self._handle, count, int(table.offsets[index]))
        except OSError as error:
            raise SlideError("unreadable", self._path, f"its tile {index} can't be read ({error.strerror})") from error
        if len(data) != count:
            raise SlideError("truncated", self._path, f"ends inside its tile {index}")
        return data

    def _decode(self, table: TileTable, index: int, shrink: int = 1) -> NDArray[np.uint8]:
        """A tile, shrunk if it is a JPEG: (tile_height, tile_width, 3) uint8 (a last strip may be lower).

        Valid until the next call.
        """
        data = self._raw(table, index)
        try:
            if table.compression == "jpeg":
                pixels = self._jpeg(table, data, shrink)
            elif table.compression == "jpeg2000":
                pixels = _jpeg2000(table, data, index)
            else:
                assert table.unpack is not None
                pixels = table.unpack(data, index)
        except (ValueError, RuntimeError, TypeError, imagecodecs.Jpeg2kError) as error:
            words = str(error).strip() or type(error).__name__
            code = "truncated" if any(one in words.lower() for one in ("premature", "corrupt")) else "unreadable"
            what = f"its tile {index} can't be decoded ({words})"
            raise SlideError(code, self._path, what) from error
        row, column = divmod(index, table.across)
        needed = min(table.tile_height, table.height - row * table.tile_height) // shrink
        wide = min(table.tile_width, table.width - column * table.tile_width) // shrink
        if pixels.ndim != 3 or pixels.shape[0] < needed or pixels.shape[1] < wide or pixels.shape[2] < 3:
            raise SlideError("unreadable", self._path, f"its tile {index} decodes to {pixels.shape}")
        return pixels[..., :3]

    def _jpeg(self, table: TileTable, data: bytes, shrink: int) -> NDArray[np.uint8]:
        wanted = table.tile_width * table.tile_height * 3
        if len(self._buffer) < wanted:
            self._buffer = np.empty(wanted, np.uint8)
        return jpeg.decode_jpeg(data, table.jpeg_tables, table.colorspace, self._buffer, shrink)


def _jpeg2000(table: TileTable, data: bytes, index: int) -> NDArray[np.uint8]:
    """A tile from a JPEG 2000 stream: (h, w, 3) uint8. A stream of another size is not even begun."""
    size = jpeg.codestream_size(data[:HEAD])
    if size is None or not _fits(size, table, index):
        raise ValueError(f"a stream of {size} px")
    pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
    if table.colorspace == "RGB":
        return pixels
    swapped = np.ascontiguousarray(pixels[..., [0, 2, 1]])
    return np.asarray(cv2.cvtColor(swapped, cv2.COLOR_YCrCb2RGB), np.uint8)


def _glass_share(data: bytes, table: TileTable, colorspace: str) -> float:
    """Share of a JPEG tile that is bright and neutral, as glass is; 0 when it can't be decoded."""
    try:
        buffer = np.empty(table.tile_width * table.tile_height * 3, np.uint8)
        pixels = jpeg.decode_jpeg(data, table.jpeg_tables, colorspace, buffer)[::2, ::2]
    except ValueError:
        return 0.0
    darkest, brightest = pixels.min(axis=2), pixels.max(axis=2)
    return float(((darkest >= 200) & (brightest - darkest <= 24)).mean())


def _level(table: TileTable) -> Level:
    """Strips are no chunks to work in: they may be one row high."""
    if table.full_tiles:
        return Level(table.width, table.height, table.tile_width, table.tile_height)
    return Level(table.width, table.height, DEFAULT_CHUNK, DEFAULT_CHUNK)


def _fits(size: tuple[int, int], table: TileTable, index: int) -> bool:
    """Whether a frame fills its tile: exactly, or cut at the image's edge (strips, and some writers' last tiles)."""
    row, column = divmod(index, table.across)
    height = min(table.tile_height, table.height - row * table.tile_height)
    width = min(table.tile_width, table.width - column * table.tile_width)
    return height <= size[0] <= table.tile_height and width <= size[1] <= table.tile_width
