"""Tests of quality control: problems are flagged, good scans are not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from her2batch.vision.membrane import feature_index, measure_tiles
from her2batch.vision.quality import BLURRED_TILE, Quality, assess_quality, blur_ratio
from her2batch.vision.stain import Stains
from her2batch.vision.tissue import segment_tissue
from tests.vision.real import CORES, HE, load_core, load_he_slide, shrink


def assess(rgb: NDArray[np.uint8]) -> Quality:
    return assess_quality(rgb, segment_tissue(rgb, 8.0))


@pytest.fixture
def overview(real_data: Path) -> NDArray[np.uint8]:
    return shrink(load_core(real_data, "2+ b"), 1 / 16).copy()


@pytest.mark.parametrize("name", CORES)
def test_a_good_core_has_no_flags(real_data: Path, name: str) -> None:
    found = assess(shrink(load_core(real_data, name), 1 / 16))
    assert found.flags == ()
    assert found.background == pytest.approx(234, abs=2)
    assert found.pen == found.saturated == found.blur == 0


def test_pen_is_flagged_in_every_colour(overview: NDArray[np.uint8]) -> None:
    for colour in ((20, 130, 60), (25, 55, 170), (20, 20, 25), (190, 25, 40)):
        marked = overview.copy()
        marked[100:120, 20:80] = colour
        found = assess(marked)
        assert found.flags == ("pen",), colour
        assert found.pen == pytest.approx(1200 / marked.shape[0] / marked.shape[1], rel=0.3)


def test_overexposure_is_flagged(overview: NDArray[np.uint8]) -> None:
    bright = np.clip(overview * 1.25, 0, 255).astype(np.uint8)
    assert "overexposed" in assess(bright).flags


def test_a_strongly_blurred_overview_is_flagged(overview: NDArray[np.uint8]) -> None:
    assert "blurred" in assess(cv2.GaussianBlur(overview, (0, 0), 2)).flags


def test_uneven_background_is_flagged(overview: NDArray[np.uint8]) -> None:
    ramp = np.linspace(1, 0.9, overview.shape[1])[None, :, None]
    assert assess((overview * ramp).astype(np.uint8)).flags == ("uneven-background",)


def test_a_core_that_fills_its_image_has_no_background(overview: NDArray[np.uint8]) -> None:
    assert "no-background" in assess(overview[60:120, 60:120]).flags


def test_an_empty_slide_has_no_tissue() -> None:
    found = assess(np.full((100, 150, 3), 240, np.uint8))
    assert found == Quality(0.0, 0.0, 0.0, 240.0, ("no-tissue",))


class TestTileBlur:
    def tiles(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        middle = rgb[700:1596, 700:1596]
        return np.ascontiguousarray(middle.reshape(4, 224, 4, 224, 3).swapaxes(1, 2).reshape(-1, 224, 224, 3))

    def _blur_of(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return measure_tiles(tiles, 0.5, Stains((240.0, 240.0, 245.0), nuclei=0.15))[:, feature_index("blur")]

    @pytest.mark.parametrize("name", CORES)
    def test_blur_grows_with_defocus_on_real_cores(self, real_data: Path, name: str) -> None:
        tiles = self.tiles(load_core(real_data, name))
        previous = self._blur_of(tiles)
        assert (previous < 0.75).all()
        for um in (0.75, 1.6):
            now = self._blur_of(np.stack([cv2.GaussianBlur(one, (0, 0), um / 0.5) for one in tiles]))
            assert (now > previous).all()
            previous = now
        assert (previous > BLURRED_TILE).all()

    def test_the_limit_holds_on_he_slides(self, real_data: Path) -> None:
        tiles = self.tiles(load_he_slide(real_data, next(iter(HE))))
        tiles = tiles[tiles.mean(axis=(1, 2, 3)) < 215]
        assert (self._blur_of(tiles) < BLURRED_TILE).all()
        assert (self._blur_of(np.stack([cv2.GaussianBlur(one, (0, 0), 3.2) for one in tiles])) > BLURRED_TILE).all()

    def test_staining_intensity_hardly_changes_blur(self, real_data: Path) -> None:
        tiles = self.tiles(load_core(real_data, "3+"))
        paler = np.round(240 * (tiles / 240.0) ** 0.5).astype(np.uint8)
        assert np.abs(self._blur_of(paler) - self._blur_of(tiles)).max() < 0.03

    def test_blur_ratio_worked_by_hand(self) -> None:
        assert blur_ratio(0.01, 0.03) == 0.75
        assert blur_ratio(0.0, 0.0) == 0

    def test_blurred_tiles_and_tiles_under_pen_flag_the_slide(self) -> None:
        sharp, clean, none = Quality(0.0, 0.0, 0.0, 240.0, ()), np.zeros(4, np.float32), np.empty(0, np.float32)
        in_focus = np.array([0.5, 0.6, 0.55, 0.5], np.float32)
        assert sharp.with_tiles(in_focus, clean) == sharp
        assert sharp.with_tiles(np.array([0.5, 0.9, 0.55, 0.9], np.float32), clean).flags == ("blurred",)
        marked = sharp.with_tiles(in_focus, np.array([0.5, 0.0, 0.0, 0.0], np.float32))
        assert (marked.pen, marked.flags) == (0.125, ("pen",))
        assert sharp.with_tiles(in_focus, np.array([0.15, 0.0, 0.0, 0.0], np.float32)).flags == ()
        assert sharp.with_tiles(none, none) == sharp
