"""NDPI, Hamamatsu's slides: a level is one JPEG, cut by restart markers into runs; its chunks are runs joined again.

A run is a strip, 8 px high, of the blocks (MCUs) between two restart markers; tag 65426 lists where runs start.
Nothing is carried over from one run to the next, so runs that lie below each other make a JPEG of their own: a header
of their size, their bytes as they are, restart markers numbered anew. Nothing is decoded for that. What is unusual is
refused with UnsupportedTiff: OpenSlide may read it.

Source: ITU-T T.81, B.2 and E.1.4 (restart intervals); tifffile and OpenSlide's documentation for the tags. Tried on
files of our own making only: no slide of a scanner was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import ByteRange, check_directories
from her2batch.slides.jpeg import EOI, FRAME_MARKERS, SOI
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import (
    TIFFFILE_ERRORS,
    YCBCR,
    TiffStructure,
    TileTable,
    UnsupportedTiff,
    has_same_aspect,
    open_tifffile,
    tag_resolution,
)

FORMAT = "hamamatsu"
SOURCE_LENS, FOCAL_PLANE, MCU_STARTS, MCU_STARTS_HIGH = 65421, 65424, 65426, 65432

CHUNK_HEIGHT = 256
LARGEST_CHUNK, LARGEST_SINGLE = 4_000_000, 16_000_000
"""px of a chunk of runs, and of a level that has no runs and is one chunk."""

LARGEST_SIDE = 65_500
"""px, of libjpeg; a longer side is not said in the JPEG's header, which holds 0 or anything."""

LOOKED_AT = 64
"""Runs of a level whose markers are looked at when it is opened; all of them when it is validated."""

LONGEST_HEADER = 65_536
RESTART = 0xD0
BASELINE, TABLES, RESTART_INTERVAL, SCAN, ADOBE = 0xC0, (0xDB, 0xC4), 0xDD, 0xDA, 0xEE


