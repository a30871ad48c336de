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
from her2batch.slides.slide import Box, Level, Slide, SlideInfo, settle_mpp
from her2batch.slides.tiff import PACKED, TileTable, parse

WHITE = 255
HEAD, TAIL = 2048, 64

LOOKED_AT = 9
"""Tiles on which a slide's colour tag is checked."""

NO_GLASS, MUCH_GLASS = 0.001, 0.2
"""Shares of a tile that are bright and neutral, below and above which a colour tag is wrong and its opposite right."""


class TiffSlide(Slide):
    """Aperio, Philips, OME-TIFF and generic tiled TIFF."""

    name = "tiff"

    def __init__(self, path: Path) -> None:
        """Open and check the tile tables. Raises SlideError truncated, unreadable or not-a-slide."""
        self._tiff = parse(path)
        self._handle = os.open(path, os.O_RDONLY)
        self._buffer = np.empty(0, np.uint8)
        notes = self._mend_colour()
        mpp, source = settle_mpp(*self._tiff.mpp, self._tiff.objective)
        levels = tuple(Level(one.width, one.height, one.tile_width, one.tile_height) for one in self._tiff.levels)
        self.info = SlideInfo(path, self._tiff.format, self.name, levels, mpp, source, self._tiff.objective, notes)

    def close(self) -> None:
        """Free the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def table(self, level: int) -> TileTable:
        """Where the level's compressed tiles lie."""
        return self._tiff.levels[level]

    def raw(self, level: int, index: int) -> bytes:
        """A compressed tile as it stands in the file; b'' when a sparse file leaves it out."""
        return self._raw(self.table(level), index)

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Every stream starts and ends as one, and fits its tile; what a hole touches is decoded or refused."""
        for table in (*self._tiff.levels, *self._tiff.others):
            self._check_holes(table, holes)
            if table.compression in ("jpeg", "jpeg2000"):
                self._check_streams(table)

    def _mend_colour(self) -> tuple[str, ...]:
        """Some writers store RGB under a tag that says YCbCr: the glass turns magenta in every viewer.

        When none of the slide is bright and neutral as tagged, and much of it is as RGB, the tag is taken for wrong.
        """
        smallest = self._tiff.levels[-1]
        if smallest.compression != "jpeg" or smallest.colorspace != "YCBCR":
            return ()
        there = np.flatnonzero(smallest.counts)
        chosen = there[np.unique(np.linspace(0, len(there) - 1, LOOKED_AT).astype(int))] if len(there) else there
        streams = [self._raw(smallest, index) for index in chosen.tolist()]
        if not streams or any(b"Adobe" in data[:200] for data in streams):
            return ()
        if max(_glass_share(data, smallest, "YCBCR") for data in streams) > NO_GLASS:
            return ()
        if max(_glass_share(data, smallest, "RGB") for data in streams) < MUCH_GLASS:
            return ()
        levels = tuple(replace(one, colorspace="RGB") for one in self._tiff.levels)
        self._tiff = replace(self._tiff, levels=levels)
        return ("colour-tag-mended",)

    def _check_streams(self, table: TileTable) -> None:
        for index in np.flatnonzero(table.counts).tolist():
            offset, count = int(table.offsets[index]), int(table.counts[index])
            head = os.pread(self._handle, min(HEAD, count), offset)
            tail = os.pread(self._handle, min(TAIL, count), offset + count - min(TAIL, count))
            if table.compression == "jpeg":
                whole = jpeg.is_whole(head, tail)
                size = jpeg.frame_size(head)
                wrong_size = size is not None and not _fits(size, table, index)
            else:
                boxed = head[4:8] == b"jP  "
                whole = (head.startswith(b"\xff\x4f\xff\x51") or boxed) and tail.rstrip(b"\0").endswith(b"\xff\xd9")
                wrong_size = False
            if not whole:
                raise SlideError(
                    "truncated", self.info.path, f"its tile {index} of {table.width} px level is cut or empty"
                )
            if wrong_size:
                raise SlideError("unreadable", self.info.path, f"tile {index} is {size} px, not its level's tile size")

    def _check_holes(self, table: TileTable, holes: tuple[tuple[int, int], ...]) -> None:
        sparse = self._tiff.format == "philips"
        for start, end in holes:
            if not sparse and any(start < last and first < end for first, last in table.described):
                raise SlideError("truncated", self.info.path, f"bytes {start}–{end} of its directory are zeros")
            touched = np.flatnonzero(
                (table.offsets < end) & (table.offsets + table.counts > start) & (table.counts > 0)
            )
            if len(touched) and table.compression in PACKED:
                raise SlideError("truncated", self.info.path, f"bytes {start}–{end} of its image are zeros")
            if table.compression != "raw":
                for index in touched.tolist():
                    self._decode(table, index)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        table = self._tiff.levels[level]
        out = np.empty((box.height, box.width, 3), np.uint8)
        for row in range(box.y // table.tile_height, -(-box.bottom // table.tile_height)):
            for column in range(box.x // table.tile_width, -(-box.right // table.tile_width)):
                x, y = column * table.tile_width, row * table.tile_height
                left, top = max(box.x, x), max(box.y, y)
                right, bottom = min(box.right, x + table.tile_width), min(box.bottom, y + table.tile_height)
                place = out[top - box.y : bottom - box.y, left - box.x : right - box.x]
                index = row * table.across + column
                if table.counts[index] == 0:
                    place[:] = WHITE
                else:
                    place[:] = self._decode(table, index)[top - y : bottom - y, left - x : right - x]
        return out

    def _raw(self, table: TileTable, index: int) -> bytes:
        count = int(table.counts[index])
        data = os.pread(self._handle, count, int(table.offsets[index]))
        if len(data) != count:
            raise SlideError("truncated", self.info.path, f"ends inside its tile {index}")
        return data

    def _decode(self, table: TileTable, index: int) -> NDArray[np.uint8]:
        """A tile: (tile_height, tile_width, 3) uint8 (a last strip may be lower), valid until the next call."""
        data = self._raw(table, index)
        try:
            if table.compression == "jpeg":
                pixels = self._jpeg(table, data)
            elif table.compression == "jpeg2000":
                pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
                if table.colorspace == "YCBCR":
                    swapped = np.ascontiguousarray(pixels[..., [0, 2, 1]])
                    pixels = np.asarray(cv2.cvtColor(swapped, cv2.COLOR_YCrCb2RGB), np.uint8)
            else:
                assert table.unpack is not None
                pixels = table.unpack(data, index)
        except (ValueError, RuntimeError, TypeError, imagecodecs.Jpeg2kError) as error:
            words = str(error).strip() or type(error).__name__
            code = "truncated" if any(one in words.lower() for one in ("premature", "corrupt")) else "unreadable"
            what = f"its tile {index} can't be decoded ({words})"
            raise SlideError(code, self.info.path, what) from error
        row, column = divmod(index, table.across)
        needed = min(table.tile_height, table.height - row * table.tile_height)
        wide = min(table.tile_width, table.width - column * table.tile_width)
        if pixels.ndim != 3 or pixels.shape[0] < needed or pixels.shape[1] < wide or pixels.shape[2] < 3:
            raise SlideError("unreadable", self.info.path, f"its tile {index} decodes to {pixels.shape}")
        return pixels[..., :3]

    def _jpeg(self, table: TileTable, data: bytes) -> NDArray[np.uint8]:
        wanted = table.tile_width * table.tile_height * 3
        if len(self._buffer) < wanted:
            self._buffer = np.empty(wanted, np.uint8)
        return jpeg.decode(data, table.jpeg_tables, table.colorspace, self._buffer)


def _glass_share(data: bytes, table: TileTable, colorspace: str) -> float:
    """Share of a JPEG tile that is bright and neutral, as glass is; 0 when it can't be decoded."""
    try:
        pixels = jpeg.decode(data, table.jpeg_tables, colorspace)
    except ValueError:
        return 0.0
    darkest, brightest = pixels.min(axis=2), pixels.max(axis=2)
    return float(((darkest >= 200) & (brightest - darkest <= 24)).mean())


def _fits(size: tuple[int, int], table: TileTable, index: int) -> bool:
    """Whether a frame fills its tile: exactly, or cut at the image's edge (strips, and some writers' last tiles)."""
    row, column = divmod(index, table.across)
    height = min(table.tile_height, table.height - row * table.tile_height)
    width = min(table.tile_width, table.width - column * table.tile_width)
    return height <= size[0] <= table.tile_height and width <= size[1] <= table.tile_width
