"""NDPI slides (Hamamatsu): chunks are made from the runs between restart markers of a JPEG.

In NDPI, a level is one JPEG image. A run is the strip of blocks (MCUs) between two restart markers, 8 px high; tag
65426 lists the offsets of the runs. Each run can be decoded independently, so vertically adjacent runs form a JPEG
image of their own: a header with their size, their bytes, and renumbered restart markers. Nothing has to be decoded for
that. Unusual files are refused with UnsupportedTiff, because OpenSlide may read them.

Source: ITU-T T.81, B.2 and E.1.4 (restart intervals); documentation of tifffile and OpenSlide for the tags. Tested
only on files written by the tests; no file from a scanner was available.
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
from her2batch.slides.jpeg import EOI, FRAME_MARKERS, SOI, header_segments
from her2batch.slides.tiff.pages import has_same_aspect
from her2batch.slides.tiff.resolution import choose_resolution, tag_statements
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import (
    TIFFFILE_ERRORS,
    YCBCR,
    TiffStructure,
    TileTable,
    UnsupportedTiff,
    open_tifffile,
)

FORMAT = "hamamatsu"
SOURCE_LENS, FOCAL_PLANE, MCU_STARTS, MCU_STARTS_HIGH = 65421, 65424, 65426, 65432

CHUNK_HEIGHT = 256
MAX_CHUNK_PIXELS, MAX_SINGLE_CHUNK_PIXELS = 4_000_000, 16_000_000
"""Largest number of px of a chunk of runs, and of a level without runs, which is one chunk."""

MAX_JPEG_SIDE = 65_500
"""Longest side that libjpeg supports, px. The header of a JPEG with a longer side does not contain its true size."""

SAMPLED_RUNS = 64
"""Number of runs of a level whose restart markers are checked on opening. Validation checks all."""

MAX_HEADER_BYTES = 65_536
RESTART = 0xD0
BASELINE, TABLES, RESTART_INTERVAL, SCAN, ADOBE = 0xC0, (0xDB, 0xC4), 0xDD, 0xDA, 0xEE


@dataclass(frozen=True)
class RunTable(TileTable):
    """The chunks of a level as rows of runs."""

    starts: NDArray[np.int64]  # (runs + 1,) offset of each run in the file, row by row, and the end of the last one
    rows: int  # of runs in the level
    rows_per_chunk: int  # of runs
    header: bytes  # of a chunk's stream, up to its first run

    def runs(self, index: int) -> NDArray[np.int64]:
        """Return the numbers of a chunk's runs, from the top: (rows_per_chunk,). The last run fills up the last row."""
        row, column = divmod(index, self.across)
        rows = np.minimum(row * self.rows_per_chunk + np.arange(self.rows_per_chunk), self.rows - 1)
        return rows * self.across + column

    def end_markers(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the second byte of the marker that ends each of some runs in the file."""
        return np.where(runs == self.rows * self.across - 1, EOI[1], RESTART + runs % 8)


class NdpiSlide(TiledTiffSlide):
    """An NDPI slide, read from its table of runs."""

    def _parse(self, path: Path) -> TiffStructure:
        return parse_ndpi(path)

    def _tile_bytes(self, table: TileTable, index: int) -> bytes:
        """Return the stream of a chunk, made of its runs."""
        if not isinstance(table, RunTable):
            return super()._tile_bytes(table, index)
        row, column = divmod(index, table.across)
        return bytes(next(self._chunk_streams(table, row, [column])))

    def raw_row(self, level: int, row: int, columns: list[int]) -> Iterator[bytearray]:
        """Yield the streams of chunks in one row. columns: ascending; all runs between the first and last are read."""
        table = self.table(level)
        assert isinstance(table, RunTable)
        return self._chunk_streams(table, row, columns)

    def _chunk_streams(self, table: RunTable, row: int, columns: list[int]) -> Iterator[bytearray]:
        firsts = table.runs(row * table.across)
        offsets = table.starts[firsts + columns[0]]
        sizes = table.starts[firsts + columns[-1] + 1] - offsets
        spans = zip(offsets.tolist(), sizes.tolist(), strict=True)
        lines = [memoryview(self.read_bytes(offset, size)) for offset, size in spans]
        for column in columns:
            runs = firsts + column
            starts, stops = table.starts[runs] - offsets, table.starts[runs + 1] - offsets
            parts = [line[i:k] for line, i, k in zip(lines, starts.tolist(), stops.tolist(), strict=True)]
            data = bytearray().join((table.header, *parts))
            stream = np.frombuffer(data, np.uint8)
            ends = len(table.header) + (stops - starts).cumsum()
            self._check_ends(table, runs, stream[ends - 2], stream[ends - 1])
            stream[ends - 1] = RESTART + np.arange(table.rows_per_chunk) % 8
            stream[-1] = EOI[1]
            yield data

    def _check_ends(
        self, table: RunTable, runs: NDArray[np.int64], first: NDArray[np.uint8], second: NDArray[np.uint8]
    ) -> None:
        """Refuse runs whose last two bytes are not the expected marker. Raises SlideError."""
        wrong = runs[(first != 0xFF) | (second != table.end_markers(runs))]
        if len(wrong):
            level = f"its level of {table.width} × {table.height} px"
            what = f"the restart marker at the end of run {wrong[0]} of {level} is missing"
            raise SlideError("truncated", self._path, what)

    def _check_streams(self, table: TileTable) -> bool:
        """Check that every run ends with the expected marker."""
        if not isinstance(table, RunTable):
            return super()._check_streams(table)
        ends = np.frombuffer(b"".join(self.read_bytes(end - 2, 2) for end in table.starts[1:].tolist()), np.uint8)
        self._check_ends(table, np.arange(len(ends) // 2), ends[::2], ends[1::2])
        return True

    def _check_holes(self, table: TileTable, holes: tuple[ByteRange, ...]) -> None:
        """Decode the chunks that have a hole: strict decoding fails for them."""
        if not isinstance(table, RunTable):
            super()._check_holes(table, holes)
            return
        for start, end in holes:
            first, last = np.searchsorted(table.starts, [start, end], side="right") - 1
            runs = np.arange(max(first, 0), min(last + 1, table.rows * table.across))
            rows = runs // table.across // table.rows_per_chunk
            for index in np.unique(rows * table.across + runs % table.across).tolist():
                self._decode(table, index)


def parse_ndpi(path: Path) -> TiffStructure:
    """Read the levels of an NDPI file and check their ranges.

    Raises SlideError truncated or unreadable, and UnsupportedTiff.
    """
    directories, lists = check_directories(path, high_words=True)
    try:
        with open_tifffile(path, is_ndpi=True) as file:
            pages: list[Any] = [page for page in file.pages if _is_level(page)]
            if not pages:
                raise UnsupportedTiff(path, "none of its images is a level of a slide")
            pages.sort(key=lambda page: -int(page.imagewidth))
            levels = tuple(_level_table(path, file.filehandle, page) for page in pages)
            lens = float(pages[0].tags.valueof(SOURCE_LENS))
            stated = choose_resolution(tag_statements(pages[0], ""), lens if lens > 0 else None)
    except TIFFFILE_ERRORS as error:
        raise SlideError("unreadable", path, f"its TIFF structure cannot be parsed ({error})") from error
    for finer, coarser in pairwise(levels):
        if (
            coarser.height >= finer.height
            or coarser.width >= finer.width
            or not has_same_aspect((coarser.width, coarser.height), (levels[0].width, levels[0].height))
        ):
            raise UnsupportedTiff(path, "its levels do not have one aspect ratio")
    mpp = (stated.x, stated.y)
    return TiffStructure(
        FORMAT, levels, (), mpp, stated.objective, directories, lists, notes=stated.notes, mpp_problem=stated.problem
    )  # fmt: skip


def _is_level(page: Any) -> bool:
    """Return whether a page is a level in focus: not the macro image or the map (their source lenses are -1 and -2)."""
    return float(page.tags.valueof(SOURCE_LENS, 0) or 0) > 0 and not page.tags.valueof(FOCAL_PLANE, 0)


def _level_table(path: Path, file: Any, page: Any) -> TileTable:
    """Return the table of a level: of its runs, or of one chunk for a small level without runs."""
    kind = (int(page.compression), int(page.photometric), page.samplesperpixel, page.dtype, page.planarconfig)
    if kind != (7, YCBCR, 3, np.uint8, 1):
        raise UnsupportedTiff(path, "a level is not an 8-bit colour JPEG")
    width, height = int(page.imagewidth), int(page.imagelength)
    start, count = (_single_value(path, page, tag) for tag in (273, 279))
    if count < 4 or start < 1 or start + count > file.size:
        raise SlideError("truncated", path, f"the file ends at {file.size} bytes, before the end of a level")
    starts = page.tags.valueof(MCU_STARTS)
    if starts is None:
        if width * height > MAX_SINGLE_CHUNK_PIXELS:
            raise UnsupportedTiff(path, f"its level of {width} × {height} px has no restart markers")
        offsets, sizes = np.array([start], np.int64), np.array([count], np.int64)
        return TileTable(width, height, width, height, offsets, sizes, "jpeg", None, "YCBCR", True, None)
    high = page.tags.valueof(MCU_STARTS_HIGH)
    low = np.asarray(starts, np.int64) & 0xFFFFFFFF
    ends = np.append(low + (0 if high is None else np.asarray(high, np.int64) << 32), count)
    file.seek(start)
    header = _JpegHeader.parse(path, file.read(min(int(ends[0]), MAX_HEADER_BYTES)))
    table = _run_table(path, header, (width, height), start + ends)
    _check_restart_markers(path, file, table)
    return table


def _check_restart_markers(path: Path, file: Any, table: RunTable) -> None:
    """Refuse a table if half of the sampled runs do not end with a restart marker.

    In that case the table is wrong, rather than the file damaged, and OpenSlide may read it.
    """
    runs = np.unique(np.linspace(0, table.rows * table.across - 1, SAMPLED_RUNS).astype(np.int64))
    markers = []
    for end in table.starts[runs + 1].tolist():
        file.seek(end - 2)
        markers.append(file.read(2))
    expected = [bytes((0xFF, int(second))) for second in table.end_markers(runs)]
    if sum(a == b for a, b in zip(markers, expected, strict=True)) < len(runs) / 2:
        raise UnsupportedTiff(path, "its restart markers are not at the offsets listed in its tag 65426")


def _single_value(path: Path, page: Any, tag: int) -> int:
    """Return the only value of StripOffsets or StripByteCounts."""
    value = np.atleast_1d(page.tags.valueof(tag))
    if value.shape != (1,):
        raise UnsupportedTiff(path, f"a level has {len(value)} strips instead of one")
    return int(value[0])


def _run_table(path: Path, header: _JpegHeader, size: tuple[int, int], starts: NDArray[np.int64]) -> RunTable:
    """Return the table of a level with runs. Raises UnsupportedTiff if they do not cover it or are not contiguous."""
    width, height = size
    if any(stated != side for stated, side in zip(header.size, size, strict=True) if side <= MAX_JPEG_SIDE):
        what = f"a level of {width} × {height} px is a JPEG of {header.size[0]} × {header.size[1]} px"
        raise UnsupportedTiff(path, what)
    blocks, rows = math.ceil(width / header.block[0]), math.ceil(height / header.block[1])
    if header.interval < 1 or blocks % header.interval or len(starts) - 1 != blocks // header.interval * rows:
        what = f"{len(starts) - 1} runs of {header.interval} blocks do not cover {width} × {height} px evenly"
        raise UnsupportedTiff(path, what)
    if (np.diff(starts) < 3).any():
        raise UnsupportedTiff(path, "its runs are not in ascending order in the file")
    across, run_width, run_height = blocks // header.interval, header.interval * header.block[0], header.block[1]
    rows_per_chunk = max(1, min(CHUNK_HEIGHT, MAX_CHUNK_PIXELS // run_width, rows * run_height) // run_height)
    if run_width > MAX_JPEG_SIDE:
        raise UnsupportedTiff(path, f"its runs of {run_width} px are too long")
    chunk_height = run_height * rows_per_chunk
    sizes = np.add.reduceat(np.diff(starts).reshape(rows, across), np.arange(0, rows, rows_per_chunk), axis=0)
    return RunTable(
        width, height, run_width, chunk_height, starts[:-1].reshape(rows, across)[::rows_per_chunk].ravel(),
        sizes.ravel(), "jpeg", header.tables, "YCBCR", True, None,
        starts, rows, rows_per_chunk, header.for_chunk(run_width, chunk_height),
    )  # fmt: skip


class _JpegHeader(NamedTuple):
    """The JPEG header before the runs of a level."""

    tables: bytes  # quantisation and Huffman tables, as a stream of their own
    before_size: bytes  # first part of a chunk's header: start, restart interval, frame up to its height
    after_size: bytes  # second part: the rest of the frame, and the header of the scan
    size: tuple[int, int]  # width and height stated in the frame
    block: tuple[int, int]  # width and height of an MCU, px
    interval: int  # MCUs of a run

    def for_chunk(self, width: int, height: int) -> bytes:
        """Return the header of a chunk's stream."""
        return self.before_size + height.to_bytes(2) + width.to_bytes(2) + self.after_size

    @classmethod
    def parse(cls, path: Path, data: bytes) -> _JpegHeader:
        """Parse the bytes before the first run of a level. Raises UnsupportedTiff if they are not baseline YCbCr."""
        tables, frame, scan, interval = b"", b"", b"", b""
        for kind, segment in header_segments(data):
            if kind in TABLES:
                tables += segment
            elif kind == BASELINE:
                frame = segment
            elif kind == RESTART_INTERVAL:
                interval = segment
            elif kind == SCAN:
                scan = segment
            elif kind in FRAME_MARKERS or (kind == ADOBE and segment[4:9] == b"Adobe" and segment[15:16] != b"\1"):
                raise UnsupportedTiff(path, f"its JPEG is not baseline YCbCr (marker FF{kind:X})")
        # components 1, 2, 3 in one scan, which every decoder takes for YCbCr
        if len(frame) != 19 or frame[10::3] != b"\1\2\3" or len(scan) != 14 or len(interval) != 6 or frame[4] != 8:
            raise UnsupportedTiff(path, "its JPEG header is not the usual one")
        factors = [(sampling >> 4, sampling & 15) for sampling in frame[11::3]]
        across, down = (max(axis) for axis in zip(*factors, strict=True))
        if not data.endswith(scan) or across < 1 or down != 1:  # colour at half height would mix rows of runs
            raise UnsupportedTiff(path, "its runs do not contain whole rows of blocks")
        height, width = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
        before_size, after_size = SOI + interval + frame[:5], frame[9:] + scan
        block = (8 * across, 8 * down)
        return cls(SOI + tables + EOI, before_size, after_size, (width, height), block, int.from_bytes(interval[4:]))
