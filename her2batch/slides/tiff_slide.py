"""TIFF slides, read from their own tile table. Every tile is decoded strictly."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides import jpeg
from her2batch.slides.slide import (
    DEFAULT_CHUNK,
    Box,
    BoxArray,
    Level,
    MissingArea,
    Slide,
    SlideInfo,
    assemble_chunks,
    resolve_mpp,
)
from her2batch.slides.tiff.missing import missing_tiles, present_tiles, rebuild_tile
from her2batch.slides.tiff.padding import StoredLevel, picture_sizes
from her2batch.slides.tiff.segments import Conversion, Samples, fit_conversion
from her2batch.slides.tiff_tables import ASSOCIATED_DAMAGED, TiffStructure, TileTable, crop_table, parse_tiff

HEAD_BYTES, TAIL_BYTES = 1024, 16
"""Bytes read from the start and the end of a stream; the whole stream is read only if they are not sufficient."""

SAMPLED_TILES = 9
"""Number of tiles of a level on which its colour space is decided."""


class TiledTiffSlide(Slide):
    """A slide in Aperio, Philips, OME-TIFF or generic tiled TIFF format, or a striped TIFF image of one level."""

    name = "tiff"

    def __init__(self, path: Path) -> None:
        """Open a file and check its tile tables. Raises SlideError truncated, unreadable or not-a-slide."""
        self._path, self._tiff = path, self._parse(path)
        self._handle = os.open(path, os.O_RDONLY)
        self._buffer = np.empty(0, np.uint8)
        self._conversion = Conversion()
        try:
            self._remove_padding()
            notes = (*self._tiff.notes, *self._decide_colours(), *self._fit_conversion())
        except SlideError:
            self.close()
            raise
        objective, problem = self._tiff.objective, self._tiff.mpp_problem
        mpp, source = resolve_mpp(*self._tiff.mpp, objective)
        levels = tuple(_as_level(table) for table in self._tiff.levels)
        self.info = SlideInfo(
            path, self._tiff.format, self.name, levels, mpp, source, objective, notes, mpp_problem=problem
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _parse(self, path: Path) -> TiffStructure:
        return parse_tiff(path)

    def table(self, level: int) -> TileTable:
        """Return the tile table of a level: where its compressed tiles are in the file."""
        return self._tiff.levels[level]

    def copies_tiles(self, level: int) -> bool:
        """Return whether the tiles of a level are JPEG images of all colours, each of a whole tile."""
        table = self.table(level)
        return table.compression == "jpeg" and table.full_tiles and table.planes == 1

    def raw_tile(self, level: int, index: int) -> bytes:
        """Return a compressed tile unchanged; b'' for a tile that a sparse file omits."""
        return self._tile_bytes(self.table(level), index)

    def read_bytes(self, start: int, count: int) -> bytes:
        """Read bytes of the file, such as adjacent tiles. Raises SlideError."""
        try:
            data = os.pread(self._handle, count, start)
        except OSError as error:
            raise SlideError("unreadable", self._path, f"its tiles cannot be read ({error.strerror})") from error
        if len(data) != count:
            raise SlideError("truncated", self._path, f"the file ends before byte {start + count}, inside its tiles")
        return data

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Check that every stream is complete and has the size of its tile, and decode every tile with a hole.

        Damage of a label, macro image or thumbnail is a note: they are often wiped on purpose, and never used.
        """
        self._check_directories(holes)
        for table in self._tiff.levels:
            self._check_holes(table, holes)
        if ASSOCIATED_DAMAGED not in self.info.notes and self._has_damaged_others(holes):
            self.info = replace(self.info, notes=(*self.info.notes, ASSOCIATED_DAMAGED))
        levels = tuple(replace(table, full_tiles=self._check_streams(table)) for table in self._tiff.levels)
        self._tiff = replace(self._tiff, levels=levels)

    def _has_damaged_others(self, holes: tuple[tuple[int, int], ...]) -> bool:
        """Return whether an image that is not used is wiped or damaged, or its description or list of tiles."""
        if any(start < last and first < end for start, end in holes for first, last in self._tiff.unused):
            return True
        try:
            for table in self._tiff.others:
                self._check_holes(table, holes)
                self._check_streams(table)
        except SlideError:
            return True
        return any(not table.byte_counts.any() for table in self._tiff.others)

    def _remove_padding(self) -> None:
        """Cut levels that are padded to whole tiles to their picture, so that their scale is that of their size."""
        tables = self._tiff.levels

        def read_level(number: int, box: Box) -> NDArray[np.uint8]:
            return self._assemble(box, tables[number], 1, None)

        sizes = picture_sizes([_as_stored(table) for table in tables], read_level)
        pairs = list(zip(tables, sizes, strict=True))
        levels = tuple(crop_table(table, *size) for table, size in pairs if size is not None)
        others = tuple(table for table, size in pairs if size is None)
        self._tiff = replace(self._tiff, levels=levels, others=(*self._tiff.others, *others))

    def _decide_colours(self) -> tuple[str, ...]:
        """Decide the colour space of each level from its streams; return a note if a tag or a marker is wrong.

        Levels with one tag whose streams have the same signs of a colour space are decided together, on the smallest.
        """
        decided: dict[tuple[object, ...], str] = {}
        levels, mended = list[TileTable](), list[bool]()
        for table in reversed(self._tiff.levels):
            if table.compression in ("jpeg", "jpeg2000") and table.planes == 1:
                streams = self._sample_streams(table)
                signs = frozenset(map(jpeg.read_stream_colour, streams)) - {None}
                key = table.compression, table.colorspace, signs
                if key not in decided:
                    decided[key] = jpeg.decide_colorspace(table.colorspace, streams, table.jpeg_tables)
                stated = {table.colorspace, *(sign.stated for sign in signs if sign is not None)} - {None}
                levels.append(replace(table, colorspace=decided[key]))
                mended.append(stated != {decided[key]})
            else:
                levels.append(table)
                mended.append(False)
        levels.reverse()
        mended.reverse()
        self._tiff = replace(self._tiff, levels=tuple(levels))
        self._mended_to_rgb = {k for k, wrong in enumerate(mended) if wrong and levels[k].colorspace == "RGB"}
        return ("colour-tag-mended",) if any(mended) else ()

    def _fit_conversion(self) -> tuple[str, ...]:
        """Find how samples of 16 bits and transparent px become 8-bit RGB; return a note if that is an assumption."""
        smallest = self._tiff.levels[-1]
        if smallest.samples == Samples() or smallest.compression == "jpeg":
            return ()
        stored = np.flatnonzero(smallest.stored)
        picked = stored[np.unique(np.linspace(0, max(len(stored) - 1, 0), SAMPLED_TILES).astype(int))[: len(stored)]]
        tiles = []
        for index in picked.tolist():
            with contextlib.suppress(SlideError):  # a damaged tile is found by whoever reads it
                tiles.append(self._raw_samples(smallest, index)[::2, ::2].copy())
        self._conversion, notes = fit_conversion(smallest.samples, tiles)
        return notes

    def _raw_samples(self, table: TileTable, index: int) -> NDArray[Any]:
        """Decode a tile that is not JPEG, with all its planes, to its samples as stored: (h, w, n)."""
        if table.planes == 1:
            return self._decode_samples(table, index, self._tile_bytes(table, index), 1)
        numbers = [index + plane * table.across * table.down for plane in range(table.planes)]
        parts = [self._decode_samples(table, number, self._tile_bytes(table, number), 1) for number in numbers]
        return np.concatenate(parts, axis=2)

    def _sample_streams(self, table: TileTable) -> list[bytes]:
        """Return up to SAMPLED_TILES streams of the right size, spread evenly over the stored tiles of a level."""
        parse_size = jpeg.frame_size if table.compression == "jpeg" else jpeg.codestream_size
        stored = np.flatnonzero(table.byte_counts)
        if len(stored):
            stored = stored[np.unique(np.linspace(0, len(stored) - 1, SAMPLED_TILES).astype(int))]
        streams = [(index, self._tile_bytes(table, index)) for index in stored.tolist()]
        sizes = [(index, stream, parse_size(stream)) for index, stream in streams]
        return [stream for index, stream, size in sizes if size is not None and _fits_tile(size, table, index)]

    def _check_directories(self, holes: tuple[tuple[int, int], ...]) -> None:
        """Refuse holes in directories, descriptions and tile lists. Raises SlideError."""
        for start, end in holes:
            if any(start < last and first < end for first, last in self._tiff.directories):
                raise SlideError("truncated", self._path, f"bytes {start}–{end} of its TIFF directories are zeros")
            if any(start < last and first < end for first, last in self._tiff.tile_lists):
                # sparse files omit tiles; then both their offset and their size are 0
                inconsistent = any(((t.offsets == 0) != (t.byte_counts == 0)).any() for t in self._tiff.levels)
                if inconsistent or any(not t.byte_counts.any() for t in self._tiff.levels):
                    raise SlideError("truncated", self._path, f"bytes {start}–{end} of its tile lists are zeros")

    def _check_holes(self, table: TileTable, holes: tuple[tuple[int, int], ...]) -> None:
        """Refuse holes in image data. Raises SlideError.

        A JPEG tile with a hole fails strict decoding. No other compressed stream has 512 zero bytes in a row, except
        JPEG 2000 after its end: OpenJPEG decoded 4 kB of zeros as image in 12 of 20 slides. In an uncompressed image
        they would be 170 px of pure black, unless they fill up a tile at the edge of the image.
        """
        ends = table.offsets + table.byte_counts
        for start, end in holes:
            for index in np.flatnonzero((table.offsets < end) & (ends > start) & (table.byte_counts > 0)).tolist():
                if table.compression == "jpeg":
                    self._decode(table, index)
                    continue
                if table.compression == "raw" and not _touches_picture(table, index, start, end):
                    continue
                data = self._tile_bytes(table, index)
                used = len(data.rstrip(b"\0")) if table.compression == "jpeg2000" else len(data)
                if start < table.offsets[index] + used:
                    raise SlideError("truncated", self._path, f"bytes {start}–{end} of its image are zeros")

    def _check_streams(self, table: TileTable) -> bool:
        """Return whether every stream has a full tile. Raises SlideError for a truncated or mismatched stream."""
        if table.compression not in ("jpeg", "jpeg2000"):
            return table.full_tiles
        full = table.full_tiles
        for index in np.flatnonzero(table.byte_counts).tolist():
            size = self._frame_size(table, index)
            if size is None:
                what = f"tile {index} of its level of {table.width} × {table.height} px is truncated or empty"
                raise SlideError("truncated", self._path, what)
            if not _fits_tile(size, table, index):
                what = f"tile {index} has {size[1]} × {size[0]} px, which is not the tile size of its level"
                raise SlideError("unreadable", self._path, what)
            full &= size == (table.tile_height, table.tile_width)
        return full

    def _frame_size(self, table: TileTable, index: int) -> tuple[int, int] | None:
        """Return (height, width) of the image in a stream; None when its start or its end is missing."""
        offset, count = int(table.offsets[index]), int(table.byte_counts[index])
        parse_size = jpeg.frame_size if table.compression == "jpeg" else jpeg.codestream_size
        head = os.pread(self._handle, min(HEAD_BYTES, count), offset)
        tail = head if count <= HEAD_BYTES else os.pread(self._handle, TAIL_BYTES, offset + count - TAIL_BYTES)
        size = parse_size(head) if jpeg.has_end_marker(tail) else None
        if size is None and count > HEAD_BYTES:  # a long header, or much padding
            stream = self._tile_bytes(table, index)
            size = parse_size(stream) if jpeg.has_end_marker(stream) else None
        return size

    def missing_area(self) -> MissingArea | None:
        """Return the tiles of level 0 that the file does not store."""
        return missing_tiles(self.table(0))

    def present_tiles(self, level: int) -> NDArray[np.bool_]:
        """Return which tiles of a level are stored, or can be rebuilt from a finer level: (down, across) bool."""
        return present_tiles(self._tiff.levels, level)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        return self._read_level(level, box)

    def _read_shrunk(self, box: Box, level: int, shrink: int, needed: BoxArray | None) -> NDArray[np.uint8]:
        """Shrink full JPEG tiles while they are decoded, other tiles after that.

        RGB under a wrong tag is among the others, because the decoder would subsample green and blue, and so are tiles
        whose edges the factor does not divide, because they would not join.
        """
        table = self._tiff.levels[level]
        joins = table.full_tiles and self.info.levels[level].shrinks_by(shrink)
        joins &= table.compression == "jpeg" and table.planes == 1
        if shrink == 1 or (joins and level not in self._mended_to_rgb):
            return self._assemble(box, table, shrink, needed, level)
        return super()._read_shrunk(box, level, shrink, needed)

    def _assemble(
        self, box: Box, table: TileTable, shrink: int, needed: BoxArray | None, level: int | None = None
    ) -> NDArray[np.uint8]:
        """Assemble a box of a table. level: its number, if tiles that it lacks are made from the finer levels."""

        def decode_tile(row: int, column: int) -> NDArray[np.uint8] | None:
            index = row * table.across + column
            if not table.stored[row, column]:
                if level is None:
                    return None
                return rebuild_tile(self._tiff.levels, level, (row, column), shrink, self._read_level)
            return self._decode_planes(table, index) if table.planes > 1 else self._decode(table, index, shrink)

        return assemble_chunks(box, (table.tile_width // shrink, table.tile_height // shrink), decode_tile, needed)

    def _read_level(self, level: int, box: Box) -> NDArray[np.uint8]:
        return self._assemble(box, self._tiff.levels[level], 1, None, level)

    def _decode_planes(self, table: TileTable, index: int) -> NDArray[np.uint8]:
        """Decode the red, green and blue of a tile, which are stored apart."""
        if self._conversion.alpha is not None and table.planes == 4:
            return self._conversion.to_rgb(self._raw_samples(table, index))
        numbers = [index + plane * table.across * table.down for plane in range(3)]
        return np.concatenate([self._decode(table, number) for number in numbers], axis=2)

    def _tile_bytes(self, table: TileTable, index: int) -> bytes:
        count = int(table.byte_counts[index])
        try:
            data = os.pread(self._handle, count, int(table.offsets[index]))
        except OSError as error:
            raise SlideError("unreadable", self._path, f"its tile {index} cannot be read ({error.strerror})") from error
        if len(data) != count:
            raise SlideError("truncated", self._path, f"the file ends inside its tile {index}")
        return data

    def _decode(self, table: TileTable, index: int, shrink: int = 1) -> NDArray[np.uint8]:
        """Decode a tile, shrunk if it is a JPEG: (tile_height, tile_width, 3) uint8 (the last strip may be lower).

        With several planes, the result has one colour.  The result is valid until the next call.
        """
        pixels = self._decode_samples(table, index, self._tile_bytes(table, index), shrink)
        if pixels.dtype == np.uint8 and self._conversion.alpha is None:
            return pixels[..., : 1 if table.planes > 1 else 3]
        return self._conversion.to_rgb(pixels)

    def _decode_samples(self, table: TileTable, index: int, data: bytes, shrink: int) -> NDArray[Any]:
        """Decode a tile to its samples: RGB for JPEG and JPEG 2000, else as stored. Raises SlideError."""
        try:
            if table.compression == "jpeg" and table.planes > 1:
                pixels: NDArray[Any] = jpeg.decode_grey_jpeg(data, table.jpeg_tables)
            elif table.compression == "jpeg":
                pixels = self._decode_jpeg(table, data, shrink)
            elif table.compression == "jpeg2000":
                pixels = _decode_jpeg2000(table, data, index)
            else:
                assert table.decode_segment is not None
                pixels = table.decode_segment(data, index)
        except (ValueError, RuntimeError, TypeError, imagecodecs.Jpeg2kError) as error:
            reason = str(error).strip() or type(error).__name__
            code = "truncated" if any(word in reason.lower() for word in ("premature", "corrupt")) else "unreadable"
            raise SlideError(code, self._path, f"its tile {index} cannot be decoded ({reason})") from error
        height, width = (edge // shrink for edge in _part_inside(table, index))
        samples = 1 if table.planes > 1 else 3
        if pixels.ndim != 3 or pixels.shape[0] < height or pixels.shape[1] < width or pixels.shape[2] < samples:
            what = f"its tile {index} decodes to an array of {pixels.shape}, not of ({height}, {width}, {samples})"
            raise SlideError("unreadable", self._path, what)
        return pixels

    def _decode_jpeg(self, table: TileTable, data: bytes, shrink: int) -> NDArray[np.uint8]:
        size = table.tile_width * table.tile_height * 3
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.uint8)
        return jpeg.decode_jpeg(data, table.jpeg_tables, table.colorspace, self._buffer, shrink)


def _decode_jpeg2000(table: TileTable, data: bytes, index: int) -> NDArray[np.uint8]:
    """Decode a JPEG 2000 tile: (h, w, 3) uint8 RGB. A stream of another size is refused before it is decoded."""
    size = jpeg.codestream_size(data[:HEAD_BYTES])
    if size is None or not _fits_tile(size, table, index):
        raise ValueError(f"the stream has size {size}, which is not that of its tile")
    if table.planes > 1:
        return jpeg.decode_jpeg2000_plane(data)
    return jpeg.decode_jpeg2000(data, table.colorspace)


def _as_level(table: TileTable) -> Level:
    """Return the level of a tile table. Strips get chunks of the default size, because they may be one row high."""
    if table.full_tiles:
        return Level(table.width, table.height, table.tile_width, table.tile_height)
    return Level(table.width, table.height, DEFAULT_CHUNK, DEFAULT_CHUNK)


def _fits_tile(size: tuple[int, int], table: TileTable, index: int) -> bool:
    """Return whether a frame (height, width) has the size of its tile, or of the part inside the image.

    The latter holds for strips, and for the last tiles of some writers.
    """
    height, width = _part_inside(table, index)
    return height <= size[0] <= table.tile_height and width <= size[1] <= table.tile_width


def _part_inside(table: TileTable, index: int) -> tuple[int, int]:
    """Return height and width of the part of a tile that lies inside the image."""
    row, column = divmod(index % (table.across * table.down), table.across)
    height = min(table.tile_height, table.height - row * table.tile_height)
    return height, min(table.tile_width, table.width - column * table.tile_width)


def _touches_picture(table: TileTable, index: int, start: int, end: int) -> bool:
    """Return whether bytes of an uncompressed tile are inside the image. start, end: offsets in the file."""
    first, count = int(table.offsets[index]), int(table.byte_counts[index])
    bytes_per_px, rest = divmod(count, table.tile_width * table.tile_height)
    if rest or not table.full_tiles:
        return True
    height, width = _part_inside(table, index)
    row_bytes = table.tile_width * bytes_per_px
    row, column = divmod(max(start - first, 0), row_bytes)
    if column >= width * bytes_per_px:  # right of the image, up to the next row
        row, column = row + 1, 0
    return row < height and first + row * row_bytes + column < min(end, first + count)


def _as_stored(table: TileTable) -> StoredLevel:
    tile_bytes = table.byte_counts.reshape(table.planes, -1).sum(axis=0)
    tile = (table.tile_width, table.tile_height) if table.full_tiles else (1, 1)  # strips are not padded
    return StoredLevel((table.width, table.height), tile, tile_bytes, table.is_stated)
