"""Tests of optical density, stain separation, white point, stain vectors and the stain guess."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.vision.stain import (
    DAB,
    HAEMATOXYLIN,
    Stains,
    fit_stain_vectors,
    guess_stain,
    optical_density,
    pen_mask,
    separate_stains,
    unmix,
    white_point,
)
from tests.vision.real import CORES, HE, load_core, load_he_slide, shrink

whites = st.tuples(*[st.floats(205, 255)] * 3)
amounts = st.floats(0, 1.0)
SOUTH = ((0.628, 0.655, 0.420), (0.345, 0.575, 0.742))
"""Another laboratory's haematoxylin and DAB."""


def camera_image(h: float | NDArray, d: float | NDArray, vectors=(HAEMATOXYLIN, DAB), white=(240.0, 240.0, 240.0)):
    """Return the camera image of stain densities: (H, W, 3) uint8."""
    h, d = np.atleast_2d(h), np.atleast_2d(d)
    od = h[..., None] * np.asarray(vectors[0]) + d[..., None] * np.asarray(vectors[1])
    return np.clip(np.round(np.asarray(white) * 10**-od), 0, 255).astype(np.uint8)


def tissue(d_share: float, vectors=(HAEMATOXYLIN, DAB), seed: int = 0, strength: float = 1.0) -> NDArray[np.uint8]:
    """Return tiles of blue blobs, and brown ones on a share of the area: (4, 128, 128, 3) uint8."""
    rng = np.random.default_rng(seed)

    def blobs(share: float) -> NDArray:
        noise = cv2.GaussianBlur(rng.standard_normal((512, 128)), (0, 0), 4)
        return 0.0 if share == 0 else np.clip((noise - np.quantile(noise, 1 - share)) * 8 + 0.2, 0, 0.5)

    return camera_image(strength * blobs(0.3), strength * blobs(d_share), vectors).reshape(4, 128, 128, 3)


@given(whites, st.tuples(*[st.floats(0, 1.5)] * 3))
def test_optical_density_inverts_beer_lambert(white, od) -> None:
    light = np.asarray(white) * 10 ** -np.asarray(od)
    found = optical_density(np.round(light).astype(np.uint8).reshape(1, 1, 3), white).ravel()
    rounding = 0.5 / np.log(10) / np.maximum(light - 0.5, 0.5)  # half a grey value
    assert np.all(np.abs(found - od) <= rounding + 1e-5)


def test_background_has_no_density_and_black_a_finite_one() -> None:
    pixels = np.array([[[230, 240, 250], [0, 0, 0]]], np.uint8)
    od = optical_density(pixels, (230.0, 240.0, 250.0))
    assert np.allclose(od[:, 0, 0], 0, atol=1e-6)
    assert np.isfinite(od).all()


@given(amounts, amounts, st.sampled_from([(HAEMATOXYLIN, DAB), SOUTH]))
def test_separation_returns_the_mixed_densities(h, d, vectors) -> None:
    stains = Stains((255.0, 255.0, 255.0), *vectors)
    od = (h * np.asarray(vectors[0]) + d * np.asarray(vectors[1])).astype(np.float32).reshape(3, 1, 1)
    densities = separate_stains(od, stains)
    unit = [np.linalg.norm(one) for one in vectors]
    assert densities.h[0, 0] == pytest.approx(h * unit[0], abs=1e-4)
    assert densities.d[0, 0] == pytest.approx(d * unit[1], abs=1e-4)
    assert abs(densities.residual[0, 0]) < 1e-4
    assert densities.mean[0, 0] == pytest.approx(od.mean(), abs=1e-5)
    assert np.allclose(unmix(od, stains), densities[:2], atol=1e-6)


def is_pen(rgb: NDArray[np.uint8], mpp: float = 0.5) -> NDArray[np.bool_]:
    od = optical_density(rgb, (240.0, 240.0, 240.0))
    return pen_mask(od, separate_stains(od, Stains()).residual, mpp)


laboratories = st.sampled_from([(HAEMATOXYLIN, DAB), SOUTH])


@given(st.floats(0, 0.2), st.floats(0, 3.0), laboratories)
def test_brown_is_not_pen_however_dark(h, d, vectors) -> None:
    assert not is_pen(camera_image(h, d, vectors)).any()


