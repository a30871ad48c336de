"""Pictures as tiled slides: JPEG streams are copied where they can be, everything else keeps its pixels."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile

from her2batch.errors import InputError
from her2batch.exchange.adopt.pictures import MAX_COPIED_EDGE, EncodedPicture, encode_picture, write_tiff
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
from tests.exchange.adopt.sets import picture

SIZES = [(96, 80), (101, 67), (64, 64), (17, 33), (512, 48)]


def round_trip(tmp_path: Path, data: bytes, mpp: float = 0.25) -> tuple[EncodedPicture, np.ndarray]:
    """Write a picture as a slide and read it back: how it was encoded, and the pixels of the slide."""
    encoded = encode_picture(Path("picture"), data)
    write_tiff(tmp_path / "slide.tiff", encoded, mpp)
    with open_slide(tmp_path / "slide.tiff", "tiff") as slide:
        slide.validate()
        assert slide.info.mpp == pytest.approx(mpp)
        assert slide.info.mpp_source == "file"
        return encoded, slide.read(Box(0, 0, slide.info.width, slide.info.height))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_jpeg_is_copied_where_its_blocks_fit_a_tile(tmp_path: Path, size: tuple[int, int], subsampling: str) -> None:
    data = simplejpeg.encode_jpeg(picture(3, size), quality=80, colorsubsampling=subsampling)
    encoded, pixels = round_trip(tmp_path, data)
    expected = simplejpeg.decode_jpeg(data, "RGB")
    if encoded.how == "copied":
        assert np.array_equal(pixels, expected)
    else:
        assert np.abs(pixels.astype(int) - expected).mean() < 2
    assert (encoded.how == "copied") == all(
        -(-edge // block) * block % 16 == 0
        for edge, block in zip(size, {"420": (16, 16), "422": (16, 8), "444": (8, 8)}[subsampling], strict=True)
    )


@pytest.mark.parametrize("size", SIZES)
def test_png_keeps_every_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    rgb = picture(4, size)
    data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    encoded, pixels = round_trip(tmp_path, data, 0.46)
    assert encoded.how == "lossless"
    assert np.array_equal(pixels, rgb)


def exif(orientation: int) -> bytes:
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<HHI", orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def test_names_in_metadata_of_a_jpeg_are_not_copied(tmp_path: Path) -> None:
    data = simplejpeg.encode_jpeg(picture(1, (64, 64)), quality=80)
    comment = b"\xff\xfe" + struct.pack(">H", 10) + b"Jane Doe"
    encoded, _ = round_trip(tmp_path, data[:2] + comment + data[2:])
    assert encoded.how == "copied"
    assert b"Jane Doe" not in (tmp_path / "slide.tiff").read_bytes()


def test_picture_that_exif_turns_is_turned(tmp_path: Path) -> None:
    rgb = picture(1, (96, 64))
    data = simplejpeg.encode_jpeg(rgb, quality=95, colorsubsampling="444")
    encoded, pixels = round_trip(tmp_path, data[:2] + exif(6) + data[2:])
    assert encoded.how == "jpeg-95"
    assert np.abs(pixels.astype(int) - np.rot90(rgb, -1)).mean() < 3


def test_other_jpegs_are_encoded_once_more(tmp_path: Path) -> None:
    rgb = picture(2, (600, 530))
    progressive = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1]
    grey = cv2.imencode(".jpg", rgb[..., 0])[1]
    for data, expected in ((progressive, rgb), (grey, np.repeat(rgb[..., :1], 3, axis=2))):
        encoded, pixels = round_trip(tmp_path, data.tobytes())
        assert encoded.how == "jpeg-95"
        assert pixels.shape == rgb.shape
        assert np.abs(pixels.astype(int) - expected).mean() < 4
    with tifffile.TiffFile(tmp_path / "slide.tiff") as tiff:
        assert tiff.pages[0].tile == (512, 512)


def test_large_jpeg_is_cut_into_tiles() -> None:
    data = simplejpeg.encode_jpeg(np.full((16, MAX_COPIED_EDGE + 16, 3), 200, np.uint8), quality=80)
    assert encode_picture(Path("a.jpg"), data).how == "jpeg-95"


def test_transparent_and_deep_pictures(tmp_path: Path) -> None:
    rgba = np.dstack([picture(5, (64, 64)), np.full((64, 64), 255, np.uint8)])
    rgba[:32, :, 3] = 0
    _, pixels = round_trip(tmp_path, cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1].tobytes())
    assert (pixels[:32] == 255).all()
    assert np.array_equal(pixels[32:], rgba[32:, :, :3])
    deep = picture(5, (64, 64)).astype(np.uint16) * 257
    _, pixels = round_trip(tmp_path, cv2.imencode(".png", cv2.cvtColor(deep, cv2.COLOR_RGB2BGR))[1].tobytes())
    assert np.array_equal(pixels, picture(5, (64, 64)))


def damaged_files() -> dict[str, bytes]:
    jpeg = simplejpeg.encode_jpeg(picture(1, (96, 80)), quality=80)
    png = cv2.imencode(".png", picture(1, (96, 80)))[1].tobytes()
    huge = png[:16] + struct.pack(">II", 100_000, 100_000) + png[24:]
    return {"empty": b"", "text": b"hello", "cut": jpeg[: len(jpeg) // 2], "head": jpeg[:20], "huge": huge}


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_picture_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(InputError, match=r"case\.jpg"):
        encode_picture(Path("case.jpg"), damaged_files()[name])
