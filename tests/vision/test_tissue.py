"""Tests of tissue segmentation on real cores and H&E slides, synthetic slides and simple shapes."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth, make_tissue
from her2batch.vision.stain import white_point
from her2batch.vision.tissue import MAX_DISAGREEMENT, Tissue, label_pieces, segment_tissue, tile_fractions
from tests.vision.real import CORES, HE, load_core, load_he_slide, shrink

FRACTION = {"0": 0.48, "1+": 0.62, "2+ a": 0.65, "2+ b": 0.57, "3+": 0.57}
"""Share of each core's image that is tissue, measured by hand as an ellipse over the image."""

HE_FRACTION = {"CMU-1-Small-Region.svs": 0.42, "tcga-cr-7395-01a-01-ts1.svs": 0.68, "HE_example.tif": 0.74}


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def overview(folder: Path, name: str) -> NDArray[np.uint8]:
    return shrink(load_core(folder, name), 1 / 16)


def pale_disc(radius: int = 40, depth: float = 9.0, size: tuple[int, int] = (120, 140)) -> NDArray[np.uint8]:
    """Return a disc of faint blue grain on background, at 8 µm/px."""
    rng = np.random.default_rng(1)
    rgb = rng.normal((238, 238, 240), 0.6, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    inside = np.hypot(x - size[1] / 2, y - size[0] / 2) < radius
    grain = rng.normal(depth, depth / 4, (*size, 1)) * np.array([1.2, 1.0, 0.6])
    return np.clip(rgb - inside[..., None] * grain, 0, 255).astype(np.uint8)


@cache
def disc_tissue() -> Tissue:
    """The tissue of `pale_disc()`."""
    return segment_tissue(pale_disc(), 8.0)


@cache
def core_tissue(folder: Path, name: str) -> Tissue:
    """The tissue of the overview of a core."""
    return segment_tissue(overview(folder, name), 8.0)


class TestRealSlides:
    @pytest.mark.parametrize("name", CORES)
    def test_the_tissue_of_a_core_has_its_size(self, real_data: Path, name: str) -> None:
        found = core_tissue(real_data, name)
        assert found.mask.mean() == pytest.approx(FRACTION[name], abs=0.04)
        assert found.disagreement < 0.2
        assert not found.pen.any()

    @pytest.mark.parametrize("name", HE)
    def test_the_tissue_of_an_he_slide_has_its_size(self, real_data: Path, name: str) -> None:
        found = segment_tissue(shrink(load_he_slide(real_data, name), HE[name] / 8), 8.0)
        assert found.mask.mean() == pytest.approx(HE_FRACTION[name], abs=0.05)
        assert found.disagreement < 0.2
        assert not found.pen.any()

    @pytest.mark.parametrize("name", CORES)
    def test_a_core_without_background_is_all_tissue(self, real_data: Path, name: str) -> None:
        inside = overview(real_data, name)[60:120, 60:120]
        assert segment_tissue(inside, 8.0).mask.mean() > 0.97

    @pytest.mark.parametrize("name", CORES)
    def test_uneven_illumination_hardly_changes_the_mask(self, real_data: Path, name: str) -> None:
        rgb = overview(real_data, name)
        mask = core_tissue(real_data, name).mask
        y, x = np.mgrid[-1 : 1 : rgb.shape[0] * 1j, -1 : 1 : rgb.shape[1] * 1j]
        for light in (0.95 + 0.05 * x, 1 - 0.04 * (x * x + y * y)):
            lit = np.round(rgb * light[..., None]).astype(np.uint8)
            assert dice(segment_tissue(lit, 8.0).mask, mask) > 0.98

    @pytest.mark.parametrize("value", [0, 255])
    def test_scanner_padding_is_not_tissue(self, real_data: Path, value: int) -> None:
        rgb = overview(real_data, "0")
        padded = cv2.copyMakeBorder(rgb, 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=(value,) * 3)
        found = segment_tissue(padded, 8.0).mask
        assert dice(found[40:-40, 40:-40], core_tissue(real_data, "0").mask) > 0.97
        assert found.sum() == found[40:-40, 40:-40].sum()

    def test_the_same_overview_gives_the_same_mask(self, real_data: Path) -> None:
        first, second = core_tissue(real_data, "1+"), segment_tissue(overview(real_data, "1+"), 8.0)
        assert np.array_equal(first.mask, second.mask)
        assert first.disagreement == second.disagreement


class TestSynthetic:
    """The truth is known; pale stroma is adjacent to dark tumour."""

    @pytest.fixture(scope="class", params=["0", "3+"])
    def slide(self, request: pytest.FixtureRequest) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
        truth = SlideTruth("s", TYPICAL_MIXES[request.param], site="south", artefacts=("pen",), width=3000, height=2400)
        specimen = make_tissue(truth, 3)
        rgb = paint_slide(specimen.cells, specimen.fields, specimen.noise, specimen.appearance, (3000, 2400))
        return shrink(rgb, 1 / 32), specimen.masks

    def test_pen_is_found_and_excluded_from_tissue(self, slide) -> None:
        found = segment_tissue(slide[0], 8.0)
        truth = cv2.resize(slide[1]["pen"].astype(np.uint8), found.pen.shape[::-1]) > 0
        assert dice(found.pen, truth) > 0.75  # its rim of 2 px counts as pen
        assert not (found.mask & found.pen).any()

    def test_the_remaining_tissue_is_found_completely(self, slide) -> None:
        found = segment_tissue(slide[0], 8.0)
        truth = cv2.resize(slide[1]["tissue"].astype(np.uint8), found.mask.shape[::-1]) > 0
        assert dice(found.mask, truth & ~found.pen) > 0.94


class TestProperties:
    @given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
    @settings(max_examples=10, deadline=None)
    def test_more_background_adds_no_tissue(self, top, bottom, left, right) -> None:
        rgb = pale_disc()
        wide = cv2.copyMakeBorder(rgb, top, bottom, left, right, cv2.BORDER_REFLECT_101)
        wide[:top], wide[top + 120 :] = (238, 238, 240), (238, 238, 240)
        wide[:, :left], wide[:, left + 140 :] = (238, 238, 240), (238, 238, 240)
        found = segment_tissue(wide, 8.0).mask
        inner = found[top : top + 120, left : left + 140]
        assert found.sum() == inner.sum()
        assert dice(inner, disc_tissue().mask) > 0.97

    @given(st.floats(0.5, 1.04))
    @settings(max_examples=8, deadline=None)
    def test_brightness_does_not_matter(self, gain) -> None:
        rgb = pale_disc()
        lit = np.clip(np.round(rgb * gain), 0, 253).astype(np.uint8)
        assert dice(segment_tissue(lit, 8.0).mask, disc_tissue().mask) > 0.97

    @pytest.mark.parametrize("grey", [210, 196, 170, 140, 100])
    def test_grey_glass_is_not_tissue(self, grey: int) -> None:
        rgb = np.round(pale_disc(depth=40) * (grey / 239)).astype(np.uint8)
        found = segment_tissue(rgb, 8.0).mask
        assert found.sum() == pytest.approx(np.pi * 40**2, rel=0.12)
        assert white_point(rgb, ~found) == pytest.approx((grey, grey, grey), abs=2)

    @given(st.floats(5, 120))
    @settings(max_examples=8, deadline=None)
    def test_a_pale_disc_keeps_its_area(self, depth) -> None:
        found = segment_tissue(pale_disc(depth=depth), 8.0).mask.sum()
        assert found == pytest.approx(np.pi * 40**2, rel=0.12)

    def test_a_pale_core_beside_a_dark_one_is_not_lost(self) -> None:
        rng = np.random.default_rng(1)
        rgb = rng.normal((238, 238, 240), 0.6, (160, 240, 3))
        y, x = np.mgrid[:160, :240]
        pale, dark = np.hypot(x - 150, y - 80) < 60, np.hypot(x - 40, y - 80) < 22
        for inside, depth, grain in ((pale, 2, 2), (dark, 60, 10)):
            rgb -= inside[..., None] * rng.normal(depth, grain, (160, 240, 1)) * np.array([1.2, 1.0, 0.6])
        found = segment_tissue(np.clip(rgb, 0, 255).astype(np.uint8), 8.0)
        assert found.method == "union"
        assert found.disagreement > MAX_DISAGREEMENT
        assert found.mask[pale].mean() > 0.95
        assert found.mask[dark].mean() > 0.95
        assert found.mask[~(pale | dark)].mean() < 0.1

    @pytest.mark.parametrize("grey", [0, 238, 255])
    def test_a_uniform_overview_has_no_tissue(self, grey: int) -> None:
        assert not segment_tissue(np.full((90, 130, 3), grey, np.uint8), 8.0).mask.any()

    def test_noisy_background_has_no_tissue(self) -> None:
        rgb = np.random.default_rng(0).normal(238, 1.5, (300, 200, 3)).astype(np.uint8)
        assert not segment_tissue(rgb, 8.0).mask.any()

    @pytest.mark.parametrize(
        ("shape", "mpp"), [((1, 1), 8.0), ((1, 300), 8.0), ((3, 2), 8.0), ((16, 16), 0.25), ((16, 16), 20.0)]
    )
    def test_tiny_overviews_are_accepted(self, shape, mpp) -> None:
        rgb = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
        found = segment_tissue(rgb, mpp)
        assert found.mask.shape == found.pen.shape == shape


class TestPieces:
    def test_dirt_on_a_thin_bridge_is_another_piece(self) -> None:
        mask = np.zeros((80, 120), bool)
        mask[10:70, 10:70] = True
        mask[40, 70:90] = True
        mask[34:47, 90:103] = True
        labels = label_pieces(mask)
        assert labels[40, 40] != labels[40, 96]
        assert set(np.unique(labels[~mask])) == {0}
        assert (labels[mask] > 0).all()

    def test_a_wide_bridge_keeps_one_piece(self) -> None:
        mask = np.zeros((80, 160), bool)
        mask[10:70, 10:70] = True
        mask[20:60, 70:90] = True
        mask[10:70, 90:150] = True
        assert set(np.unique(label_pieces(mask))) == {0, 1}

    def test_empty_and_full_masks(self) -> None:
        assert not label_pieces(np.zeros((5, 5), bool)).any()
        assert (label_pieces(np.ones((5, 5), bool)) == 1).all()


class TestFractions:
    def test_fractions_worked_by_hand(self) -> None:
        mask = np.zeros((4, 6), bool)
        mask[1:3, 1:4] = True  # level 0 is 600 × 400: 100 px each
        tiles = np.array([[0, 0, 200], [100, 100, 200], [150, 150, 100], [500, 300, 200], [300, 100, 200]], np.int32)
        assert tile_fractions(mask, 600, 400, tiles).tolist() == pytest.approx([0.25, 1, 1, 0, 0.5])

    @given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**16), st.integers(1, 5))
    @settings(max_examples=40, deadline=None)
    def test_tiles_that_cover_the_slide_share_out_its_tissue(self, h, w, seed, cell) -> None:
        mask = np.random.default_rng(seed).random((h, w)) < 0.5
        size = 7 * cell
        width, height = w * 16, h * 16
        tiles = np.array([(x, y, size) for y in range(0, height, size) for x in range(0, width, size)], np.int32)
        share = tile_fractions(mask, width, height, tiles)
        assert share.dtype == np.float32
        assert ((share >= 0) & (share <= 1)).all()
        assert share.sum() * size * size == pytest.approx(mask.sum() * 256, rel=1e-4, abs=1e-3)

    def test_no_tiles_give_no_fractions(self) -> None:
        assert tile_fractions(np.ones((2, 2), bool), 10, 10, np.empty((0, 3), np.int32)).shape == (0,)