@dataclass(frozen=True)
class RunTable(TileTable):
    """A level whose chunks are runs joined."""

    starts: NDArray[np.int64]  # (runs + 1,) where each starts in the file, row by row, and where the last one ends
    rows: int  # of runs
    joined: int  # rows of runs in a chunk
    header: bytes  # of a chunk's stream, up to its first run

    def runs(self, index: int) -> NDArray[np.int64]:
        """Numbers of the runs of a chunk, from the top: (joined,). Below the image the last one stands again."""
        row, column = divmod(index, self.across)
        return np.minimum(row * self.joined + np.arange(self.joined), self.rows - 1) * self.across + column

    def markers(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The second bytes of the markers that end runs in the file."""
        return np.where(runs == self.rows * self.across - 1, EOI[1], RESTART + runs % 8)


class NdpiSlide(TiledTiffSlide):
    """A slide of Hamamatsu's, read from its own table of runs."""

    def _parse(self, path: Path) -> TiffStructure:
        return parse_ndpi(path)

    def _raw(self, table: TileTable, index: int) -> bytes:
        """The stream of a chunk, made of its runs."""
        if not isinstance(table, RunTable):
            return super()._raw(table, index)
        row, column = divmod(index, table.across)
        return bytes(next(self._row(table, row, [column])))

    def raw_row(self, level: int, row: int, columns: list[int]) -> Iterator[bytearray]:
        """Streams of chunks in a row, columns ascending; a row of runs is read at once, from first to last column."""
        table = self.table(level)
        assert isinstance(table, RunTable)
        return self._row(table, row, columns)

    def _row(self, table: RunTable, row: int, columns: list[int]) -> Iterator[bytearray]:
        firsts = table.runs(row * table.across)
        begins = table.starts[firsts + columns[0]]
        sizes = table.starts[firsts + columns[-1] + 1] - begins
        lines = [memoryview(self.read_bytes(*one)) for one in zip(begins.tolist(), sizes.tolist(), strict=True)]
        for column in columns:
            runs = firsts + column
            near, far = table.starts[runs] - begins, table.starts[runs + 1] - begins
            parts = [line[i:k] for line, i, k in zip(lines, near.tolist(), far.tolist(), strict=True)]
            data = bytearray().join((table.header, *parts))
            stream = np.frombuffer(data, np.uint8)
            ends = len(table.header) + (far - near).cumsum()
            self._check_ends(table, runs, stream[ends - 2], stream[ends - 1])
            stream[ends - 1] = RESTART + np.arange(table.joined) % 8
            stream[-1] = EOI[1]
            yield data

    def _check_ends(
        self, table: RunTable, runs: NDArray[np.int64], first: NDArray[np.uint8], second: NDArray[np.uint8]
    ) -> None:
        """Refuse runs whose last two bytes aren't the marker that belongs there."""
        wrong = runs[(first != 0xFF) | (second != table.markers(runs))]
        if len(wrong):
            what = f"no restart marker where run {wrong[0]} of its level of {table.width} × {table.height} px ends"
            raise SlideError("truncated", self._path, what)

    def _check_streams(self, table: TileTable) -> bool:
        """Every run ends in the marker that belongs there."""
        if not isinstance(table, RunTable):
            return super()._check_streams(table)
        ends = np.frombuffer(b"".join(self.read_bytes(end - 2, 2) for end in table.starts[1:].tolist()), np.uint8)
        self._check_ends(table, np.arange(len(ends) // 2), ends[::2], ends[1::2])
        return True

    def _check_holes(self, table: TileTable, holes: tuple[ByteRange, ...]) -> None:
        """A hole in the runs of a chunk shows when it is decoded strictly."""
        if not isinstance(table, RunTable):
            super()._check_holes(table, holes)
            return
        for start, end in holes:
            first, last = np.searchsorted(table.starts, [start, end], side="right") - 1
            runs = np.arange(max(first, 0), min(last + 1, table.rows * table.across))
            for index in np.unique(runs // table.across // table.joined * table.across + runs % table.across).tolist():
                self._decode(table, index)


def parse_ndpi(path: Path) -> TiffStructure:
    """The levels of an NDPI file, their ranges checked. Raises SlideError truncated or unreadable, UnsupportedTiff."""
    directories, lists = check_directories(path, high_words=True)
    try:
        with open_tifffile(path, is_ndpi=True) as file:
            pages: list[Any] = [page for page in file.pages if _is_level(page)]
            if not pages:
                raise UnsupportedTiff(path, "none of its images is a level")
            pages.sort(key=lambda page: -int(page.imagewidth))
            levels = tuple(_table(path, file.filehandle, page) for page in pages)
            mpp, lens = tag_resolution(pages[0]), float(pages[0].tags.valueof(SOURCE_LENS))
    except TIFFFILE_ERRORS as error:
        raise SlideError("unreadable", path, f"its structure can't be parsed ({error})") from error
    for finer, coarser in pairwise(levels):
        if coarser.height >= finer.height or coarser.width >= finer.width or not has_same_aspect(coarser, levels[0]):
            raise UnsupportedTiff(path, "its levels are not one picture")
    return TiffStructure(FORMAT, levels, (), mpp, lens if lens > 0 else None, directories, lists)


def _is_level(page: Any) -> bool:
    """Not the macro image and the map (their lenses are -1 and -2), nor another focal plane."""
    return float(page.tags.valueof(SOURCE_LENS, 0) or 0) > 0 and not page.tags.valueof(FOCAL_PLANE, 0)


def _table(path: Path, file: Any, page: Any) -> TileTable:
    """A level's table: of runs, or of one chunk where it has none and is small."""
    kind = (int(page.compression), int(page.photometric), page.samplesperpixel, page.dtype, page.planarconfig)
    if kind != (7, YCBCR, 3, np.uint8, 1):
        raise UnsupportedTiff(path, "it is no 8-bit colour JPEG")
    width, height = int(page.imagewidth), int(page.imagelength)
    start, count = (_single(path, page, tag) for tag in (273, 279))
    if count < 4 or start < 1 or start + count > file.size:
        raise SlideError("truncated", path, f"the file ends at {file.size} bytes, before the end of a level")
    starts = page.tags.valueof(MCU_STARTS)
    if starts is None:
        if width * height > LARGEST_SINGLE:
            raise UnsupportedTiff(path, f"its level of {width} × {height} px has no restart markers")
        where, size = np.array([start], np.int64), np.array([count], np.int64)
        return TileTable(width, height, width, height, where, size, "jpeg", None, "YCBCR", True, None)
    high = page.tags.valueof(MCU_STARTS_HIGH)
    low = np.asarray(starts, np.int64) & 0xFFFFFFFF
    ends = np.append(low + (0 if high is None else np.asarray(high, np.int64) << 32), count)
    file.seek(start)
    header = _Header.parse(path, file.read(min(int(ends[0]), LONGEST_HEADER)))
    table = _joined(path, header, (width, height), start + ends)
    _check_marked(path, file, table)
    return table


def _check_marked(path: Path, file: Any, table: RunTable) -> None:
    """A table of runs that most markers contradict is wrong itself, and OpenSlide may know better; damage is less."""
    runs = np.unique(np.linspace(0, table.rows * table.across - 1, LOOKED_AT).astype(np.int64))
    found = []
    for end in table.starts[runs + 1].tolist():
        file.seek(end - 2)
        found.append(file.read(2))
    wanted = [bytes((0xFF, int(second))) for second in table.markers(runs)]
    if sum(a == b for a, b in zip(found, wanted, strict=True)) < len(runs) / 2:
        raise UnsupportedTiff(path, "its restart markers are not where its table of runs has them")


def _single(path: Path, page: Any, tag: int) -> int:
    """The one value of StripOffsets or StripByteCounts."""
    value = np.atleast_1d(page.tags.valueof(tag))
    if value.shape != (1,):
        raise UnsupportedTiff(path, f"a level of {len(value)} strips")
    return int(value[0])


def _joined(path: Path, header: _Header, size: tuple[int, int], starts: NDArray[np.int64]) -> RunTable:
    """The table of a level of runs. Raises when they don't cover it evenly, or don't lie one behind the other."""
    width, height = size
    if any(said != side for said, side in zip(header.size, size, strict=True) if side <= LARGEST_SIDE):
        raise UnsupportedTiff(path, f"a level of {width} × {height} px is a JPEG of {header.size} px")
    blocks, rows = math.ceil(width / header.block[0]), math.ceil(height / header.block[1])
    if header.interval < 1 or blocks % header.interval or len(starts) - 1 != blocks // header.interval * rows:
        raise UnsupportedTiff(path, f"{len(starts) - 1} runs of {header.interval} blocks don't cover {size} px")
    if (np.diff(starts) < 3).any():
        raise UnsupportedTiff(path, "its runs don't lie one behind the other")
    across, run_width, run_height = blocks // header.interval, header.interval * header.block[0], header.block[1]
    joined = max(1, min(CHUNK_HEIGHT, LARGEST_CHUNK // run_width, rows * run_height) // run_height)
    if run_width > LARGEST_SIDE:
        raise UnsupportedTiff(path, f"its runs of {run_width} px are too long")
    sizes = np.add.reduceat(np.diff(starts).reshape(rows, across), np.arange(0, rows, joined), axis=0)
    return RunTable(
        width, height, run_width, run_height * joined, starts[:-1].reshape(rows, across)[::joined].ravel(),
        sizes.ravel(), "jpeg", header.tables, "YCBCR", True, None,
        starts, rows, joined, header.framed(run_width, run_height * joined),
    )  # fmt: skip


class _Header(NamedTuple):
    """What stands before the runs of a level."""

    tables: bytes  # quantisation and Huffman tables, as a stream of their own
    before: bytes  # of a chunk's stream: start, restart interval, frame up to its height
    after: bytes  # the rest of the frame, the scan's header
    size: tuple[int, int]  # width, height as the frame says
    block: tuple[int, int]  # width and height of an MCU, px
    interval: int  # MCUs of a run

    def framed(self, width: int, height: int) -> bytes:
        """The header of a chunk's stream."""
        return self.before + height.to_bytes(2) + width.to_bytes(2) + self.after

    @classmethod
    def parse(cls, path: Path, data: bytes) -> _Header:
        """From the bytes before a level's first run. Raises UnsupportedTiff for all but plain baseline YCbCr."""
        tables, frame, scan, interval = b"", b"", b"", b""
        for kind, segment in _segments(data):
            if kind in TABLES:
                tables += segment
            elif kind == BASELINE:
                frame = segment
            elif kind == RESTART_INTERVAL:
                interval = segment
            elif kind == SCAN:
                scan = segment
            elif kind in FRAME_MARKERS or (kind == ADOBE and segment[4:9] == b"Adobe" and segment[15:16] != b"\1"):
                raise UnsupportedTiff(path, f"a JPEG of another kind (FF{kind:X})")
        # components 1, 2, 3 in one scan: what every decoder takes for YCbCr
        if len(frame) != 19 or frame[10::3] != b"\1\2\3" or len(scan) != 14 or len(interval) != 6 or frame[4] != 8:
            raise UnsupportedTiff(path, "its JPEG header is not the usual one")
        across, down = (max(factors) for factors in zip(*((one >> 4, one & 15) for one in frame[11::3]), strict=True))
        if not data.endswith(scan) or across < 1 or down != 1:  # colour of half height would mix rows of runs
            raise UnsupportedTiff(path, "its runs are no rows of blocks of their own")
        height, width = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
        before, after = SOI + interval + frame[:5], frame[9:] + scan
        return cls(
            SOI + tables + EOI, before, after, (width, height), (8 * across, 8 * down), int.from_bytes(interval[4:])
        )


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes, marker and length included, of each segment of a JPEG's header; ends behind the scan's."""
    at = len(SOI) if data.startswith(SOI) else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield data[at + 1], data[at:end]
        if data[at + 1] == SCAN:
            return
        at = end