@given(st.floats(0, 0.9), st.floats(0, 3.0), laboratories)
def test_a_stained_nucleus_is_not_pen_however_dark(h, d, vectors) -> None:
    rgb = np.full((60, 60, 3), 240, np.uint8)
    cv2.circle(rgb, (30, 30), 11, camera_image(h, d, vectors)[0, 0].tolist(), -1)  # 11 µm wide
    assert not is_pen(rgb).any()


def contrasty_image(rgb: NDArray[np.uint8], black: float, gamma: float) -> NDArray[np.uint8]:
    """Return the image after a scanner's tone curve, brought to a white of 240."""

    def tone(values: NDArray) -> NDArray:
        return np.maximum((values / 255 - black) / (1 - black), 0) ** gamma

    return np.round(240 * np.minimum(tone(rgb.astype(float)) / tone(np.array(240.0)), 1)).astype(np.uint8)


@given(st.floats(0, 0.9), st.floats(0, 3.0), laboratories, st.floats(0, 0.15), st.floats(0.8, 1.25))
def test_brown_of_contrasty_scanners_is_not_pen(h, d, vectors, black, gamma) -> None:
    """A contrast stretch clips green and blue first: the share of red no longer shows that the colour is brown."""
    rgb = np.full((60, 60, 3), 240, np.uint8)
    cv2.circle(rgb, (30, 30), 11, contrasty_image(camera_image(h, d, vectors), black, gamma)[0, 0].tolist(), -1)
    assert not is_pen(rgb).any()


def test_membranes_that_the_scanner_clipped_to_black_are_not_pen() -> None:
    rgb = np.tile(np.uint8([120, 70, 30]), (200, 200, 1))
    for k in range(0, 200, 22):  # a net of cells of 11 µm with membranes of 2 µm
        rgb[k : k + 4] = rgb[:, k : k + 4] = 0
    assert not is_pen(rgb).any()


@pytest.mark.parametrize("colour", [(20, 130, 60), (25, 55, 170), (20, 20, 25), (190, 25, 40)])
@pytest.mark.parametrize("below", [(240, 240, 240), (170, 150, 190), (120, 70, 30)], ids=["glass", "nuclei", "brown"])
def test_pen_is_found_on_glass_and_on_tissue(colour, below) -> None:
    rgb = np.tile(np.uint8(below), (200, 200, 1))
    inside = np.zeros((200, 200), bool)
    inside[60:160] = True  # 50 µm wide; ink absorbs what the tissue below lets through
    rgb[inside] = np.uint8(np.multiply(colour, below) / 240)
    assert is_pen(rgb)[inside].mean() >= 0.9
    assert not is_pen(rgb)[~inside].any()


@pytest.mark.parametrize("colour", [(20, 130, 60), (25, 55, 170), (20, 20, 25), (190, 25, 40)])
def test_pen_colours_are_pen(colour) -> None:
    assert is_pen(np.full((4, 4, 3), colour, np.uint8)).all()


def test_stains_can_be_compared_hashed_and_pickled() -> None:
    stains = Stains((240.0, 241.0, 242.0), nuclei=0.2)
    assert pickle.loads(pickle.dumps(stains)) == stains
    assert len({stains, Stains((240.0, 241.0, 242.0), nuclei=0.2)}) == 1


class TestWhitePoint:
    def test_it_is_the_background_colour(self) -> None:
        rgb = np.full((40, 60, 3), (235, 234, 243), np.uint8)
        rgb[10:30, 10:40] = (180, 170, 200)
        background = np.ones((40, 60), bool)
        background[10:30, 10:40] = False
        assert white_point(rgb, background) == (235, 234, 243)

    def test_black_padding_is_ignored(self) -> None:
        rgb = np.full((40, 60, 3), 238, np.uint8)
        rgb[:, :20] = 0
        assert white_point(rgb, np.ones((40, 60), bool)) == (238, 238, 238)

    @pytest.mark.parametrize("name", CORES)
    def test_a_core_without_background_has_a_white_point(self, real_data: Path, name: str) -> None:
        rgb = shrink(load_core(real_data, name)[800:1900, 800:1900], 1 / 16)
        white = np.asarray(white_point(rgb, np.zeros(rgb.shape[:2], bool)))
        assert (white >= 200).all()
        assert (white <= 250).all()


