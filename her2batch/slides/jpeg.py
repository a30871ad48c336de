"""JPEG and JPEG 2000 streams of slides: decoding, sizes, colour space, removal of metadata.

In slides, JPEG streams are often abbreviated: their tables are stored once elsewhere, and the marker that states the
colour space may be missing. The file's colour tag may be wrong as well: `decide_colorspace` weighs all evidence.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import cv2
import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
RGB_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Adobe's APP14 marker with transform 0: the components are RGB. Aperio omits it, and decoders then assume YCbCr."""

YCBCR_MARKER = RGB_MARKER[:-1] + b"\1"
"""The same with transform 1: the components are YCbCr."""

NAMED_RGB = re.compile(rb"\xff[\xc0-\xc2]\x00\x11.{5}\x03R..G..B", re.DOTALL)
"""Frame header whose components are named R, G and B, which decoders take for RGB."""

JFIF, JFIF_NAME = b"\xff\xe0", b"JFIF\0"
ADOBE, ADOBE_NAME = b"\xff\xee", b"Adobe"
HEADER_BYTES = 1024
"""Bytes of a stream that are searched for a JFIF header and for Adobe's marker."""

J2K_START = b"\xff\x4f\xff\x51"
"""First bytes of a JPEG 2000 codestream: the markers SOC and SIZ."""

SOS = b"\xff\xda"
COMMENT = 0xFE

COLOUR_SEGMENTS = {0xE0: (JFIF_NAME, 14), 0xEE: (b"Adobe", 12)}
"""Application segments that state the colour space: marker → first bytes, number of bytes to keep."""

DATA_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""Pattern that ends entropy-coded data: any marker but a restart marker (ITU-T T.81, B.1.1.5)."""

BETWEEN_SCANS = frozenset((0xC4, 0xDA, 0xDB, 0xDC, 0xDD, COMMENT))
"""Markers that may follow a scan: tables, the next scan, number of lines, restart interval, comment."""

HOLE_BYTES = 32
HOLE = bytes(HOLE_BYTES)
"""So many zero bytes are hardly ever a picture, and often a hole that an interrupted copy has left."""

FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def complete_jpeg(data: bytes, tables: bytes | None, colorspace: str) -> bytes:
    """Return a complete JPEG file from an abbreviated stream: with its tables and a marker for RGB.

    tables: JPEGTables of the TIFF.  colorspace: of the stream, 'RGB' or 'YCBCR'. Markers that state another one are
    changed, because decoders follow them.
    """
    body = tables.removeprefix(SOI).removesuffix(EOI) if tables else b""
    if colorspace != "RGB":
        named = YCBCR_MARKER if NAMED_RGB.search(data, 0, HEADER_BYTES) else b""
        stream, body = _with_transform(data, 1), _with_transform(body, 1)
        return b"".join((SOI, named, body, stream[2:])) if body or named else stream
    rest = data[2:]
    if (at := rest.find(JFIF_NAME, 0, HEADER_BYTES) - 4) >= 0 and rest[at : at + 2] == JFIF:
        # decoders prefer a JFIF header, which means YCbCr, to Adobe's marker
        rest = rest[:at] + rest[at + 2 + int.from_bytes(rest[at + 2 : at + 4]) :]
    return b"".join((SOI, RGB_MARKER, _with_transform(body, 0), _with_transform(rest, 0)))


def _with_transform(segments: bytes, transform: int) -> bytes:
    """Return segments whose Adobe marker, if there is one, states a transform: decoders follow the last marker."""
    at = segments.find(ADOBE_NAME, 0, HEADER_BYTES) - 4
    if at < 0 or segments[at : at + 2] != ADOBE or segments[at + 15 : at + 16] == bytes([transform]):
        return segments
    return segments[: at + 15] + bytes([transform]) + segments[at + 16 :]


def header_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the bytes (with marker and length) of each segment of a JPEG header, up to the scan's."""
    at = len(SOI) if data.startswith(SOI) else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield data[at + 1], data[at:end]
        if data[at + 1] == SOS[1]:
            return
        at = end


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


def decode_jpeg2000(data: bytes, colorspace: str = "RGB") -> NDArray[np.uint8]:
    """Decode a JPEG 2000 stream to (h, w, 3) uint8 RGB.

    colorspace: of the decoded components.  Raises ValueError and RuntimeError. The caller checks the size first.
    """
    pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
    return pixels if colorspace == "RGB" else ycbcr_to_rgb(pixels)


