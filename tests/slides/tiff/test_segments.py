"""Segments that are not JPEG: every compression that imagecodecs decodes, 16-bit samples, transparency, bounds."""

import subprocess
import sys
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from her2batch.errors import SlideError
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
from her2batch.slides.tiff.segments import (
    BIT_DEPTH_ASSUMED,
    CONVERT_WITH_VIPS,
    Conversion,
    Samples,
    compression_remedy,
    fit_conversion,
    segment_decoder,
)
from her2batch.slides.tiff_slide import TiledTiffSlide
from tests.conftest import tissue_image

CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "metadata": None}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return tissue_image(300, 260, seed=4, brown=0.6)


def read_all(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    with TiledTiffSlide(path) as slide:
        slide.validate()
        return slide.read(Box(0, 0, slide.info.width, slide.info.height)), slide.info.notes


@pytest.mark.parametrize("photometric", [2, 6])
@pytest.mark.parametrize("tile", [(128, 128), (96, 64), None])
@pytest.mark.parametrize("compression", ["jpegxl", "jpegxr", "webp", "lerc", "zstd", "lzma", "packbits", "deflate"])
def test_compressions_of_imagecodecs_are_read(
    tmp_path: Path, image: np.ndarray, compression: str, tile: tuple[int, int] | None, photometric: int
) -> None:
    path = tmp_path / "a.tif"
    lossless = {"webp": {"level": 100, "lossless": True}, "jpegxl": {"lossless": True}}.get(compression, {})
    shape = {"tile": tile} if tile else {"rowsperstrip": 64}
    tifffile.imwrite(
        path, image, photometric="rgb", compression=compression, compressionargs=lossless, **CM, **shape
    )  # fmt: skip
    if photometric == 6:  # streams that are pictures have a colour space of their own
        if compression not in ("jpegxl", "jpegxr", "webp"):
            return
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    pixels, notes = read_all(path)
    assert notes == ()
    assert np.abs(pixels.astype(int) - image).max() <= 2


@pytest.mark.parametrize("compression", ["png", 34677, 32908, 65432])
def test_other_compressions_are_named_with_a_way_to_convert(
    tmp_path: Path, image: np.ndarray, compression: str | int
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image, photometric="rgb", tile=(128, 128), compression="png" if compression == "png" else "zlib", **CM
    )
    if isinstance(compression, int):
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["Compression"].overwrite(compression)
    with pytest.raises(SlideError) as refused:
        open_slide(path)
    assert refused.value.code == "unreadable"
    name = {"png": "34933 (PNG)", 34677: "34677 (SGILOG24)", 32908: "32908 (PIXARFILM)", 65432: "compression 65432"}
    assert name[compression] in refused.value.message
    assert any(word in refused.value.remedy for word in ("python -c", "vips tiffsave", "bfconvert"))
    assert path.name not in refused.value.remedy


def test_command_of_the_message_converts_the_file(tmp_path: Path, image: np.ndarray) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128), compression="png", **CM)
    with pytest.raises(SlideError) as refused:
        open_slide(path)
    command = (
        refused.value.remedy.removeprefix("convert it: ").replace("IN.tif", str(path)).replace("OUT.tif", str(out))
    )
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    with open_slide(out) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (pytest.approx(0.25), "file")
        assert np.array_equal(slide.read(Box(0, 0, 300, 260)), image)
    assert "vips" in CONVERT_WITH_VIPS
    assert compression_remedy(34677)[1].endswith(CONVERT_WITH_VIPS)


@pytest.mark.parametrize(
    ("compression", "encode"),
    [
        ("webp", lambda a: imagecodecs.webp_encode(a, level=80)),
        ("webp", lambda a: imagecodecs.webp_encode(a, lossless=True)),
        ("jpegxr", imagecodecs.jpegxr_encode),
        ("jpegxl", lambda a: imagecodecs.jpegxl_encode(a, level=80)),
        ("jpegxl", lambda a: imagecodecs.jpegxl_encode(a, usecontainer=True)),
        ("lerc", imagecodecs.lerc_encode),
    ],
)
def test_stream_that_is_larger_than_its_tile_is_refused_before_it_is_decoded(compression: str, encode) -> None:
    for width, height in ((64, 64), (300, 17), (1000, 750)):
        stream = bytes(encode(np.full((height, width, 3), 200, np.uint8)))
        for tile in ((width - 1, height), (width, height - 1)):
            with pytest.raises(ValueError, match=f"the stream has {width} × {height} px"):
                segment_decoder(None, compression, tile)(stream, 0)
        if compression != "lerc":  # decoded by tifffile
            assert segment_decoder(None, compression, (width, height))(stream, 0).shape[:2] == (height, width)
        for damaged in (b"", stream[:9], b"\0" * 64, stream[::-1]):
            with pytest.raises((ValueError, RuntimeError)):
                segment_decoder(None, compression, (width, height))(damaged, 0)


