"""A slide as OME-Zarr 0.5: written once, tissue only, and read back as a Slide.

A level is one array (c, y, x) of the slide's own size and chunks. Where the slide is a TIFF of JPEG tiles, its tiles
are moved as they are, their comments blanked, NDPI's runs joined: no pixel is decoded or changed. Elsewhere chunks are
encoded once, as JPEG or, without loss, with zstd. Chunks without tissue are not stored: their place in the shard's
index says so, and readers see the fill value, white.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    JpegCodec,
    compress_lossless,
    decompress_lossless,
    encode_jpeg,
)
from her2batch.slides.jpeg import blank_metadata, complete_jpeg, decode_jpeg
from her2batch.slides.ndpi import NdpiSlide, RunTable
from her2batch.slides.slide import Box, BoxArray, Level, Slide, SlideInfo, assemble_chunks
from her2batch.slides.tiff_slide import TiledTiffSlide

SHARDS = (32, 16, 8, 4, 2)
"""Chunks along a shard's edge, the first that fits: 32 are 8192 px of 256-px tiles, so a 40k slide is 25 files."""

PLACES = 4
"""A shard's index takes 16 bytes a place, taken or not. With at most this many places for each stored chunk it weighs
less than 1 % of chunks of 6.4 kB."""

PIECE = 1 << 20
"""Bytes moved at once: 200 kB and more are as fast as `cp`, tile by tile (6 kB) is six times slower."""

MEND = "run ingest again: it mends the store"

WHITE = 255
MISSING = 2**64 - 1


def write_pyramid(slide: Slide, tissue: NDArray[np.bool_], out: Path, quality: int, lossless: bool = False) -> None:
    """Write the tissue of a slide, every native level, as OME-Zarr.

    tissue: (h, w) bool over the whole slide, any resolution; every chunk it touches is stored.  quality: of the JPEG
    where the slide's own tiles can't be kept.  lossless: zstd instead of that JPEG.  Raises SlideError; OSError when
    the disk refuses.
    """
    shutil.rmtree(out, ignore_errors=True)
    _write_json(out, {"zarr_format": 3, "node_type": "group", "attributes": _attributes(slide.info)})
    for number, level in enumerate(slide.info.levels):
        chunks = _chunks(slide, number, quality, lossless)
        stored = tissue_chunks(tissue, level) & chunks.there
        edge = _shard_edge(stored)
        _write_json(out / str(number), _array(level, edge, chunks.codecs))
        _write_shards(out / str(number), stored, edge, chunks)