def decode_jpeg2000_plane(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG 2000 stream of one component: (h, w, 1) uint8. Raises ValueError and RuntimeError."""
    pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
    return pixels.reshape(*pixels.shape[:2], -1)[..., :1]


def decode_grey_jpeg(data: bytes, tables: bytes | None) -> NDArray[np.uint8]:
    """Decode a stream of one component strictly, such as one colour of an image: (h, w, 1) uint8. Raises ValueError."""
    stream = complete_jpeg(data, tables, "YCBCR")
    return cast(NDArray[np.uint8], simplejpeg.decode_jpeg(stream, "GRAY", strict=True))


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


# -- colour space ------------------------------------------------------------------------------------------------

RGB, YCBCR = "RGB", "YCBCR"

BRIGHT_GREY, NEUTRAL_SPREAD = 200, 24
"""Least value of a bright px, and the largest difference between the channels of a neutral one."""

NO_BACKGROUND, MUCH_BACKGROUND = 0.001, 0.2
"""Share of bright, neutral px of a tile. Below the first value, pixels are taken for those of the other colour space if
the share is above the second value in that one."""

MAX_CHROMA, MIN_CHROMA_SHARE = 48, 0.98
"""Distance of Cb and Cr from 128 that stained tissue stays within, and the share of px that must do so. DAB and
haematoxylin of any density stay within 40 (vectors of Ruifrok & Johnston 2001, white of 255)."""

WEAK_CHANNEL, STRONG_CHANNEL = 0.5, 0.6
"""Standard deviation of the second and third channel, as a share of the first one's. Chroma varies less than the first
value; green and blue of tissue, which both stains absorb, vary more than the second."""

MIN_CORRELATION = 0.5
"""Correlation of red with green, and of green with blue, that stained tissue exceeds."""

MIN_CONTRAST = 4.0
"""Standard deviation of the first channel that a picture needs for a comparison with the others, grey values."""

DECODED_EDGE = 1024
"""Edge of a tile from which it is shrunk while it is decoded to look at its colours, px."""


def is_sound(data: bytes, size: tuple[int, int]) -> bool:
    """Return whether a stream has a header of a size, (height, width), and whole scans up to its end marker.

    No pixel is decoded: a changed byte of a scan goes unnoticed, and a run of HOLE_BYTES zero bytes does not.
    """
    data = data.rstrip(b"\0")  # some writers fill tiles up
    if frame_size(data) != size or HOLE in data:
        return False
    at = sum(len(segment) for _, segment in header_segments(data)) + len(SOI)
    while (end := DATA_END.search(data, at)) is not None:
        at = end.start()
        if data[at : at + 2] == EOI:
            return True
        if data[at + 1] not in BETWEEN_SCANS:
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


class StreamColour(NamedTuple):
    """The colour space of a stream with three components, as its own header shows it.

    stated: by Adobe's marker, by components that are named R, G, B, or by a colour transform that the JPEG 2000 decoder
    inverts.  suggested: YCBCR if a JFIF header is there, or if the second or third component is subsampled.  Either is
    None without such a sign.
    """

    stated: str | None
    suggested: str | None


def decide_colorspace(tag: str, streams: Sequence[bytes], tables: bytes | None) -> str:
    """Return the colour space of the JPEG streams of a level: RGB or YCBCR. It is decided here and nowhere else.

    tag: colour space that the file states.  streams: a sample of the level's tiles.  The evidence counts in this order:
    what the pixels of the streams show; what their headers state; what the headers suggest; the tag. Writers often keep
    the tag of the pixels that they compressed (libvips from quality 90 on), or of the file that they copied, and
    markers of a picture from which the tiles were cut.
    """
    signs = {stream: sign for stream in streams if (sign := read_stream_colour(stream)) is not None}
    stated = {sign.stated for sign in signs.values()}
    header = next(iter(stated)) if len(stated) == 1 else None
    shown = shown_colorspace(header or tag, (_raw_components(stream, tables) for stream in signs))
    return shown or header or next((sign.suggested for sign in signs.values() if sign.suggested), tag)


def read_stream_colour(stream: bytes) -> StreamColour | None:
    """Return the signs of the colour space in a stream's header; None for a stream without three components.

    Source: JFIF 1.02; Adobe technical note 5116 (APP14); libjpeg takes components named R, G, B for RGB.
    """
    if not stream.startswith(SOI):
        return _read_j2k_colour(stream)
    adobe, jfif, frame = None, False, b""
    for kind, segment in header_segments(stream):
        if kind == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16:
            adobe = {0: RGB, 1: YCBCR}.get(segment[15])
        elif kind == JFIF[1] and segment[4:9] == JFIF_NAME:
            jfif = True
        elif kind in FRAME_MARKERS:
            frame = segment
    if len(frame) != 19:
        return None
    stated = adobe or (RGB if frame[10::3] == b"RGB" else None)
    subsampled = len(set(frame[11::3])) > 1
    return StreamColour(None if jfif and stated == RGB else stated, YCBCR if jfif or subsampled else None)


def _read_j2k_colour(stream: bytes) -> StreamColour | None:
    """Return the signs in a JPEG 2000 stream. Source: ISO/IEC 15444-1, A.5.1 (SIZ) and A.6.1 (COD)."""
    start = stream.find(J2K_START)
    if start < 0 or stream[start + 40 : start + 42] != b"\0\3":
        return None
    subsampled = len({stream[start + at : start + at + 2] for at in (43, 46, 49)}) > 1
    at = start + 2
    while stream[at : at + 1] == b"\xff" and stream[at + 1 : at + 2] not in (b"\x52", b"\x90", b""):
        at += 2 + int.from_bytes(stream[at + 2 : at + 4])
    transformed = stream[at : at + 2] == b"\xff\x52" and stream[at + 8 : at + 9] == b"\1"
    return StreamColour(RGB if transformed else None, YCBCR if subsampled else None)


def shown_colorspace(tag: str, pictures: Iterable[NDArray[np.uint8] | None]) -> str | None:
    """Return the colour space that the pixels of brightfield tiles show: RGB or YCBCR; None when they show neither.

    tag: colour space that is assumed.  pictures: components as stored, (h, w, 3) uint8 each; None is skipped.
    The empty background is bright and neutral in one of the two only. Without background, stained tissue shows it: Cb
    and Cr stay close to 128, and green and blue follow red.
    """
    other = YCBCR if tag == RGB else RGB
    found, sample = False, []
    for picture in pictures:
        if picture is None:
            continue
        if _background_share(picture, tag) > NO_BACKGROUND:
            return tag
        found |= _background_share(picture, other) >= MUCH_BACKGROUND
        sample.append(picture.reshape(-1, 3))
    if found:
        return other
    return _tissue_colorspace(np.concatenate(sample)) if sample else None


def _tissue_colorspace(pixels: NDArray[np.uint8]) -> str | None:
    """Return the colour space that stained tissue without background shows: (n, 3) uint8 components as stored."""
    spread = pixels.std(axis=0)
    if spread[0] < MIN_CONTRAST:
        return None
    near_grey = (np.abs(pixels[:, 1:].astype(np.int16) - 128) <= MAX_CHROMA).all(axis=1)
    if spread[1:].max() < WEAK_CHANNEL * spread[0] and near_grey.mean() >= MIN_CHROMA_SHARE:
        return YCBCR
    if spread[1:].min() < STRONG_CHANNEL * spread[0]:
        return None
    correlation = np.asarray(np.corrcoef(pixels.T))
    return RGB if min(correlation[0, 1], correlation[1, 2]) >= MIN_CORRELATION else None


def _background_share(components: NDArray[np.uint8], colorspace: str) -> float:
    """Return the share of bright, neutral px (background) of components (h, w, 3) in a colour space."""
    pixels = components if colorspace == RGB else ycbcr_to_rgb(components)
    darkest, brightest = pixels.min(axis=2), pixels.max(axis=2)
    return float(((darkest >= BRIGHT_GREY) & (brightest - darkest <= NEUTRAL_SPREAD)).mean())


def _raw_components(stream: bytes, tables: bytes | None) -> NDArray[np.uint8] | None:
    """Return every second px of a tile, (h, w, 3) uint8 components as stored; None when it cannot be decoded."""
    try:
        if not stream.startswith(SOI):
            size = codestream_size(stream)
            small = size is not None and max(size) <= 2 * DECODED_EDGE
            pixels = decode_jpeg2000(stream)[::2, ::2, :3] if small else None
            return pixels if pixels is not None and pixels.dtype == np.uint8 else None
        size = frame_size(stream)
        shrink = 8 if size is not None and max(size) > DECODED_EDGE else 1
        return decode_jpeg(stream, tables, RGB, shrink=shrink)[::2, ::2]
    except (ValueError, RuntimeError):  # imagecodecs.Jpeg2kError is a RuntimeError
        return None


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range YCbCr (ITU-R BT.601, as in JFIF) to RGB: (h, w, 3) uint8."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB), np.uint8)
