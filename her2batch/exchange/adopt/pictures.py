"""Pictures as tiled slides: TIFF with a stated resolution, without loss where that is possible.

A baseline JPEG in YCbCr is stored as it is, as the only tile of its TIFF: not decoded, so that nothing is lost. TIFF
wants tiles whose edges are multiples of 16 px (TIFF 6.0, section 15); a JPEG stream holds whole blocks anyway, so that
its header may state the size of its blocks, and the TIFF the size of the picture. Metadata (EXIF, comments) is removed.
Other JPEGs (progressive, rotated by EXIF, CMYK, grey, or too large for one tile) are encoded once more at QUALITY, with
full colour resolution. PNG and everything else is compressed without loss.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from her2batch.errors import InputError, one_line
from her2batch.slides.jpeg import EOI, SOI, frame_size, has_end_marker, header_segments

QUALITY: Final = 95
"""JPEG quality of pictures that must be encoded once more."""

TILE: Final = 512
"""Edge of the tiles of pictures that are not copied, px."""

MAX_COPIED_EDGE: Final = 8192
"""Largest edge of a picture that is copied as one tile, px: 200 MB decoded."""

MAX_PIXELS: Final = 400_000_000
"""Largest picture that is converted, px (1.2 GB decoded)."""

MAX_BYTES: Final = 2_000_000_000
"""Largest file that is read."""

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
PNG_SIZE: Final = struct.Struct(">II")
"""Width and height in the header of a PNG, from byte 16."""

REMEDY: Final = "download the file again, and compare its checksum"

PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")

SOF0, APP0, APP14 = 0xC0, 0xE0, 0xEE
KEPT_SEGMENTS: Final = frozenset({0xC4, 0xDA, 0xDB, 0xDD, SOF0})
"""Segments of a JPEG that are needed to decode it: Huffman and quantization tables, restart interval, frame, scan."""


class EncodedPicture(NamedTuple):
    """A picture as the tiles of a TIFF.  how: `copied`, `lossless` or `jpeg-95`.  options: of tifffile."""

    how: str
    width: int
    height: int
    tiles: list[bytes] | NDArray[np.uint8]
    options: dict[str, Any]


def write_tiff(path: Path, picture: EncodedPicture, mpp: float) -> None:
    """Write a picture as a TIFF of one level. mpp: µm/px."""
    shape, per_cm = (picture.height, picture.width, 3), 1e4 / mpp
    data = iter(picture.tiles) if isinstance(picture.tiles, list) else picture.tiles
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            data, shape=shape, dtype=np.uint8, metadata=None, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
            software="her2batch adopt", **picture.options,
        )  # fmt: skip


def encode_picture(path: Path, data: bytes) -> EncodedPicture:
    """Return a picture as tiles.  data: the content of the file.  Raises InputError for what cannot be decoded."""
    if data[:2] == SOI and (copied := _copy_jpeg(data)) is not None:
        return copied
    rgb, was_jpeg = _decode(path, data)
    height, width = rgb.shape[:2]
    if was_jpeg:
        tiles = [_encode_tile(rgb, x, y) for y in range(0, height, TILE) for x in range(0, width, TILE)]
        options: dict[str, Any] = {"tile": (TILE, TILE), "compression": "jpeg", "photometric": "ycbcr"}
        options["subsampling"] = (1, 1)
        return EncodedPicture(f"jpeg-{QUALITY}", width, height, tiles, options)
    options = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "rgb", "predictor": True}
    return EncodedPicture("lossless", width, height, rgb, options)


def _encode_tile(rgb: NDArray[np.uint8], x: int, y: int) -> bytes:
    tile = rgb[y : y + TILE, x : x + TILE]
    right, bottom = TILE - tile.shape[1], TILE - tile.shape[0]
    padded = np.pad(tile, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(padded), quality=QUALITY, colorsubsampling="444"))


def _decode(path: Path, data: bytes) -> tuple[NDArray[np.uint8], bool]:
    """Return the pixels (h, w, 3) uint8, upright and on white, and whether the file is a JPEG."""
    is_jpeg = data[:2] == SOI
    size = frame_size(data) if is_jpeg else PNG_SIZE.unpack_from(data, 16) if data[:8] == PNG_MAGIC else None
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        what = f"the picture of {size[0]} × {size[1]} px is too large"
        raise InputError(what, path, f"convert it to a tiled slide; at most {MAX_PIXELS:,} px are read")
    if is_jpeg and not has_end_marker(data[-64:]):
        raise InputError("the picture is cut off", path, REMEDY)
    try:  # a colour JPEG is turned as its EXIF says
        mode = cv2.IMREAD_COLOR if is_jpeg else cv2.IMREAD_UNCHANGED
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except (cv2.error, MemoryError) as error:
        raise InputError(f"the picture cannot be decoded ({one_line(error)[:120]})", path, REMEDY) from error
    if pixels is None:
        raise InputError("the picture cannot be decoded", path, REMEDY)
    return _on_white(pixels), is_jpeg


def _on_white(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels as OpenCV decodes them, (h, w) or (h, w, 3 or 4) BGR, as (h, w, 3) uint8 RGB on white."""
    values = (pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    rgb = np.ascontiguousarray(values[..., 2::-1])
    if values.shape[2] == 3:
        return rgb
    alpha = values[..., 3:].astype(np.uint16)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _copy_jpeg(data: bytes) -> EncodedPicture | None:
    """Return a JPEG as one tile without decoding it; None where its stream is of another kind."""
    if not has_end_marker(data[-64:]):
        return None
    segments = list(_checked_segments(data))
    frame = next((body for marker, body in segments if marker == SOF0), None)
    if frame is None or len(frame) != 19 or _is_rotated(segments) or segments[-1][0] != 0xDA:
        return None
    precision, height, width, components = struct.unpack(">BHHB", frame[4:10])
    factors = [frame[10 + 3 * k + 1] for k in range(components)]
    across, down = factors[0] >> 4, factors[0] & 15
    is_ycbcr = components == 3 and factors[1:] == [0x11, 0x11] and factors[0] in (0x11, 0x21, 0x22)
    if precision != 8 or not is_ycbcr or not _states_ycbcr(segments, frame):
        return None
    tile_width, tile_height = (-(-edge // (8 * f)) * 8 * f for edge, f in ((width, across), (height, down)))
    if max(width, height) > MAX_COPIED_EDGE or min(width, height) < 1 or tile_width % 16 or tile_height % 16:
        return None
    resized = frame[:5] + struct.pack(">HH", tile_height, tile_width) + frame[9:]
    kept = [resized if marker == SOF0 else body for marker, body in segments if marker in KEPT_SEGMENTS]
    scan = sum(len(body) for _, body in segments) + len(SOI)
    end = data.rindex(EOI) + len(EOI)
    stream = b"".join((SOI, *kept, data[scan:end]))
    options = {
        "tile": (tile_height, tile_width), "compression": "jpeg", "photometric": "ycbcr",
        "subsampling": (across, down),
    }  # fmt: skip
    try:  # decodes as a whole, with the size that its tile has
        simplejpeg.decode_jpeg(stream, "RGB", strict=True)
    except ValueError:
        return None
    return EncodedPicture("copied", width, height, [stream], options)


def _checked_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    for marker, body in header_segments(data):
        if len(body) < 4:
            return
        yield marker, body


def _is_rotated(segments: list[tuple[int, bytes]]) -> bool:
    """Return whether EXIF may state an orientation: then the picture is decoded, and turned where it must be."""
    exif = [body for marker, body in segments if marker == 0xE1 and body[4:8] == b"Exif"]
    return any(tag in body for body in exif for tag in (b"\x12\x01", b"\x01\x12"))


def _states_ycbcr(segments: list[tuple[int, bytes]], frame: bytes) -> bool:
    """Return whether decoders take the components for YCbCr (ITU-T T.871; Adobe's TN 5116)."""
    adobe = next((body for marker, body in segments if marker == APP14 and body[4:9] == b"Adobe"), None)
    jfif = any(marker == APP0 and body[4:8] == b"JFIF" for marker, body in segments)
    ids = bytes(frame[10 + 3 * k] for k in range(3))
    return jfif or (adobe is not None and len(adobe) > 15 and adobe[15] == 1) or (adobe is None and ids != b"RGB")