class _Moved:
    """A TIFF level's own JPEG streams."""

    def __init__(self, slide: TiledTiffSlide, level: int) -> None:
        self._slide, self._table = slide, slide.table(level)
        tables = blank_metadata(self._table.jpeg_tables or b"")
        self.codecs = (JpegCodec(tables=tables, colorspace_jpeg=self._table.colorspace).to_dict(),)
        self.there = (
            self._table.byte_counts.reshape(self._table.down, self._table.across) > 0
        )  # not all, in a sparse TIFF

    def append(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write chunks; (n, 2) where each lies, from the first, and its size.

        Streams that lie one behind the other in the source are read and written as one piece.
        """
        index = rows * self._table.across + columns
        order = np.argsort(self._table.offsets[index], kind="stable")
        offsets, counts = self._table.offsets[index][order], self._table.byte_counts[index][order]
        pieces = np.diff(counts.cumsum() // PIECE, prepend=-1) > 0
        first = np.flatnonzero(pieces | np.append(True, offsets[1:] != offsets[:-1] + counts[:-1]))
        for start, sizes in zip(offsets[first].tolist(), np.split(counts, first[1:]), strict=True):
            data = self._slide.read_bytes(start, int(sizes.sum()))
            ends = sizes.cumsum()
            streams = zip((ends - sizes).tolist(), ends.tolist(), strict=True)
            file.write(b"".join(self._quiet(data[at:end]) for at, end in streams))
        found = np.empty((len(index), 2), np.int64)
        found[order] = np.stack([counts.cumsum() - counts, counts], axis=1)
        return found

    def _quiet(self, stream: bytes) -> bytes:
        """Comments and EXIF inside a stream may name a patient: they are no part of the image, and stay behind."""
        try:
            return blank_metadata(stream)
        except ValueError as error:
            what = f"one of its tiles is no JPEG ({error})"
            raise SlideError("unreadable", self._slide.info.path, what) from error


class _Joined(_Moved):
    """An NDPI level's own runs of JPEG, joined to chunks."""

    def __init__(self, slide: NdpiSlide, level: int) -> None:
        super().__init__(slide, level)
        self._ndpi, self._level = slide, level

    def append(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Chunks in the order they are named: row by row."""
        every, first = np.unique(rows, return_index=True)
        inside = zip(every.tolist(), np.split(columns, first[1:]), strict=True)
        streams = (self._ndpi.raw_row(self._level, row, some.tolist()) for row, some in inside)
        return _append(file, chain.from_iterable(streams))


class _Encoded:
    """Chunks encoded anew."""

    def __init__(self, slide: Slide, level: int, quality: int, lossless: bool) -> None:
        self._slide, self._level = slide, level
        self.codecs = ZSTD_CODECS if lossless else (JpegCodec(level=quality).to_dict(),)
        self._encode = compress_lossless if lossless else partial(encode_jpeg, quality=quality)
        self.there = np.True_

    def append(self, file: BinaryIO, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Chunks in the order they are named."""
        return _append(file, map(self._chunk, rows.tolist(), columns.tolist()))

    def _chunk(self, row: int, column: int) -> bytes:
        size = self._slide.info.levels[self._level]
        x, y = column * size.chunk_width, row * size.chunk_height
        box = Box(x, y, min(size.chunk_width, size.width - x), min(size.chunk_height, size.height - y))
        missing = ((0, size.chunk_height - box.height), (0, size.chunk_width - box.width), (0, 0))
        return self._encode(np.pad(self._slide.read(box, self._level), missing, mode="edge"))


def _append(file: BinaryIO, streams: Iterable[bytes | bytearray]) -> NDArray[np.int64]:
    """Write streams one behind the other: (n, 2) offset from the first, size."""
    sizes = np.array([file.write(one) for one in streams], np.int64)
    return np.stack([sizes.cumsum() - sizes, sizes], axis=1)


def _chunks(slide: Slide, level: int, quality: int, lossless: bool) -> _Moved | _Encoded:
    if isinstance(slide, TiledTiffSlide) and slide.table(level).compression == "jpeg" and slide.table(level).full_tiles:
        if isinstance(slide, NdpiSlide) and isinstance(slide.table(level), RunTable):
            return _Joined(slide, level)
        return _Moved(slide, level)
    return _Encoded(slide, level, quality, lossless)


def _shard_edge(stored: NDArray[np.bool_]) -> int:
    """Chunks along a shard's edge, so that small levels and thin tissue don't cost more index than image."""
    down, across = stored.shape

    def places(edge: int) -> int:
        rows = np.add.reduceat(stored, np.arange(0, down, edge), axis=0, dtype=np.int64)
        shards = np.add.reduceat(rows, np.arange(0, across, edge), axis=1)
        return int(np.count_nonzero(shards)) * edge**2

    return next(edge for edge in SHARDS if edge == SHARDS[-1] or places(edge) <= PLACES * np.count_nonzero(stored))


def tissue_chunks(tissue: NDArray[np.bool_], level: Level) -> NDArray[np.bool_]:
    """Which chunks of a level hold tissue: (down, across) bool. Exact for any resolution of the mask."""
    sums = cv2.integral(np.ascontiguousarray(tissue).view(np.uint8))
    y0, y1 = _edges(level.height, level.chunk_height, tissue.shape[0])
    x0, x1 = _edges(level.width, level.chunk_width, tissue.shape[1])
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    return cast(NDArray[np.bool_], inside > 0)


def _edges(length: int, chunk: int, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last-but-one mask cell of each chunk along one axis: `length` level px lie under `cells` mask px."""
    starts = np.arange(0, length, chunk, dtype=np.int64)
    ends = np.minimum(starts + chunk, length)
    return starts * cells // length, -(-ends * cells // length)


def _write_shards(folder: Path, stored: NDArray[np.bool_], edge: int, chunks: _Moved | _Encoded) -> None:
    """Shard files c/0/ROW/COLUMN: chunk streams, then the index of (offset, size) and its CRC32C (Zarr v3 sharding)."""
    down, across = stored.shape
    for top in range(0, down, edge):
        for left in range(0, across, edge):
            rows, columns = np.nonzero(stored[top : top + edge, left : left + edge])
            if len(rows):
                path = folder / "c" / "0" / str(top // edge) / str(left // edge)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    index = np.full((edge, edge, 2), MISSING, "<u8")
                    index[rows, columns] = chunks.append(file, top + rows, left + columns)
                    raw = index.tobytes()
                    file.write(raw + struct.pack("<I", google_crc32c.value(raw)))


def _array(level: Level, edge: int, codecs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A level's zarr.json. Axes c, y, x; a chunk is transposed to (y, x, c), which is what a JPEG holds.

    Source: Zarr v3, core specification and the codec sharding_indexed. Written by zarr itself it takes 4 ms a level.
    """
    sharding = {
        "chunk_shape": [3, level.chunk_height, level.chunk_width],
        "codecs": [{"name": "transpose", "configuration": {"order": [1, 2, 0]}}, *codecs],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    shard = [3, level.chunk_height * edge, level.chunk_width * edge]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [3, level.height, level.width],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": WHITE,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["c", "y", "x"],
    }


def _write_json(folder: Path, node: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps(node, indent=1))


def _attributes(info: SlideInfo) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata; our own facts beside it. Nothing of the source's free text passes."""
    base = info.levels[0]
    mpp = info.mpp or 1.0
    scales = [[1.0, mpp * base.height / one.height, mpp * base.width / one.width] for one in info.levels]
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
    colours = [("R", "FF0000"), ("G", "00FF00"), ("B", "0000FF")]
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [
                {
                    "name": "slide",
                    "axes": [{"name": "c", "type": "channel"}, *space],
                    "datasets": [
                        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
                        for k, scale in enumerate(scales)
                    ],
                }
            ],
            "omero": {
                "channels": [{"label": name, "color": rgb, "active": True, "window": window} for name, rgb in colours],
                "rdefs": {"model": "color"},
            },
        },
        "her2batch": {
            "mpp": info.mpp,
            "mpp_source": info.mpp_source,
            "objective": info.objective,
            "format": info.format,
        },
    }


@dataclass(frozen=True)
class _Layer:
    """One array of the pyramid, as its zarr.json describes it."""

    folder: Path
    shard: int
    jpeg: JpegCodec | None  # None: packed without loss


Read = Callable[[int, int], bytes]
"""(offset, size) → bytes of a shard."""


def _reading(path: Path) -> tuple[Read, int]:
    """How a shard is read, and its size: a file that stays open, or ranges of an object."""
    fs = getattr(path, "fs", None)
    if fs is not None and "://" in str(path):
        return lambda at, size: bytes(fs.cat_file(str(path), start=at, end=at + size)), int(fs.info(str(path))["size"])
    file = path.open("rb")
    return lambda at, size: os.pread(file.fileno(), size, at), os.fstat(file.fileno()).st_size


class Pyramid(Slide):
    """A pyramid of the store, read like any slide; downstream needs no vendor file.

    Chunks are read straight from the shards: zarr itself costs about 1 ms a chunk, more than the decode.
    """

    def __init__(self, path: Path) -> None:
        """Open a pyramid. Raises SlideError `unreadable` when it is none."""
        try:
            attributes = json.loads((path / "zarr.json").read_text())["attributes"]
            datasets = attributes["ome"]["multiscales"][0]["datasets"]
            arrays = [json.loads((path / one["path"] / "zarr.json").read_text()) for one in datasets]
            described = [_describe(path / one["path"], array) for one, array in zip(datasets, arrays, strict=True)]
        except (OSError, KeyError, ValueError, StopIteration) as error:
            raise SlideError("unreadable", path, f"is no pyramid of a cohort ({error})", "ingest it again") from error
        facts = attributes["her2batch"]
        self._layers = [layer for _, layer in described]
        self.info = SlideInfo(
            path, facts["format"], "pyramid", tuple(level for level, _ in described),
            facts["mpp"], facts["mpp_source"], facts["objective"],
        )  # fmt: skip
        self._shard = lru_cache(maxsize=16)(self._open_shard)
        self._buffer = np.empty(0, np.uint8)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        return self._read_shrunk(box, level, 1, None)

    def _read_shrunk(self, box: Box, level: int, shrink: int, parts: BoxArray | None) -> NDArray[np.uint8]:
        layer, size = self._layers[level], self.info.levels[level]
        if layer.jpeg is None and shrink > 1:
            return super()._read_shrunk(box, level, shrink, parts)
        wanted = size.chunk_width * size.chunk_height * 3
        if len(self._buffer) < wanted:
            self._buffer = np.empty(wanted, np.uint8)

        def decoded(row: int, column: int) -> NDArray[np.uint8] | None:
            data = self._raw(level, row, column)
            if data is None:
                return None
            try:
                if layer.jpeg is None:
                    return decompress_lossless(data, size.chunk_height, size.chunk_width)
                return decode_jpeg(data, layer.jpeg.tables, layer.jpeg.colorspace_jpeg, self._buffer, shrink)
            except (ValueError, RuntimeError) as error:
                what = f"its chunk {row}, {column} of level {level} can't be decoded ({error})"
                raise SlideError("unreadable", self.info.path, what, MEND) from error

        return assemble_chunks(box, (size.chunk_width // shrink, size.chunk_height // shrink), decoded, parts)

    def jpeg_chunk(self, level: int, row: int, column: int) -> bytes | None:
        """A chunk as a JPEG file, its bytes untouched; None where there is no tissue, or no JPEG."""
        jpeg = self._layers[level].jpeg
        data = self._raw(level, row, column) if jpeg is not None else None
        return None if jpeg is None or data is None else complete_jpeg(data, jpeg.tables, jpeg.colorspace_jpeg)

    def _raw(self, level: int, row: int, column: int) -> bytes | None:
        """The stored stream of a chunk; None where there is no tissue."""
        edge = self._layers[level].shard
        shard = self._shard(level, row // edge, column // edge)
        if shard is None:
            return None
        read, index = shard
        offset, size = (int(one) for one in index[row % edge, column % edge])
        return None if offset == MISSING else read(offset, size)

    def _open_shard(self, level: int, row: int, column: int) -> tuple[Read, NDArray[np.uint64]] | None:
        layer = self._layers[level]
        path = layer.folder / "c" / "0" / str(row) / str(column)
        if not path.exists():
            return None
        read, end = _reading(path)
        length = layer.shard**2 * 16
        raw = read(max(0, end - length - 4), min(end, length + 4))
        if len(raw) != length + 4 or struct.unpack("<I", raw[length:])[0] != google_crc32c.value(raw[:length]):
            raise SlideError("truncated", path, "the shard's index is damaged", MEND)
        return read, np.frombuffer(raw[:length], "<u8").reshape(layer.shard, layer.shard, 2)

    def close(self) -> None:
        """Free the shards."""
        self._shard.cache_clear()


def _describe(folder: Path, array: dict[str, Any]) -> tuple[Level, _Layer]:
    """A level and how to decode it, from its zarr.json. Raises KeyError or StopIteration when it isn't ours."""
    _, height, width = array["shape"]
    sharding = array["codecs"][0]["configuration"]
    _, chunk_height, chunk_width = sharding["chunk_shape"]
    shard = array["chunk_grid"]["configuration"]["chunk_shape"][1] // chunk_height
    codecs = sharding["codecs"][1:]  # behind the transpose
    jpeg = (
        None
        if codecs == list(ZSTD_CODECS)
        else JpegCodec.from_dict(next(one for one in codecs if one["name"] == CODEC_NAME))
    )
    return Level(width, height, chunk_width, chunk_height), _Layer(folder, shard, jpeg)
