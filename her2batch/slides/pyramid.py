"""Pyramids: the tissue of a slide as OME-Zarr 0.5, written once, and read back as a Slide.

A level is one array (c, y, x) with the size and the chunks of the slide's level. The tiles of a TIFF with JPEG tiles
and the runs of an NDPI are copied without decoding; only their metadata are blanked. The chunks of other slides are
encoded once, as JPEG or losslessly with zstd. Chunks without tissue are not stored: they are marked in the index of
their shard, and readers return the fill value, white.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import google_crc32c
import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.codecs import (
    CODEC_NAME,
    ZSTD_CODECS,
    JpegChunks,
    array_metadata,
    compress_lossless,
    decompress_lossless,
    encode_jpeg,
    group_metadata,
)
from her2batch.slides.jpeg import blank_metadata, complete_jpeg, decode_jpeg
from her2batch.slides.ndpi import NdpiSlide, RunTable
from her2batch.slides.slide import Box, BoxArray, Level, Slide, SlideInfo, assemble_chunks
from her2batch.slides.tiff_slide import TiledTiffSlide

SHARD_EDGES = (32, 16, 8, 4, 2)
"""Possible numbers of chunks along the edge of a shard; the largest that fits is used. 32 chunks of 256 px are
8192 px, so that a slide of 40,000 px has 25 files."""

MAX_PLACES_PER_CHUNK = 4
"""Largest number of places in the shard indices for each stored chunk. A place takes 16 bytes, whether it is used or
not, so the indices are less than 1 % of chunks of 6.4 kB."""

COPY_BYTES = 1 << 20
"""Bytes copied at once: from 200 kB on copying is as fast as `cp`; tile by tile (6 kB) it is six times slower."""

REMEDY = "run ingest again, which repairs the store"

MISSING_CHUNK = 2**64 - 1
"""Offset and size of a chunk that is not stored, in the index of a shard."""


def write_pyramid(slide: Slide, tissue: NDArray[np.bool_], out: Path, quality: int, lossless: bool = False) -> None:
    """Write the tissue of a slide, at every level, as OME-Zarr.

    tissue: (h, w) bool mask of the whole slide at any resolution; every chunk with tissue is stored.  quality: of the
    JPEG for chunks that cannot be copied.  lossless: compress these chunks with zstd instead.  Raises SlideError, and
    OSError when the disk refuses to write.
    """
    shutil.rmtree(out, ignore_errors=True)
    arrays = {}
    for number, level in enumerate(slide.info.levels):
        chunks = _chunk_writer(slide, number, quality, lossless)
        stored = tissue_chunks(tissue, level) & chunks.present
        edge = _shard_edge(stored)
        arrays[str(number)] = array_metadata(level, edge, chunks.codecs)
        _write_json(out / str(number), arrays[str(number)])
        _write_shards(out / str(number), stored, edge, chunks)
    _write_json(out, group_metadata(slide.info, arrays))


class _CopiedChunks:
    """Writes the JPEG tiles of a TIFF level as chunks, without decoding them; tiles that it lacks are rebuilt."""

    def __init__(self, slide: TiledTiffSlide, level: int, quality: int) -> None:
        self._slide, self._table, self._level, self._quality = slide, slide.table(level), level, quality
        tables = blank_metadata(self._table.jpeg_tables or b"")
        self.codecs = (JpegChunks(tables=tables, colorspace_jpeg=self._table.colorspace).to_dict(),)
        self.present = slide.present_tiles(level)

    def append(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write the chunks at (rows, columns): return (n, 2) offset from the first chunk, and size."""
        stored = self._table.byte_counts[rows * self._table.across + columns] > 0
        positions = np.empty((len(rows), 2), np.int64)
        positions[stored] = self._copy(file, rows[stored], columns[stored])
        if not stored.all():
            rebuilt = map(self._rebuild, rows[~stored].tolist(), columns[~stored].tolist())
            positions[~stored] = _write_streams(file, rebuilt)
            positions[~stored, 0] += positions[stored, 1].sum()
        return positions

    def _rebuild(self, row: int, column: int) -> bytes:
        """Encode a tile that the level lacks, in the colour space of the level's streams."""
        tile = _read_chunk(self._slide, self._level, row, column)
        return encode_jpeg(tile, self._quality, self._table.colorspace)

    def _copy(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Copy tiles. Streams that are adjacent in the slide file are read and written together."""
        index = rows * self._table.across + columns
        order = np.argsort(self._table.offsets[index], kind="stable")
        offsets, counts = self._table.offsets[index][order], self._table.byte_counts[index][order]
        pieces = np.diff(counts.cumsum() // COPY_BYTES, prepend=-1) > 0
        first = np.flatnonzero(pieces | np.append(True, offsets[1:] != offsets[:-1] + counts[:-1]))
        for start, sizes in zip(offsets[first].tolist(), np.split(counts, first[1:]), strict=True):
            data = self._slide.read_bytes(start, int(sizes.sum()))
            ends = sizes.cumsum()
            streams = zip((ends - sizes).tolist(), ends.tolist(), strict=True)
            file.write(b"".join(self._blank_metadata(data[at:end]) for at, end in streams))
        positions = np.empty((len(index), 2), np.int64)
        positions[order] = np.stack([counts.cumsum() - counts, counts], axis=1)
        return positions

    def _blank_metadata(self, stream: bytes) -> bytes:
        """Blank comments and EXIF of a stream, because they may name a patient and are no part of the image."""
        try:
            return blank_metadata(stream)
        except ValueError as error:
            what = f"one of its tiles is not a valid JPEG ({error})"
            raise SlideError("unreadable", self._slide.info.path, what) from error


class _JoinedRuns(_CopiedChunks):
    """Writes the runs of an NDPI level, joined to chunks, without decoding them."""

    def __init__(self, slide: NdpiSlide, level: int, quality: int) -> None:
        super().__init__(slide, level, quality)
        self._ndpi = slide

    def append(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write the chunks at (rows, columns), which are sorted by row: return (n, 2) as _CopiedChunks does."""
        unique_rows, first = np.unique(rows, return_index=True)
        columns_of_rows = zip(unique_rows.tolist(), np.split(columns, first[1:]), strict=True)
        streams = (self._ndpi.raw_row(self._level, row, in_row.tolist()) for row, in_row in columns_of_rows)
        return _write_streams(file, chain.from_iterable(streams))


class _EncodedChunks:
    """Decodes chunks and writes them encoded as JPEG or zstd."""

    def __init__(self, slide: Slide, level: int, quality: int, lossless: bool) -> None:
        self._slide, self._level = slide, level
        self.codecs = ZSTD_CODECS if lossless else (JpegChunks(level=quality).to_dict(),)
        self._encode = compress_lossless if lossless else partial(encode_jpeg, quality=quality)
        self.present = np.True_

    def append(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write the chunks at (rows, columns): return (n, 2) offset from the first chunk, and size."""
        return _write_streams(file, map(self._encode_chunk, rows.tolist(), columns.tolist()))

    def _encode_chunk(self, row: int, column: int) -> bytes:
        return self._encode(_read_chunk(self._slide, self._level, row, column))


def _read_chunk(slide: Slide, level: int, row: int, column: int) -> NDArray[np.uint8]:
    """Read a chunk of a level; at the edge of the slide it is filled up with its outermost px."""
    size = slide.info.levels[level]
    x, y = column * size.chunk_width, row * size.chunk_height
    box = Box(x, y, min(size.chunk_width, size.width - x), min(size.chunk_height, size.height - y))
    beyond = ((0, size.chunk_height - box.height), (0, size.chunk_width - box.width), (0, 0))
    return np.pad(slide.read(box, level), beyond, mode="edge")


def _write_streams(file: BinaryIO, streams: Iterable[bytes | bytearray]) -> NDArray[np.int64]:
    """Write streams one after the other: return (n, 2) offset from the first stream, and size."""
    sizes = np.array([file.write(stream) for stream in streams], np.int64)
    return np.stack([sizes.cumsum() - sizes, sizes], axis=1)


def _chunk_writer(slide: Slide, level: int, quality: int, lossless: bool) -> _CopiedChunks | _EncodedChunks:
    if isinstance(slide, TiledTiffSlide) and slide.copies_tiles(level):
        if isinstance(slide, NdpiSlide) and isinstance(slide.table(level), RunTable):
            return _JoinedRuns(slide, level, quality)
        return _CopiedChunks(slide, level, quality)
    return _EncodedChunks(slide, level, quality, lossless)


def _shard_edge(stored: NDArray[np.bool_]) -> int:
    """Return the number of chunks along the edge of a shard, so that indices stay small for small or thin tissue.

    stored: (down, across) bool, the chunks that are stored.
    """
    down, across = stored.shape
    max_places = MAX_PLACES_PER_CHUNK * np.count_nonzero(stored)

    def index_places(edge: int) -> int:
        rows = np.add.reduceat(stored, np.arange(0, down, edge), axis=0, dtype=np.int64)
        shards = np.add.reduceat(rows, np.arange(0, across, edge), axis=1)
        return int(np.count_nonzero(shards)) * edge**2

    return next(edge for edge in SHARD_EDGES if edge == SHARD_EDGES[-1] or index_places(edge) <= max_places)


def tissue_chunks(tissue: NDArray[np.bool_], level: Level) -> NDArray[np.bool_]:
    """Return the chunks of a level that contain tissue: (down, across) bool. Exact for any resolution of the mask."""
    sums = cv2.integral(np.ascontiguousarray(tissue).view(np.uint8))
    y0, y1 = _mask_ranges(level.height, level.chunk_height, tissue.shape[0])
    x0, x1 = _mask_ranges(level.width, level.chunk_width, tissue.shape[1])
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    return cast(NDArray[np.bool_], inside > 0)


def _mask_ranges(length: int, chunk: int, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the range (first, end) of mask px under each chunk along one axis.

    length: size of the level, px.  cells: size of the mask, px.
    """
    starts = np.arange(0, length, chunk, dtype=np.int64)
    ends = np.minimum(starts + chunk, length)
    return starts * cells // length, -(-ends * cells // length)


def _write_shards(folder: Path, stored: NDArray[np.bool_], edge: int, chunks: _CopiedChunks | _EncodedChunks) -> None:
    """Write shard files c/0/ROW/COLUMN: chunks, then the index of (offset, size) and its CRC32C (Zarr v3 sharding)."""
    down, across = stored.shape
    for top in range(0, down, edge):
        for left in range(0, across, edge):
            rows, columns = np.nonzero(stored[top : top + edge, left : left + edge])
            if len(rows):
                path = folder / "c" / "0" / str(top // edge) / str(left // edge)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    index = np.full((edge, edge, 2), MISSING_CHUNK, "<u8")
                    index[rows, columns] = chunks.append(file, top + rows, left + columns)
                    raw = index.tobytes()
                    file.write(raw + struct.pack("<I", google_crc32c.value(raw)))


def _write_json(folder: Path, node: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps(node, indent=1), "utf-8")


@dataclass(frozen=True)
class _StoredLevel:
    """One array of a pyramid, as described by its zarr.json."""

    folder: Path
    shard: int  # chunks along the edge of a shard
    jpeg: JpegChunks | None  # None: lossless


ReadRange = Callable[[int, int], bytes]
"""Function from (offset, size) to bytes of a shard."""


def _open_shard_file(path: Path) -> tuple[ReadRange, int]:
    """Return a function that reads ranges of a shard, and its size. A local file stays open."""
    fs = getattr(path, "fs", None)
    if fs is not None and "://" in str(path):
        return lambda at, size: bytes(fs.cat_file(str(path), start=at, end=at + size)), int(fs.info(str(path))["size"])
    file = path.open("rb")
    return lambda at, size: os.pread(file.fileno(), size, at), os.fstat(file.fileno()).st_size


class Pyramid(Slide):
    """A pyramid of a cohort, read like any other slide, so that the slide file is not needed.

    Chunks are read directly from the shards: the zarr package takes about 1 ms for each chunk, more than decoding.
    """

    def __init__(self, path: Path) -> None:
        """Open a pyramid. Raises SlideError `unreadable` when the folder is not a pyramid."""
        try:
            attributes = json.loads((path / "zarr.json").read_text("utf-8"))["attributes"]
            folders = [path / item["path"] for item in attributes["ome"]["multiscales"][0]["datasets"]]
            levels = [_parse_level(folder, json.loads((folder / "zarr.json").read_text("utf-8"))) for folder in folders]
        except (OSError, KeyError, ValueError, StopIteration) as error:
            what = f"the folder is no pyramid of a cohort ({error})"
            raise SlideError("unreadable", path, what, "ingest the slide again") from error
        metadata = attributes["her2batch"]
        self._levels = [stored for _, stored in levels]
        self.info = SlideInfo(
            path, metadata["format"], "pyramid", tuple(level for level, _ in levels),
            metadata["mpp"], metadata["mpp_source"], metadata["objective"],
        )  # fmt: skip
        self._shard = lru_cache(maxsize=16)(self._open_shard)
        self._buffer = np.empty(0, np.uint8)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        return self._read_shrunk(box, level, 1, None)

    def _read_shrunk(self, box: Box, level: int, shrink: int, needed: BoxArray | None) -> NDArray[np.uint8]:
        jpeg, size = self._levels[level].jpeg, self.info.levels[level]
        if shrink > 1 and (jpeg is None or not size.shrinks_by(shrink)):
            return super()._read_shrunk(box, level, shrink, needed)
        chunk_bytes = size.chunk_width * size.chunk_height * 3
        if len(self._buffer) < chunk_bytes:
            self._buffer = np.empty(chunk_bytes, np.uint8)

        def decode_chunk(row: int, column: int) -> NDArray[np.uint8] | None:
            data = self._chunk_bytes(level, row, column)
            if data is None:
                return None
            try:
                if jpeg is None:
                    return decompress_lossless(data, size.chunk_height, size.chunk_width)
                return decode_jpeg(data, jpeg.tables, jpeg.colorspace_jpeg, self._buffer, shrink)
            except (ValueError, RuntimeError) as error:
                what = f"chunk ({row}, {column}) of its level {level} cannot be decoded ({error})"
                raise SlideError("unreadable", self.info.path, what, REMEDY) from error

        return assemble_chunks(box, (size.chunk_width // shrink, size.chunk_height // shrink), decode_chunk, needed)

    def jpeg_chunk(self, level: int, row: int, column: int) -> bytes | None:
        """Return a chunk as a JPEG file, without decoding it; None without tissue, and for lossless chunks."""
        jpeg = self._levels[level].jpeg
        data = self._chunk_bytes(level, row, column) if jpeg is not None else None
        return None if jpeg is None or data is None else complete_jpeg(data, jpeg.tables, jpeg.colorspace_jpeg)

    def _chunk_bytes(self, level: int, row: int, column: int) -> bytes | None:
        """Return the stored bytes of a chunk; None without tissue."""
        edge = self._levels[level].shard
        shard = self._shard(level, row // edge, column // edge)
        if shard is None:
            return None
        read, index = shard
        offset, size = (int(value) for value in index[row % edge, column % edge])
        return None if offset == MISSING_CHUNK else read(offset, size)

    def _open_shard(self, level: int, row: int, column: int) -> tuple[ReadRange, NDArray[np.uint64]] | None:
        stored = self._levels[level]
        path = stored.folder / "c" / "0" / str(row) / str(column)
        if not path.exists():
            return None
        read, end = _open_shard_file(path)
        length = stored.shard**2 * 16
        raw = read(max(0, end - length - 4), min(end, length + 4))
        if len(raw) != length + 4 or struct.unpack("<I", raw[length:])[0] != google_crc32c.value(raw[:length]):
            raise SlideError("truncated", path, "the index of the shard is damaged", REMEDY)
        return read, np.frombuffer(raw[:length], "<u8").reshape(stored.shard, stored.shard, 2)

    def close(self) -> None:
        """Close the shards."""
        self._shard.cache_clear()


def _parse_level(folder: Path, array: dict[str, Any]) -> tuple[Level, _StoredLevel]:
    """Parse the zarr.json of a level. Raises KeyError or StopIteration when her2batch did not write it."""
    _, height, width = array["shape"]
    sharding = array["codecs"][0]["configuration"]
    _, chunk_height, chunk_width = sharding["chunk_shape"]
    shard = array["chunk_grid"]["configuration"]["chunk_shape"][1] // chunk_height
    codecs = sharding["codecs"][1:]  # after the transpose
    is_lossless = codecs == list(ZSTD_CODECS)
    jpeg = None if is_lossless else JpegChunks.from_dict(next(item for item in codecs if item["name"] == CODEC_NAME))
    return Level(width, height, chunk_width, chunk_height), _StoredLevel(folder, shard, jpeg)
