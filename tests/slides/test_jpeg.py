"""JPEG and JPEG 2000 streams of slides."""

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile

from her2batch.slides import jpeg
from her2batch.slides.tiff_slide import TiledTiffSlide


@pytest.fixture
def rgb() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), (48, 32), interpolation=cv2.INTER_CUBIC)


def test_plain_stream_decodes_as_by_libjpeg_turbo(rgb: np.ndarray) -> None:
    data = simplejpeg.encode_jpeg(rgb, 90, "RGB", "420")
    assert np.array_equal(jpeg.decode_jpeg(data), simplejpeg.decode_jpeg(data))
    assert jpeg.frame_size(data) == (32, 48)
    assert jpeg.has_end_marker(data)


def test_pixels_are_decoded_into_the_buffer(rgb: np.ndarray) -> None:
    data = simplejpeg.encode_jpeg(rgb)
    buffer = np.zeros(32 * 48 * 3 + 100, np.uint8)
    pixels = jpeg.decode_jpeg(data, buffer=buffer)
    assert np.shares_memory(pixels, buffer)
    assert np.array_equal(pixels, jpeg.decode_jpeg(data))


def test_too_small_buffer_is_refused(rgb: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"(?i)buffer|small|size"):
        jpeg.decode_jpeg(simplejpeg.encode_jpeg(rgb), buffer=np.zeros(100, np.uint8))


def test_abbreviated_stream_needs_the_tables_of_the_slide(real_data: Path) -> None:
    with TiledTiffSlide(real_data / "slides/CMU-1-Small-Region.svs") as slide:
        data, tables = slide.raw_tile(0, 0), slide.table(0).jpeg_tables
    assert tables is not None
    assert jpeg.decode_jpeg(data, tables, "RGB").shape == (240, 240, 3)
    with pytest.raises(ValueError, match=r"."):
        jpeg.decode_jpeg(data)


def test_aperio_rgb_without_marker_stays_rgb(real_data: Path) -> None:
    path = real_data / "slides/CMU-1-Small-Region.svs"
    with TiledTiffSlide(path) as slide:
        data, tables = slide.raw_tile(0, 50), slide.table(0).jpeg_tables
    expected = tifffile.imread(path, key=0)[5 * 240 : 6 * 240, 0:240]  # 10 tiles in each row
    assert b"Adobe" not in data + (tables or b"")
    assert np.array_equal(jpeg.decode_jpeg(data, tables, "RGB"), expected)
    assert np.abs(jpeg.decode_jpeg(data, tables, "YCBCR").astype(int) - expected).mean() > 20


def test_jfif_header_does_not_turn_rgb_into_ycbcr(rgb: np.ndarray) -> None:
    bare = imagecodecs.jpeg8_encode(rgb, 95, colorspace="RGB", outcolorspace="RGB").replace(jpeg.RGB_MARKER, b"")
    jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    assert np.array_equal(
        jpeg.decode_jpeg(bare[:2] + jfif + bare[2:], None, "RGB"), jpeg.decode_jpeg(bare, None, "RGB")
    )  # fmt: skip


def test_warnings_of_libjpeg_are_errors(rgb: np.ndarray) -> None:
    data = simplejpeg.encode_jpeg(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
    middle = len(data) // 2
    for broken in (data[:middle], data[:middle] + bytes(64) + data[middle + 64 :]):
        with pytest.raises(ValueError, match=r"."):
            jpeg.decode_jpeg(broken)


def test_frame_size_is_none_without_a_frame_header() -> None:
    assert jpeg.frame_size(b"") is None
    assert jpeg.frame_size(bytes(100)) is None
    assert jpeg.frame_size(b"\xff\xd8\xff\xdb\x00\x43" + bytes(20)) is None
    assert jpeg.frame_size(b"\xff\xd8\xff\xc0\x00\x11\x08\x01\x00\x02\x00") == (256, 512)


def test_codestream_size_of_j2k_and_jp2(rgb: np.ndarray) -> None:
    stream = imagecodecs.jpeg2k_encode(rgb, codecformat="j2k")
    boxed = imagecodecs.jpeg2k_encode(rgb, codecformat="jp2")
    assert jpeg.codestream_size(stream) == (32, 48)
    assert jpeg.codestream_size(boxed) == (32, 48)
    assert jpeg.codestream_size(stream[:20]) is None
    assert jpeg.codestream_size(simplejpeg.encode_jpeg(rgb)) is None
    assert jpeg.has_end_marker(stream)


def test_only_zeros_may_follow_the_end_marker() -> None:
    assert jpeg.has_end_marker(b"\x12\xff\xd9")
    assert jpeg.has_end_marker(b"\x12\xff\xd9\0\0\0")
    assert not jpeg.has_end_marker(b"\x12\xff\xd9\x01")
    assert not jpeg.has_end_marker(bytes(16))


def segment(kind: int, text: bytes) -> bytes:
    return bytes((0xFF, kind)) + (2 + len(text)).to_bytes(2) + text


@pytest.mark.parametrize("progressive", [0, 1])
def test_blanked_stream_has_no_metadata_and_the_same_pixels(rgb: np.ndarray, progressive: int) -> None:
    data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    said = [segment(0xFE, b"Jane Doe \xff\xda \xff\xd9 Jane Doe"), segment(0xE1, b"Exif\0\0Jane Doe"),
            segment(0xE0, b"JFXX\0Jane Doe"), segment(0xEE, b"Adobe\0\x64\0\0\0\0\1Jane Doe"), b"\xff"]  # fmt: skip
    scan = data.rindex(jpeg.SOS)  # the last one of a progressive JPEG
    loud = data[:2] + b"".join(said) + data[2:scan] + segment(0xFE, b"Jane Doe") + data[scan:] + b"Jane Doe\xff\xd9"
    quiet = jpeg.blank_metadata(loud)
    assert b"Jane" not in quiet
    assert len(quiet) == len(loud)
    assert b"JFIF" in quiet
    assert b"Adobe" in quiet
    assert np.array_equal(jpeg.decode_jpeg(quiet), jpeg.decode_jpeg(data))
    assert jpeg.blank_metadata(quiet) == quiet
    late = data[:scan] + segment(0xFE, b"Jane Doe") + data[scan:-2] + segment(0xFE, b"Jane Doe") + jpeg.EOI
    assert b"Jane" not in jpeg.blank_metadata(late)


def test_stream_without_metadata_is_unchanged(rgb: np.ndarray, real_data: Path) -> None:
    for data in (simplejpeg.encode_jpeg(rgb), cv2.imencode(".jpg", rgb)[1].tobytes()):
        assert jpeg.blank_metadata(data) is data
    with TiledTiffSlide(real_data / "slides/CMU-1-Small-Region.svs") as slide:
        data, tables = slide.raw_tile(0, 0), slide.table(0).jpeg_tables
    assert tables is not None
    assert jpeg.blank_metadata(data) == data
    assert jpeg.blank_metadata(tables) == tables
    assert jpeg.blank_metadata(data + b"\0\0") == data + b"\0\0"  # padding


def test_stream_with_bytes_between_segments_is_refused(rgb: np.ndarray) -> None:
    data = simplejpeg.encode_jpeg(rgb)
    with pytest.raises(ValueError, match="between its segments"):
        jpeg.blank_metadata(data[:2] + b"Jane" + data[2:])