# -- samples of 16 bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [None, "deflate", "jpeg2000"])
def test_samples_of_16_bits_become_8_bits_by_their_range(
    tmp_path: Path, image: np.ndarray, bits: int, planar: bool, compression: str | None
) -> None:
    top = 2**bits - 1
    deep = np.round(image * (top / 255)).astype(np.uint16)
    data = np.ascontiguousarray(np.moveaxis(deep, -1, 0)) if planar else deep
    lossless = {"level": 0, "reversible": True} if compression == "jpeg2000" else {}
    tifffile.imwrite(
        tmp_path / "a.tif", data, photometric="rgb", tile=(128, 128), compression=compression, compressionargs=lossless,
        planarconfig="separate" if planar else "contig", predictor=compression == "deflate", **CM,
    )  # fmt: skip
    pixels, notes = read_all(tmp_path / "a.tif")
    assert np.abs(pixels.astype(int) - image).max() <= (0 if compression != "jpeg2000" else 1)
    assert notes == ((BIT_DEPTH_ASSUMED,) if bits < 16 else ())


def test_range_that_the_file_states_counts(tmp_path: Path, image: np.ndarray) -> None:
    dark = (image // 4).astype(np.uint16) * 16  # of 12 bits, but no px is brighter than 10 bits
    stated = (281, 3, 3, (4095, 4095, 4095), True)
    tifffile.imwrite(tmp_path / "a.tif", dark, photometric="rgb", tile=(128, 128), extratags=[stated], **CM)
    pixels, notes = read_all(tmp_path / "a.tif")
    assert notes == ()
    assert np.abs(pixels.astype(int) - dark / 4095 * 255).max() <= 0.5
    assert fit_conversion(Samples(16), [dark])[0].maximum == 1023


# -- transparency ------------------------------------------------------------------------------------------------


def with_alpha(image: np.ndarray, premultiplied: bool) -> np.ndarray:
    """Return an image whose frame is transparent black, and whose left part is half transparent: (h, w, 4) uint8."""
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:40], alpha[:, -40:] = 0, 0
    alpha[100:140, 100:140] = 128
    rgb = np.where(alpha[..., None] > 0, image, 0)
    if premultiplied:
        rgb = np.round(rgb * (alpha[..., None] / 255)).astype(np.uint8)
    return np.concatenate([rgb, alpha[..., None]], axis=2)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize("compression", [None, "deflate", "webp"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_transparent_pixels_are_composed_on_the_white_of_the_slide(
    tmp_path: Path, kind: str, compression: str | None, deep: bool, planar: bool
) -> None:
    if compression == "webp" and (deep or planar):
        return
    image = tissue_image(300, 260, seed=4, brown=0.6)
    rgba = with_alpha(image, kind == "assocalpha")
    data = rgba.astype(np.uint16) * 257 if deep else rgba
    lossless = {"lossless": True} if compression == "webp" else {}
    tifffile.imwrite(
        tmp_path / "a.tif", np.ascontiguousarray(np.moveaxis(data, -1, 0)) if planar else data, photometric="rgb",
        tile=(128, 128), extrasamples=[kind], compression=compression, compressionargs=lossless,
        planarconfig="separate" if planar else "contig", **CM,
    )  # fmt: skip
    pixels = read_all(tmp_path / "a.tif")[0].astype(int)
    assert np.abs(pixels[:40] - 240).max() <= 3
    opaque = rgba[..., 3] == 255
    assert np.array_equal(pixels[opaque], image[opaque])
    half = np.s_[100:140, 100:140]
    assert np.abs(pixels[half] - (image[half] * (128 / 255) + 240 * (127 / 255))).max() <= 3


@pytest.mark.parametrize("alpha", ["unspecified", "empty"])
def test_fourth_sample_that_is_no_alpha_is_ignored(tmp_path: Path, image: np.ndarray, alpha: str) -> None:
    extra = np.zeros((*image.shape[:2], 1), np.uint8)
    if alpha == "unspecified":
        extra[::2] = 90
    kind = "unspecified" if alpha == "unspecified" else "unassalpha"
    rgba = np.concatenate([image, extra], axis=2)
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", tile=(128, 128), extrasamples=[kind], **CM)
    assert np.array_equal(read_all(tmp_path / "a.tif")[0], image)


def test_white_of_the_slide_is_that_of_its_opaque_glass() -> None:
    rgba = with_alpha(cv2.resize(tissue_image(300, 260, seed=4), (150, 130)), premultiplied=False)
    conversion, _ = fit_conversion(Samples(8, None, "unassociated"), [rgba])
    assert np.abs(np.array(conversion.white) - 240).max() <= 2
    rgba[..., :3] //= 3
    assert fit_conversion(Samples(8, None, "unassociated"), [rgba])[0].white == (255, 255, 255)
    assert fit_conversion(Samples(8, None, "associated"), []) == (Conversion(), ())
