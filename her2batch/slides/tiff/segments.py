"""Compressed segments (tiles and strips) of a TIFF that are not JPEG: their compressions, sizes and samples."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

COMPRESSIONS: Final = {
    1: "raw", 5: "lzw", 7: "jpeg", 8: "deflate", 32773: "packbits", 32946: "deflate", 33003: "jpeg2000",
    33004: "jpeg2000", 33005: "jpeg2000", 34712: "jpeg2000", 34887: "lerc", 34925: "lzma", 34926: "zstd",
    34927: "webp", 34934: "jpegxr", 50000: "zstd", 50001: "webp", 50002: "jpegxl", 52546: "jpegxl",
}  # fmt: skip
"""Value of the tag Compression → name, of those that are read."""

PICTURE_CODECS: Final = frozenset({"jpeg", "jpeg2000", "webp", "jpegxr", "jpegxl"})
"""Compressions whose streams have a colour space of their own, so that YCbCr is no property of the samples."""

_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "webp": imagecodecs.webp_decode, "jpegxr": imagecodecs.jpegxr_decode, "jpegxl": imagecodecs.jpegxl_decode,
}  # fmt: skip

_LIBTIFF_ONLY: Final = frozenset({2, 3, 4, 6, 32809, 32908, 32909, 34661, 34676, 34677})
"""Compressions that libtiff, and with it libvips, reads."""

CONVERT_WITH_TIFFFILE: Final = (
    "python -c \"import tifffile as t; p = t.TiffFile('IN.tif').pages[0]; "
    "t.imwrite('OUT.tif', p.asarray(), bigtiff=True, tile=(256, 256), photometric='rgb', compression='deflate', "
    "resolution=p.get_resolution('centimeter'), resolutionunit='centimeter', metadata=None, "
    'description=str(p.description))"'
)
"""Command that rewrites the first page of a TIFF with lossless compression and keeps its resolution."""

CONVERT_WITH_VIPS: Final = "vips tiffsave IN.tif OUT.tif --tile --pyramid --bigtiff --compression jpeg --Q 90"

COMMON_BITS: Final = (8, 10, 12, 14, 16)
"""Bits that cameras of scanners have. Files state 16 where each sample takes two bytes."""

BIT_DEPTH_ASSUMED: Final = "bit-depth-assumed"
"""Flag of a slide of 16-bit samples, none of which reaches the upper part of the range."""


def compression_remedy(code: int) -> tuple[str, str]:
    """Return what is wrong with a compression that is not read, with its name and number, and how to convert a file."""
    try:
        compression = tifffile.COMPRESSION(code)
    except ValueError:
        remedy = "export the slide again with JPEG compression, or try: bfconvert -compression JPEG IN.tif OUT.ome.tif"
        return f"its compression {code} is not known", remedy
    what = f"its compression {code} ({compression.name}) is not supported"
    if code in _LIBTIFF_ONLY:
        return what, f"convert it: {CONVERT_WITH_VIPS}"
    if _decodes(code):
        return what, f"convert it: {CONVERT_WITH_TIFFFILE}"
    return what, "export the slide again with JPEG compression"


def _decodes(code: int) -> bool:
    try:
        return tifffile.TIFF.DECOMPRESSORS[code] is not None
    except KeyError:
        return False


class Samples(NamedTuple):
    """The samples of a page.

    bits: 8 or 16.  maximum: the value of white, if the file states it.  alpha: `associated` (colours are multiplied by
    it), `unassociated`, or None: a fourth sample is not alpha, or there is none.
    """

    bits: int = 8
    maximum: int | None = None
    alpha: str | None = None


def page_samples(page: Any) -> Samples:
    """Return the samples of a page. Source: TIFF 6.0, tags MaxSampleValue (281) and ExtraSamples (338)."""
    bits = 16 if page.dtype == np.uint16 else 8
    stated = np.atleast_1d(page.tags.valueof(281, 0)).max()
    extra = np.atleast_1d(page.tags.valueof(338, 0))
    has_alpha = page.samplesperpixel == 4 and len(extra) == 1
    alpha = {1: "associated", 2: "unassociated"}.get(int(extra[0])) if has_alpha else None
    return Samples(bits, int(stated) if 255 <= stated < 65535 and bits == 16 else None, alpha)


@dataclass(frozen=True)
class Conversion:
    """How the samples of a slide become 8-bit RGB.

    maximum: value of white, 255 for 8 bits. It becomes 255, other values in proportion, rounded.  alpha: see Samples;
    None if every sampled px is transparent, because then the file states no alpha.  white: R, G, B of the slide's own
    background, on which transparent px are composed.
    """

    maximum: int = 255
    alpha: str | None = None
    white: tuple[int, int, int] = (255, 255, 255)

    def to_rgb(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Convert (h, w, n) uint8 or uint16 to (h, w, 3) uint8; (h, w, 1), a single colour, to (h, w, 1)."""
        values = np.asarray(self._scale[pixels] if pixels.dtype == np.uint16 else pixels, np.uint8)
        if self.alpha is None or values.ndim != 3 or values.shape[2] < 4:
            return np.asarray(values[..., :3], np.uint8)
        opacity = values[..., 3:4].astype(np.uint32)
        colours = values[..., :3].astype(np.uint32) * (255 if self.alpha == "associated" else opacity)
        composed = (colours + np.array(self.white, np.uint32) * (255 - opacity) + 127) // 255
        return np.asarray(np.minimum(composed, 255), np.uint8)

    @cached_property
    def _scale(self) -> NDArray[np.uint8]:
        stored = np.arange(65536, dtype=np.float64)
        return np.asarray(np.minimum(np.floor(stored * 255 / self.maximum + 0.5), 255), np.uint8)


