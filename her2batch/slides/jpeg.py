"""JPEG streams as slides hold them: abbreviated, their tables elsewhere, sometimes without a word on colour."""

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
"""Adobe's APP14 with transform 0: the components are RGB. Aperio leaves it out, and a decoder takes them for YCbCr."""

JFIF = b"\xff\xe0"

J2K_START = b"\xff\x4f\xff\x51"
"""How JPEG 2000 starts: SOC, SIZ."""

SOS = b"\xff\xda"
COMMENT = 0xFE

COLOUR_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Application segments that say what the colours are: kind → how one begins, bytes of it that say so."""

DATA_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""The end of entropy-coded data (ITU-T T.81, B.1.1.5)."""

FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def complete_jpeg(data: bytes, tables: bytes | None, colorspace: str) -> bytes:
    """An abbreviated stream with its tables (a TIFF's JPEGTables) and its colour space said in a marker."""
    body = tables.removeprefix(SOI).removesuffix(EOI) if tables else b""
    if colorspace != "RGB":
        return b"".join((SOI, body, data[2:])) if body else data
    rest = data[2:]
    if rest[:2] == JFIF:  # a JFIF header outranks Adobe's marker: to a decoder it says YCbCr
        rest = rest[2 + int.from_bytes(rest[2:4]) :]
    return b"".join((SOI, RGB_MARKER, body, rest))


def decode_jpeg(
    data: bytes,
    tables: bytes | None = None,
    colorspace: str = "YCBCR",
    buffer: NDArray[np.uint8] | None = None,
    shrink: int = 1,
) -> NDArray[np.uint8]:
    """A stream → (h, w, 3) uint8 RGB, strictly: what libjpeg-turbo would only warn of is an error.

    buffer: at least h · w · 3 bytes to decode into, so that no fresh memory is touched.  shrink: 1, 2, 4 or 8; the
    inverse transform is done at that size, (⌈h / shrink⌉, ⌈w / shrink⌉, 3) comes out.  Raises ValueError.
    """
    stream = complete_jpeg(data, tables, colorspace)
    if shrink == 1:
        pixels = simplejpeg.decode_jpeg(stream, "RGB", buffer=buffer, strict=True)
    else:
        size = frame_size(data)
        if size is None:
            raise ValueError("no frame header where one belongs")
        high, wide = (-(-edge // shrink) for edge in size)
        pixels = simplejpeg.decode_jpeg(
            stream, "RGB", buffer=buffer, strict=True, min_factor=shrink, min_height=high, min_width=wide
        )
    return cast(NDArray[np.uint8], pixels)


def blank_metadata(stream: bytes) -> bytes:
    """The same image in as many bytes, without a word: comments, application segments (EXIF, a profile, a thumbnail)
    and whatever lies behind its end are zeros.

    Raises ValueError where it is no row of segments.  Source: ITU-T T.81, B.1.1 and B.2.
    """
    scan = stream.find(SOS)
    if scan > 0 and _has_no_metadata(stream[:scan]):
        behind = DATA_END.search(stream, scan + 2)
        if behind and behind.end() == len(stream) and stream.endswith(EOI):
            return stream
    spoken = [(start, end) for start, end in _metadata_ranges(stream) if any(stream[start:end])]
    if not spoken:
        return stream
    quiet = bytearray(stream)
    for start, end in spoken:
        quiet[start:end] = bytes(end - start)
    return bytes(quiet)


@lru_cache(maxsize=64)
def _has_no_metadata(header: bytes) -> bool:
    """Whether a stream up to its scan says nothing; most tiles of a level share it."""
    try:
        return not list(_metadata_ranges(header + SOS))
    except ValueError:
        return False


def _metadata_ranges(stream: bytes) -> Iterator[tuple[int, int]]:
    """Where words may stand in a stream: from, to. Raises ValueError."""
    at = len(SOI)
    while at + 2 <= len(stream):
        mark, kind = stream[at : at + 2]
        if mark != 0xFF:
            raise ValueError("something between its segments")
        if kind == EOI[1]:
            yield at + 2, len(stream)
            return
        if kind == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
        if kind == COMMENT or kind >> 4 == 0xE:
            begins, kept = COLOUR_SEGMENTS.get(kind, (b"", 0))
            yield at + 4 + kept * stream.startswith(begins, at + 4), min(end, len(stream))
        if kind == SOS[1]:
            found = DATA_END.search(stream, end)
            end = found.start() if found else len(stream)
        at = end


def frame_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) out of the first bytes of a JPEG stream; None when they hold no start and no frame header."""
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
    """(height, width) out of the first bytes of a JPEG 2000 codestream, also inside a JP2 file; None when it is none.

    Source: ISO/IEC 15444-1, A.5.1: the SIZ marker follows SOC at once.
    """
    start = head.find(J2K_START)
    if len(head) < start + 24 or start < 0 or (start > 0 and head[4:8] != b"jP  "):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", head, start + 8)
    return bottom - top, right - left


def has_end_marker(tail: bytes) -> bool:
    """Whether the last bytes of a JPEG or JPEG 2000 stream end it (both by FFD9), with at most zeros behind."""
    return tail.rstrip(b"\0").endswith(EOI)
