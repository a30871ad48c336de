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


def test_a_stream_with_whole_scans_is_sound(rgb: np.ndarray) -> None:
    for progressive in (0, 1):
        data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
        assert jpeg.is_sound(data, (32, 48))
        assert jpeg.is_sound(data + bytes(100), (32, 48))  # filled up
        assert not jpeg.is_sound(data, (48, 32))
        scan = data.index(jpeg.SOS) + 40
        for harmed in (data[:-2], data[:scan], b"", bytes(len(data)), data[:scan] + b"\xff\x3f" + data[scan + 2 :]):
            assert not jpeg.is_sound(harmed, (32, 48))
        assert not jpeg.is_sound(data[:scan] + bytes(jpeg.HOLE_BYTES) + data[scan:], (32, 48))


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


# -- colour space ------------------------------------------------------------------------------------------------

JFIF_HEADER = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
COMMENT = b"\xff\xfe\x00\x06test"


def encode_components(components: np.ndarray, subsampling: str, header: bytes = b"", names: bytes = b"\1\2\3") -> bytes:
    """Encode components as they are, (h, w, 3) uint8, with this header after the start marker and these names."""
    encoded = imagecodecs.jpeg8_encode(
        components, 90, colorspace="YCBCR", outcolorspace="YCBCR", subsampling=subsampling
    )  # fmt: skip
    at = 4 + int.from_bytes(encoded[4:6])
    stream = bytearray(encoded[:2] + header + encoded[at:])
    frame, scan = stream.index(b"\xff\xc0"), stream.index(b"\xff\xda")
    for k in range(3):
        stream[frame + 10 + 3 * k] = stream[scan + 5 + 2 * k] = names[k]
    return bytes(stream)


def adobe(transform: int) -> bytes:
    return jpeg.RGB_MARKER[:-1] + bytes([transform])


