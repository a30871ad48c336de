"""A slide as OME-Zarr 0.5: written once, tissue only, and read back as a Slide.

A level is one array (c, y, x) of the slide's own size and chunks. Where the slide is a TIFF of JPEG tiles, its tiles
are moved as they are: no pixel is decoded or changed. Elsewhere chunks are encoded once. Chunks without tissue are not
stored: their place in the shard's index says so, and readers see the fill value, white.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec

from her2batch.errors import SlideError
from her2batch.slides.codecs import NAME, JpegCodec, encode
from her2batch.slides.jpeg import decode
from her2batch.slides.slide import Box, Level, Places, Slide, SlideInfo, assembled
from her2batch.slides.tiffslide import TiffSlide

SHARD = 32
"""Chunks along a shard's edge: 8192 px for 256-px tiles, so a 40k slide is 25 files and none is over a few 10 MB."""

WHITE = 255
MISSING = 2**64 - 1


def write(slide: Slide, tissue: NDArray[np.bool_], out: Path, quality: int) -> None:
    """Write the tissue of a slide, every native level, as OME-Zarr.

    tissue: (h, w) bool over the whole slide, any resolution; every chunk it touches is stored.  quality: of the JPEG
    where the slide's own tiles can't be kept.  Raises SlideError; OSError when the disk refuses.
    """
    shutil.rmtree(out, ignore_errors=True)
    group = zarr.create_group(out, zarr_format=3, attributes=_attributes(slide.info))
    for number, level in enumerate(slide.info.levels):
        chunks = _chunks(slide, number, quality)
        _create_array(group, str(number), level, chunks.codec)
        _write_shards(out / str(number), level, _touched(tissue, level), chunks)


class _Passthrough:
    """A TIFF level's own JPEG streams."""

    def __init__(self, slide: TiffSlide, level: int) -> None:
        table = slide.table(level)
        self._slide, self._level, self._across = slide, level, table.across
        self.codec = JpegCodec(tables=table.jpeg_tables or b"", colorspace_jpeg=table.colorspace)

    def chunk(self, row: int, column: int) -> bytes:
        return self._slide.raw(self._level, row * self._across + column)


class _Encoded:
    """Chunks encoded anew."""

    def __init__(self, slide: Slide, level: int, quality: int) -> None:
        self._slide, self._level, self._quality = slide, level, quality
        self.codec = JpegCodec(level=quality)

    def chunk(self, row: int, column: int) -> bytes:
        size = self._slide.info.levels[self._level]
        x, y = column * size.chunk_width, row * size.chunk_height
        box = Box(x, y, min(size.chunk_width, size.width - x), min(size.chunk_height, size.height - y))
        pixels = self._slide.read(box, self._level)
        missing = ((0, size.chunk_height - box.height), (0, size.chunk_width - box.width), (0, 0))
        return encode(np.pad(pixels, missing, mode="edge"), self._quality)


def _chunks(slide: Slide, level: int, quality: int) -> _Passthrough | _Encoded:
    if isinstance(slide, TiffSlide) and slide.table(level).compression == "jpeg" and slide.table(level).full_tiles:
        return _Passthrough(slide, level)
    return _Encoded(slide, level, quality)


