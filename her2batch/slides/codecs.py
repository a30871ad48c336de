"""The chunks and the metadata of pyramids: JPEG streams, lossless zstd, and zarr.json.

The JPEG codec has the name and configuration of the one in imagecodecs. A TIFF stores the Huffman and quantisation
tables of its JPEG tiles once, so a pyramid that keeps these tiles stores them once, in the codec's configuration.
The package zarr is not needed to write or read a pyramid: its import takes 0.3 s, and 160 MB where cuCIM has brought
CuPy along. `slides.zarr_codec` is for programs that use it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import imagecodecs
import numpy as np
import simplejpeg
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from her2batch.slides.slide import WHITE, Level, SlideInfo

CODEC_NAME = "imagecodecs_jpeg"

ZSTD_LEVEL = 3
"""Compression level of lossless chunks. On HER2 tissue, level 3 makes them 1.46 times smaller than raw pixels at
50 MP/s; level 1 makes 1.37 at 120 MP/s, level 9 makes 1.51 at 25 MP/s. JPEG at quality 90 makes them 9 times smaller.
"""

ZSTD_CODECS = ({"name": "bytes"}, {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}})
"""Codecs of lossless chunks as named in zarr.json. They are standard: every Zarr v3 reader has them."""


def encode_jpeg(rgb: NDArray[np.uint8], quality: int, colorspace: str = "YCBCR") -> bytes:
    """Encode (h, w, 3) uint8 RGB as JPEG, 4:4:4 so that thin stained membranes keep their colour.

    colorspace: of the stream, YCBCR or RGB.
    """
    if colorspace == "RGB":
        return bytes(imagecodecs.jpeg8_encode(rgb, quality, colorspace="RGB", outcolorspace="RGB", subsampling="444"))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality, "RGB", "444", fastdct=False))


def compress_lossless(rgb: NDArray[np.uint8]) -> bytes:
    """Compress (h, w, 3) uint8 with zstd, including a checksum of the content."""
    return bytes(Zstd(ZSTD_LEVEL, checksum=True).encode(np.ascontiguousarray(rgb)))


def decompress_lossless(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Decompress a lossless chunk: (height, width, 3) uint8.

    Raises RuntimeError when the data are damaged, ValueError when the chunk has another size.
    """
    return np.frombuffer(Zstd().decode(data), np.uint8).reshape(height, width, 3)


@dataclass(frozen=True)
class JpegChunks:
    """Chunks of (h, w, 3) uint8 that are JPEG streams, as a zarr.json describes them.

    level: quality of newly written chunks.  tables: JPEGTables of the TIFF, for abbreviated streams.
    colorspace_jpeg: colour space of the stream, 'RGB' or 'YCBCR' (Aperio writes RGB without the marker for it).
    """

    level: int = 90
    subsampling: str = "444"
    tables: bytes | None = None
    colorspace_jpeg: str = "YCBCR"
    colorspace_data: str = "RGB"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the description of the codec in a zarr.json. Raises TypeError for an unknown configuration."""
        configuration = dict(data.get("configuration", {}))
        if configuration.get("tables") is not None:  # empty where every stream has its own tables
            configuration["tables"] = base64.b64decode(configuration["tables"])
        return cls(**configuration)

    def to_dict(self) -> dict[str, Any]:
        """Return name and configuration as written to zarr.json."""
        configuration: dict[str, Any] = {
            "colorspace_data": self.colorspace_data,
            "colorspace_jpeg": self.colorspace_jpeg,
        }
        if self.tables is None:
            configuration |= {"level": self.level, "subsampling": self.subsampling}
        else:
            configuration["tables"] = base64.b64encode(self.tables).decode()
        return {"name": CODEC_NAME, "configuration": configuration}


# -- zarr.json ---------------------------------------------------------------------------------------------------


def array_metadata(level: Level, edge: int, codecs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the zarr.json of a level. Axes are c, y, x; a chunk is transposed to (y, x, c), the layout of a JPEG.

    Source: Zarr v3, core specification and codec sharding_indexed. The zarr package would take 4 ms for each level.
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


def group_metadata(info: SlideInfo, arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the zarr.json of a pyramid: OME-Zarr 0.5, with the metadata of its levels consolidated.

    arrays: name of a level → its zarr.json. Consolidated, they are read in one request, also where a store cannot be
    listed (HTTP).  Source: zarr-python, consolidated metadata of Zarr v3 (inline).
    """
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": _group_attributes(info),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": dict(arrays)},
    }


def _group_attributes(info: SlideInfo) -> dict[str, Any]:
    """Return OME-Zarr 0.5 metadata, and those of her2batch. No free text of the slide file is copied."""
    base = info.levels[0]
    mpp = info.mpp or 1.0
    scales = [[1.0, mpp * base.height / level.height, mpp * base.width / level.width] for level in info.levels]
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
