"""Levels padded to whole tiles keep their scale; levels without padding are left as they are."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from her2batch.slides.slide import Box
from her2batch.slides.tiff.padding import StoredLevel, padded_factors, picture_sizes
from her2batch.slides.tiff_slide import TiledTiffSlide
from tests.slides.tiff.pyramids import halved, padded, picture, write_pages


def write_padded(path: Path, images: list[np.ndarray], tile: int, value: int = 255, **more: object) -> Path:
    """Write a pyramid whose levels, but the first one, are padded to whole tiles."""
    shown = [images[0], *(padded(image, tile, value) for image in images[1:])]
    return write_pages(path, [(image, {"tile": (tile, tile), **more}) for image in shown])


def test_factors_that_padding_explains() -> None:
    assert padded_factors((6656, 6656), (3584, 3584), (512, 512)) == [2]
    assert padded_factors((6656, 5000), (512, 512), (512, 512)) == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert padded_factors((3000, 3000), (1024, 1024), (256, 256)) == [3]
    assert padded_factors((6656, 6656), (3584, 3000), (512, 512)) == []
    assert padded_factors((4096, 4096), (2048, 2048), (256, 256)) == [2]


@pytest.mark.parametrize("size", [(1152, 1152), (1300, 900)])
@pytest.mark.parametrize(
    ("value", "more"),
    [
        (255, {"compression": "jpeg"}), (243, {"compression": "lzw"}), (0, {}), (255, {"compression": "deflate"}),
        (255, {"planarconfig": "separate"}),
    ],
)  # fmt: skip
def test_padded_levels_have_the_scale_of_their_picture(tmp_path: Path, size: tuple, value: int, more: dict) -> None:
    height, width = size
    images = [picture(height, width), *(halved(picture(height, width), k) for k in (1, 2, 3))]
    if "planarconfig" in more:
        shown = [images[0], *(padded(image, 128, value) for image in images[1:])]
        pages = [(np.ascontiguousarray(np.moveaxis(image, -1, 0)), more) for image in shown]
        path = write_pages(tmp_path / "a.tif", pages)
    else:
        path = write_padded(tmp_path / "a.tif", images, 128, value, **more)
    with TiledTiffSlide(path) as slide:
        assert [round(factor, 1) for factor in slide.info.level_downsamples] == [1, 2, 4, 8]
        for k, image in enumerate(images):
            level = slide.info.levels[k]
            gap = np.abs(slide.read(Box(0, 0, level.width, level.height), k).astype(int) - image)
            assert (level.width, level.height) == image.shape[1::-1]
            assert gap.mean() < (6 if more.get("compression") == "jpeg" else 1)


@pytest.mark.parametrize("factor", [2, 4])
def test_scales_of_levels_that_skip(tmp_path: Path, factor: int) -> None:
    times = factor.bit_length() - 1
    images = [halved(picture(1300, 1300), times * k) for k in range(3)]
    with TiledTiffSlide(write_padded(tmp_path / "a.tif", images, 128)) as slide:
        assert [round(ratio) for ratio in slide.info.level_downsamples] == [1, factor, factor**2]


def test_padding_that_looks_like_a_whole_factor_is_seen_in_the_picture(tmp_path: Path) -> None:
    """1024 px, quartered twice and padded to a tile of 128 px: the quotient of the last two sizes is 2, not 4."""
    images = [halved(picture(1024, 1024), 2 * k) for k in range(3)]
    with TiledTiffSlide(write_padded(tmp_path / "a.tif", images, 128)) as slide:
        assert slide.info.level_downsamples == (1, 4, 16)


@pytest.mark.parametrize("size", [(1024, 1024), (1100, 900), (512, 512), (1536, 640)])
def test_levels_without_padding_keep_their_size(tmp_path: Path, size: tuple[int, int]) -> None:
    images = [halved(picture(*size), k) for k in range(4)]
    with TiledTiffSlide(write_pages(tmp_path / "a.tif", [(image, {}) for image in images])) as slide:
        assert [(level.height, level.width) for level in slide.info.levels] == [image.shape[:2] for image in images]


def test_scale_that_is_no_whole_number_is_kept_where_the_picture_says_so(tmp_path: Path) -> None:
    """3328 px shrunk to exactly 1792 px, seven tiles, by a writer that resizes."""
    image = picture(1664, 1664)
    small = cv2.resize(image, (896, 896), interpolation=cv2.INTER_AREA)
    with TiledTiffSlide(write_pages(tmp_path / "a.tif", [(image, {}), (small, {})])) as slide:
        assert slide.info.level_downsamples == pytest.approx((1, 1.857), abs=0.001)


def test_other_image_of_whole_tiles_is_no_level(tmp_path: Path) -> None:
    image, other = picture(1500, 1100), picture(768, 640, seed=9)[::-1, ::-1].copy()
    with TiledTiffSlide(write_pages(tmp_path / "a.tif", [(image, {}), (other, {})])) as slide:
        assert len(slide.info.levels) == 1


def test_blank_levels_follow_the_geometry() -> None:
    def read(_: int, box: Box) -> np.ndarray:
        return np.full((box.height, box.width, 3), 255, np.uint8)

    tiles = [np.ones(n, np.int64) for n in (169, 49)]
    stored = [StoredLevel((w, w), (512, 512), count) for w, count in zip((6656, 3584), tiles, strict=True)]
    assert picture_sizes(stored, read) == [(6656, 6656), (3328, 3328)]


def test_macro_image_of_the_same_shape_is_no_level(tmp_path: Path) -> None:
    image, macro = picture(1200, 1600), picture(300, 400, seed=7)[::-1, ::-1].copy()
    slide, second, other = (image, {}), (halved(image), {}), (macro, {})
    for pages in ([other, slide], [slide, other], [slide, second, other]):
        with TiledTiffSlide(write_pages(tmp_path / "a.tif", pages)) as opened:
            assert [level.width for level in opened.info.levels] == [1600, 800][: len(pages) - 1]
    blank = np.full_like(macro, 240)  # of a blank image nothing can be said
    with TiledTiffSlide(write_pages(tmp_path / "a.tif", [(image, {}), (blank, {})])) as slide:
        assert [level.width for level in slide.info.levels] == [1600, 400]


def test_label_of_an_svs_in_the_shape_of_the_slide_is_no_level(tmp_path: Path) -> None:
    image, label = picture(1200, 1600), picture(300, 400, seed=7)[::-1, ::-1].copy()
    about = {"description": "Aperio Image Library\r\n1600x1200|MPP = 0.25"}
    pages = [(image, about), (halved(image), about), (label, {"subfiletype": 1})]
    with TiledTiffSlide(write_pages(tmp_path / "a.svs", pages)) as slide:
        assert [level.width for level in slide.info.levels] == [1600, 800]


def test_level_of_another_resampling_is_a_level(tmp_path: Path) -> None:
    """Nearest neighbours, and a shift of one px, are what the simplest writers make."""
    image = picture(1600, 1200)
    for small in (image[::4, ::4], image[3::4, 3::4], cv2.GaussianBlur(image, (0, 0), 4)[::8, ::8]):
        pages = [(image, {}), (np.ascontiguousarray(small), {"compression": "jpeg"})]
        with TiledTiffSlide(write_pages(tmp_path / "a.tif", pages)) as slide:
            assert len(slide.info.levels) == 2