def _touched(tissue: NDArray[np.bool_], level: Level) -> NDArray[np.bool_]:
    """Which chunks of a level hold tissue: (down, across) bool. Exact for any resolution of the mask."""
    sums = np.pad(tissue.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    y0, y1 = _edges(level.height, level.chunk_height, tissue.shape[0])
    x0, x1 = _edges(level.width, level.chunk_width, tissue.shape[1])
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    return cast(NDArray[np.bool_], inside > 0)


def _edges(length: int, chunk: int, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last-but-one mask cell of each chunk along one axis: `length` level px lie under `cells` mask px."""
    starts = np.arange(0, length, chunk, dtype=np.int64)
    ends = np.minimum(starts + chunk, length)
    return starts * cells // length, -(-ends * cells // length)


def _write_shards(folder: Path, level: Level, touched: NDArray[np.bool_], chunks: _Passthrough | _Encoded) -> None:
    """Shard files c/0/ROW/COLUMN: chunk streams, then the index of (offset, size) and its CRC32C (Zarr v3 sharding)."""
    down, across = touched.shape
    for top in range(0, down, SHARD):
        for left in range(0, across, SHARD):
            part = touched[top : top + SHARD, left : left + SHARD]
            if part.any():
                path = folder / "c" / "0" / str(top // SHARD) / str(left // SHARD)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    index = np.full((SHARD, SHARD, 2), MISSING, "<u8")
                    for row, column in np.argwhere(part):
                        data = chunks.chunk(top + int(row), left + int(column))
                        if data:  # a sparse TIFF has tiles of no bytes: not stored here either
                            index[row, column] = file.tell(), len(data)
                            file.write(data)
                    raw = index.tobytes()
                    file.write(raw + struct.pack("<I", google_crc32c.value(raw)))


def _create_array(group: zarr.Group, name: str, level: Level, codec: JpegCodec) -> None:
    """The level's zarr.json. Axes c, y, x; a chunk is transposed to (y, x, c), which is what a JPEG holds."""
    chunk = (3, level.chunk_height, level.chunk_width)
    sharding = ShardingCodec(
        chunk_shape=chunk,
        codecs=[TransposeCodec(order=(1, 2, 0)), codec],
        index_codecs=[BytesCodec(), Crc32cCodec()],
    )
    shard = (3, level.chunk_height * SHARD, level.chunk_width * SHARD)
    group.create_array(
        name,
        shape=(3, level.height, level.width),
        chunks=shard,
        dtype="uint8",
        fill_value=WHITE,
        filters=None,
        compressors=None,
        serializer=sharding,
        dimension_names=["c", "y", "x"],
    )


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
    tables: bytes | None
    colorspace: str


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
        return self._read(box, level, 1, None)

    def _read(self, box: Box, level: int, shrink: int, parts: Places | None) -> NDArray[np.uint8]:
        layer, size = self._layers[level], self.info.levels[level]
        wanted = size.chunk_width * size.chunk_height * 3
        if len(self._buffer) < wanted:
            self._buffer = np.empty(wanted, np.uint8)

        def decoded(row: int, column: int) -> NDArray[np.uint8] | None:
            data = self._raw(level, row, column)
            return None if data is None else decode(data, layer.tables, layer.colorspace, self._buffer, shrink)

        return assembled(box, (size.chunk_width // shrink, size.chunk_height // shrink), decoded, parts)

    def _raw(self, level: int, row: int, column: int) -> bytes | None:
        """The stored stream of a chunk; None where there is no tissue."""
        edge = self._layers[level].shard
        shard = self._shard(level, row // edge, column // edge)
        if shard is None:
            return None
        handle, index = shard
        offset, size = (int(one) for one in index[row % edge, column % edge])
        return None if offset == MISSING else os.pread(handle.fileno(), size, offset)

    def _open_shard(self, level: int, row: int, column: int) -> tuple[Any, NDArray[np.uint64]] | None:
        layer = self._layers[level]
        path = layer.folder / "c" / "0" / str(row) / str(column)
        if not path.exists():
            return None
        file = path.open("rb")
        length = layer.shard**2 * 16
        end = os.fstat(file.fileno()).st_size
        raw = os.pread(file.fileno(), length + 4, max(0, end - length - 4))
        if len(raw) != length + 4 or struct.unpack("<I", raw[length:])[0] != google_crc32c.value(raw[:length]):
            raise SlideError("truncated", path, "the shard's index is damaged", "run ingest again: it mends the store")
        return file, np.frombuffer(raw[:length], "<u8").reshape(layer.shard, layer.shard, 2)

    def close(self) -> None:
        """Free the shards."""
        self._shard.cache_clear()


def _describe(folder: Path, array: dict[str, Any]) -> tuple[Level, _Layer]:
    """A level and how to decode it, from its zarr.json. Raises KeyError or StopIteration when it isn't ours."""
    _, height, width = array["shape"]
    sharding = array["codecs"][0]["configuration"]
    _, chunk_height, chunk_width = sharding["chunk_shape"]
    shard = array["chunk_grid"]["configuration"]["chunk_shape"][1] // chunk_height
    codec = JpegCodec.from_dict(next(one for one in sharding["codecs"] if one["name"] == NAME))
    return Level(width, height, chunk_width, chunk_height), _Layer(folder, shard, codec.tables, codec.colorspace_jpeg)
