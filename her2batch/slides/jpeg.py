"""JPEG and JPEG 2000 streams of slides: decoding, sizes, removal of metadata.

In slides, JPEG streams are often abbreviated: their tables are stored once elsewhere, and the marker that states the
colour space may be missing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
RGB_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Adobe's APP14 marker with transform 0: the components are RGB. Aperio omits it, and decoders then assume YCbCr."""

JFIF = b"\xff\xe0"

J2K_START = b"\xff\x4f\xff\x51"
"""First bytes of a JPEG 2000 codestream: the markers SOC and SIZ."""

SOS = b"\xff\xda"
COMMENT = 0xFE

COLOUR_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Application segments that state the colour space: marker → first bytes, number of bytes to keep."""

DATA_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""Pattern that ends entropy-coded data: any marker but a restart marker (ITU-T T.81, B.1.1.5)."""

FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def complete_jpeg(data: bytes, tables: bytes | None, colorspace: str) -> bytes:
    """Return a complete JPEG file from an abbreviated stream: with its tables and a marker for RGB.

    tables: JPEGTables of the TIFF.  colorspace: of the stream, 'RGB' or 'YCBCR'.
    """
    body = tables.removeprefix(SOI).removesuffix(EOI) if tables else b""
    if colorspace != "RGB":
        return b"".join((SOI, body, data[2:])) if body else data
    rest = data[2:]
    if rest[:2] == JFIF:  # decoders prefer a JFIF header, which means YCbCr, to Adobe's marker
        rest = rest[2 + int.from_bytes(rest[2:4]) :]
    return b"".join((SOI, RGB_MARKER, body, rest))


def decode_jpeg(
    data: bytes,
    tables: bytes | None = None,
    colorspace: str = "YCBCR",
    buffer: NDArray[np.uint8] | None = None,
    shrink: int = 1,
) -> NDArray[np.uint8]:
    """Decode a stream strictly to (h, w, 3) uint8 RGB: warnings of libjpeg-turbo are errors.

    buffer: at least h · w · 3 bytes to decode into, so that no new memory is allocated.  shrink: 1, 2, 4 or 8; the
    inverse transform is scaled, and the result has shape (⌈h / shrink⌉, ⌈w / shrink⌉, 3).  Raises ValueError.
    """
    stream = complete_jpeg(data, tables, colorspace)
    if shrink == 1:
        pixels = simplejpeg.decode_jpeg(stream, "RGB", buffer=buffer, strict=True)
    else:
        size = frame_size(data)
        if size is None:
            raise ValueError("the stream has no frame header")
        height, width = (-(-edge // shrink) for edge in size)
        pixels = simplejpeg.decode_jpeg(
            stream, "RGB", buffer=buffer, strict=True, min_factor=shrink, min_height=height, min_width=width
        )
    return cast(NDArray[np.uint8], pixels)


def blank_metadata(stream: bytes) -> bytes:
    """Overwrite the metadata of a JPEG stream with zeros; the image and the number of bytes stay the same.

    Metadata are comments, application segments (EXIF, colour profile, thumbnail) and any bytes after the end of the
    image.  Raises ValueError when the stream is not a sequence of segments.  Source: ITU-T T.81, B.1.1 and B.2.
    """
    scan = stream.find(SOS)
    if scan > 0 and _has_no_metadata(stream[:scan]):
        data_end = DATA_END.search(stream, scan + 2)
        if data_end and data_end.end() == len(stream) and stream.endswith(EOI):
            return stream
    ranges = [(start, end) for start, end in _metadata_ranges(stream) if any(stream[start:end])]
    if not ranges:
        return stream
    blanked = bytearray(stream)
    for start, end in ranges:
        blanked[start:end] = bytes(end - start)
    return bytes(blanked)


@lru_cache(maxsize=64)
def _has_no_metadata(header: bytes) -> bool:
    """Return whether the bytes before the scan hold no metadata. Cached, because most tiles of a level share them."""
    try:
        return not list(_metadata_ranges(header + SOS))
    except ValueError:
        return False


def _metadata_ranges(stream: bytes) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges (start, end) of a stream that can contain metadata. Raises ValueError."""
    at = len(SOI)
    while at + 2 <= len(stream):
        mark, kind = stream[at : at + 2]
        if mark != 0xFF:
            raise ValueError("there are bytes between its segments")
        if kind == EOI[1]:
            yield at + 2, len(stream)
            return
        if kind == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
        if kind == COMMENT or kind >> 4 == 0xE:
            first_bytes, kept = COLOUR_SEGMENTS.get(kind, (b"", 0))
            yield at + 4 + kept * stream.startswith(first_bytes, at + 4), min(end, len(stream))
        if kind == SOS[1]:
            data_end = DATA_END.search(stream, end)
            end = data_end.start() if data_end else len(stream)
        at = end


def frame_size(head: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the first bytes of a JPEG stream; None without a start marker or frame header."""
    if not head.startswith(SOI):
        return None
    position = 2
    while position + 9 <= len(head) and head[position] == 0xFF:
        kind = head[position + 1]
        if kind in FRAME_MARKERS:
            return int.from_bytes(head[position + 5 : position + 7]), int.from_bytes(head[position + 7 : position + 9])
        position += 2 + int.from_bytes(head[position + 2 : position + 4])
    return None


def codestream_size(head: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the first bytes of a JPEG 2000 codestream or JP2 file; None for other data.

    Source: ISO/IEC 15444-1, A.5.1: the SIZ marker directly follows SOC.
    """
    start = head.find(J2K_START)
    if len(head) < start + 24 or start < 0 or (start > 0 and head[4:8] != b"jP  "):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", head, start + 8)
    return bottom - top, right - left


def has_end_marker(tail: bytes) -> bool:
    """Return whether the last bytes of a JPEG or JPEG 2000 stream are the end marker FFD9, or zeros after it."""
    return tail.rstrip(b"\0").endswith(EOI)