def fit_conversion(samples: Samples, tiles: list[NDArray[Any]]) -> tuple[Conversion, tuple[str, ...]]:
    """Return how samples become 8-bit RGB, and a note if that is an assumption.

    tiles: some tiles of the slide as stored, (h, w, n). Samples of 16 bits have the range that the file states. Without
    a statement it is the smallest of COMMON_BITS that holds all of them: glass is bright, and a camera of 12 bits whose
    values are taken for 16 bits would give black slides.
    """
    maximum, notes = 255, tuple[str, ...]()
    if samples.bits == 16:
        largest = max((int(tile.max()) for tile in tiles), default=65535)
        maximum = samples.maximum or next(2**bits - 1 for bits in COMMON_BITS if largest < 2**bits)
        notes = (BIT_DEPTH_ASSUMED,) if samples.maximum is None and maximum < 65535 else ()
    scaled = [Conversion(maximum).to_rgb(tile[..., :3]) for tile in tiles]
    alphas = [tile[..., 3] for tile in tiles if tile.ndim == 3 and tile.shape[2] >= 4]
    if samples.alpha is None or not any(alpha.any() for alpha in alphas):
        return Conversion(maximum), notes
    pairs = zip([tile for tile in scaled if tile.ndim == 3], alphas, strict=False)
    opaque = np.concatenate([colours[alpha == alpha.max()] for colours, alpha in pairs if alpha.any()])
    grey = opaque.min(axis=1)
    bright = opaque[grey >= np.percentile(grey, 75)]
    r, g, b = np.median(bright, axis=0).astype(int).tolist() if grey.max() >= 200 else (255, 255, 255)
    return Conversion(maximum, samples.alpha, (r, g, b)), notes


SegmentDecoder = Callable[[bytes, int], NDArray[Any]]
"""Function from a segment and its number to its samples: (h, w, n) uint8 or uint16."""


def segment_decoder(page: Any, compression: str, tile: tuple[int, int]) -> SegmentDecoder:
    """Return the decoder of a page's segments.  tile: width and height of a whole one.

    A stream that states a larger size is refused before memory is allocated for it. The decoder raises ValueError and
    the errors of imagecodecs and tifffile.
    """

    def decode(data: bytes, index: int) -> NDArray[Any]:
        _check_size(compression, data, tile)
        if compression in _DECODERS:
            pixels = np.asarray(_DECODERS[compression](data))
        else:
            decoded = page.decode(data, index)[0]
            if decoded is None:
                raise ValueError("the segment is empty")
            pixels = np.asarray(decoded[0])
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"its samples are of type {pixels.dtype}")
        return pixels

    return decode


def _check_size(compression: str, data: bytes, tile: tuple[int, int]) -> None:
    """Refuse a stream that is larger than its tile, or does not state its size. Raises ValueError."""
    read = {"webp": _webp_size, "jpegxr": _jpegxr_size, "jpegxl": _jpegxl_size, "lerc": _lerc_size}.get(compression)
    if read is None:  # the decoder is given the number of bytes
        return
    try:
        size = read(data)
    except (struct.error, IndexError):
        size = None
    if size is None:
        raise ValueError(f"the {compression} stream has no valid header: it is corrupt")
    if size[0] > tile[0] or size[1] > tile[1]:
        raise ValueError(f"the stream has {size[0]} × {size[1]} px, more than its tile of {tile[0]} × {tile[1]} px")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height. Source: RFC 9649 (container), RFC 6386 (VP8)."""
    kind = data[12:16]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return (width & 0x3FFF, height & 0x3FFF) if kind == b"VP8 " else None


def _jpegxr_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height. Source: ITU-T T.832, annex A (container)."""
    if data[:3] != b"II\xbc":
        return None
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    found = {}
    for entry in range(min(count, 100)):
        tag, kind, _, value = struct.unpack_from("<HHII", data, start + 2 + 12 * entry)
        found[tag] = value & 0xFFFF if kind == 3 else value
    return (found[0xBC80], found[0xBC81]) if {0xBC80, 0xBC81} <= found.keys() else None


def _lerc_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height. Source: header of Lerc2."""
    if data[:6] != b"Lerc2 ":
        return None
    (version,) = struct.unpack_from("<i", data, 6)
    height, width = struct.unpack_from("<ii", data, 14 if version >= 3 else 10)
    return (width, height) if min(width, height) > 0 else None


def _jpegxl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height. Source: ISO/IEC 18181-1, SizeHeader; the bits of each byte are read from the lowest."""
    if data[4:8] == b"JXL ":
        at = data.find(b"jxlc", 0, 4096)
        data = data[at + 4 :] if at > 0 else data[data.find(b"jxlp", 0, 4096) + 8 :]
    if data[:2] != b"\xff\x0a" or len(data) < 12:
        return None
    bits, at = int.from_bytes(data[2:16], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> at - count & (1 << count) - 1

    def edge(small: int) -> int:
        return 8 * (take(5) + 1) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = edge(small)
    ratio = take(3)
    over, under = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return (height * over // under if ratio else edge(small)), height