def stain_tile(brown: float, white: int, glass: float, seed: int = 0) -> np.ndarray:
    """Return tissue with nuclei and brown membranes, (128, 128, 3) uint8, of which a share is glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128]
    nuclei = np.exp(-(((x % 32 - 16) ** 2 + (y % 32 - 16) ** 2) / 90))
    rims = np.exp(-((np.minimum(x % 32, y % 32) / 2.0) ** 2))
    od = (0.08 + 0.6 * nuclei)[..., None] * np.array([0.65, 0.704, 0.286])
    od = od + (brown * rims)[..., None] * np.array([0.269, 0.568, 0.778])
    od[:, : round(128 * glass)] = 0
    return np.clip(white * 10**-od + rng.normal(0, 1.5, (128, 128, 1)), 0, 255).astype(np.uint8)


PICTURES = {
    "glass and tissue": (0.6, 243, 0.3), "tissue alone, 3+": (1.3, 243, 0.0), "tissue alone, 0": (0.0, 243, 0.0),
    "glass alone": (0.0, 243, 1.0), "dark glass": (0.6, 180, 0.3), "dark tissue": (0.9, 170, 0.0),
}  # fmt: skip

HEADERS = {
    "bare": b"", "jfif": JFIF_HEADER, "jfif after a comment": COMMENT + JFIF_HEADER,
    "jfif and adobe rgb": JFIF_HEADER + adobe(0), "adobe rgb": adobe(0), "adobe ycbcr": adobe(1),
}  # fmt: skip


def as_stored(rgb: np.ndarray, colorspace: str) -> np.ndarray:
    """Return the components of a picture in a colour space, (h, w, 3) uint8."""
    return rgb if colorspace == "RGB" else cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]].copy()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("truth", ["RGB", "YCBCR"])
def test_pixels_decide_where_tag_and_header_are_wrong(picture: str, truth: str) -> None:
    components = as_stored(stain_tile(*PICTURES[picture]), truth)
    for tag in ("RGB", "YCBCR"):
        for name, header in HEADERS.items():
            for subsampling, names in (("444", b"\1\2\3"), ("444", b"\0\1\2"), ("420", b"\1\2\3"), ("422", b"RGB")):
                stream = encode_components(components, subsampling, header, names)
                decided = jpeg.decide_colorspace(tag, [stream], None)
                assert decided == truth, (tag, name, subsampling)
                pixels = jpeg.decode_jpeg(stream, None, decided).astype(int)
                assert np.abs(pixels - stain_tile(*PICTURES[picture])).mean() < 8, (tag, name, subsampling)


@pytest.mark.parametrize("truth", ["RGB", "YCBCR"])
def test_wrong_marker_among_the_tables_changes_no_colours(truth: str) -> None:
    stream = encode_components(as_stored(stain_tile(0.6, 243, 0.3), truth), "444")
    tables = jpeg.SOI + adobe(1 if truth == "RGB" else 0) + jpeg.EOI
    assert jpeg.decide_colorspace("RGB", [stream], tables) == truth
    pixels = jpeg.decode_jpeg(stream, tables, truth).astype(int)
    assert np.abs(pixels - stain_tile(0.6, 243, 0.3)).mean() < 8


@pytest.mark.parametrize("tag", ["RGB", "YCBCR"])
@pytest.mark.parametrize(
    ("header", "names", "truth"), [(adobe(0), b"\1\2\3", "RGB"), (adobe(1), b"\1\2\3", "YCBCR"), (b"", b"RGB", "RGB")]
)
def test_stream_that_states_its_colour_space_is_believed(tag: str, header: bytes, names: bytes, truth: str) -> None:
    noise = np.random.default_rng(0).integers(40, 180, (16, 16, 3), np.uint8)
    assert jpeg.decide_colorspace(tag, [encode_components(noise, "444", header, names)], None) == truth


def test_header_suggests_ycbcr_where_the_pixels_show_nothing() -> None:
    noise = np.random.default_rng(0).integers(40, 180, (16, 16, 3), np.uint8)
    assert jpeg.decide_colorspace("RGB", [encode_components(noise, "444")], None) == "RGB"
    for subsampling, header in (("444", JFIF_HEADER), ("422", b""), ("420", b"")):
        assert jpeg.decide_colorspace("RGB", [encode_components(noise, subsampling, header)], None) == "YCBCR"


def test_tag_is_kept_without_a_stream_of_three_components() -> None:
    grey = imagecodecs.jpeg8_encode(np.full((16, 16), 240, np.uint8), 90)
    for tag in ("RGB", "YCBCR"):
        assert jpeg.decide_colorspace(tag, [], None) == tag
        assert jpeg.decide_colorspace(tag, [grey, b"", b"\xff\xd8\xff"], None) == tag
    ycbcr = encode_components(as_stored(stain_tile(0.6, 243, 0.3), "YCBCR"), "444")
    assert jpeg.decide_colorspace("RGB", [grey, ycbcr], None) == "YCBCR"


@pytest.mark.parametrize("truth", ["RGB", "YCBCR"])
@pytest.mark.parametrize("transform", [False, True])
def test_colour_space_of_jpeg_2000_is_decided_alike(truth: str, transform: bool) -> None:
    components = as_stored(stain_tile(0.6, 243, 0.3), "RGB" if transform else truth)
    stream = imagecodecs.jpeg2k_encode(components, level=0, codecformat="j2k", mct=transform, reversible=True)
    for tag in ("RGB", "YCBCR"):
        decided = jpeg.decide_colorspace(tag, [stream], None)
        assert decided == ("RGB" if transform else truth)
        pixels = jpeg.decode_jpeg2000(stream, decided).astype(int)
        assert np.abs(pixels - stain_tile(0.6, 243, 0.3)).max() <= 3


def test_real_cores_show_their_colour_space_with_and_without_background(real_data: Path) -> None:
    for core in sorted((real_data / "her2_cores").glob("*.jpg")):
        rgb = cv2.cvtColor(cv2.imread(str(core), cv2.IMREAD_REDUCED_COLOR_8), cv2.COLOR_BGR2RGB)
        middle = rgb[170:330, 170:330]
        for picture in (rgb, middle):
            for tag in ("RGB", "YCBCR"):
                assert jpeg.shown_colorspace(tag, [as_stored(picture, "YCBCR")]) == "YCBCR", core.name
                assert jpeg.shown_colorspace(tag, [picture]) == "RGB", core.name