class TestFit:
    @pytest.mark.parametrize("vectors", [(HAEMATOXYLIN, DAB), SOUTH])
    def test_the_vectors_of_a_laboratory_are_found(self, vectors) -> None:
        fitted = fit_stain_vectors(tissue(0.3, vectors), (240.0, 240.0, 240.0), 0.5)
        for found, true in zip((fitted.haematoxylin, fitted.dab), vectors, strict=True):
            assert np.dot(found, true) / np.linalg.norm(true) > 0.998

    def test_a_slide_without_dab_keeps_the_published_dab(self) -> None:
        fitted = fit_stain_vectors(tissue(0.0, SOUTH), (240.0, 240.0, 240.0), 0.5)
        assert fitted.dab == DAB
        assert np.dot(fitted.haematoxylin, SOUTH[0]) > 0.995

    @pytest.mark.parametrize("strength", [0.3, 0.35, 0.4, 0.5])
    def test_a_pale_slide_has_its_own_vectors_and_not_the_published_ones(self, strength: float) -> None:
        fitted = fit_stain_vectors(tissue(0.0, SOUTH, strength=strength), (240.0, 240.0, 240.0), 0.5)
        assert np.dot(fitted.haematoxylin, SOUTH[0]) > 0.995 > np.dot(HAEMATOXYLIN, SOUTH[0])

    def test_hardly_any_stain_keeps_both_published_vectors(self) -> None:
        blank = np.full((2, 64, 64, 3), 238, np.uint8)
        assert fit_stain_vectors(blank, (240.0, 240.0, 240.0), 0.5) == Stains((240.0, 240.0, 240.0))
        assert fit_stain_vectors(blank[:0], (240.0, 240.0, 240.0), 0.5) == Stains((240.0, 240.0, 240.0))

    def test_pen_hardly_changes_the_fit(self) -> None:
        tiles = tissue(0.3)
        clean = fit_stain_vectors(tiles, (240.0, 240.0, 240.0), 0.5)
        tiles[0, :60, :60] = (25, 55, 170)
        marked = fit_stain_vectors(tiles, (240.0, 240.0, 240.0), 0.5)
        assert np.dot(clean.haematoxylin, marked.haematoxylin) > 0.999
        assert np.dot(clean.dab, marked.dab) > 0.999
        assert marked.nuclei == pytest.approx(clean.nuclei, rel=0.05)

    def test_a_brown_veil_is_measured_as_background(self) -> None:
        od = -np.log10(tissue(0.3) / 240.0) + 0.1 * np.asarray(DAB)
        veiled = np.round(240.0 * 10**-od).astype(np.uint8)
        white = (240.0, 240.0, 240.0)
        assert fit_stain_vectors(tissue(0.3), white, 0.5).background < 0.005
        assert 0.02 < fit_stain_vectors(veiled, white, 0.5).background < 0.11


@pytest.mark.parametrize("name", CORES)
def test_a_pale_her2_core_is_ihc(real_data: Path, name: str) -> None:
    tiles = (
        load_core(real_data, name)[896:1792, 896:1792]
        .reshape(4, 224, 4, 224, 3)
        .swapaxes(1, 2)
        .reshape(-1, 224, 224, 3)
    )
    assert guess_stain(tiles, fit_stain_vectors(tiles, (235.0, 234.0, 243.0), 0.5)) == "ihc"


@pytest.mark.parametrize("name", HE)
def test_a_pink_slide_is_he(real_data: Path, name: str) -> None:
    rgb = load_he_slide(real_data, name)[400:1296, 400:1296]
    tiles = np.ascontiguousarray(rgb.reshape(4, 224, 4, 224, 3).swapaxes(1, 2).reshape(-1, 224, 224, 3))
    assert guess_stain(tiles, fit_stain_vectors(tiles, (245.0, 244.0, 245.0), 0.5)) == "he"


def test_a_slide_without_tissue_counts_as_ihc() -> None:
    assert guess_stain(np.full((1, 64, 64, 3), 240, np.uint8), Stains()) == "ihc"
    assert guess_stain(np.empty((0, 64, 64, 3), np.uint8), Stains()) == "ihc"
