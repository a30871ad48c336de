"""Tests of the background model: uneven illumination, pale tissue, padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.vision.background import (
    fill_missing,
    filled_tiles,
    flatten_background,
    missing_in_tissue,
    remove_small_parts,
    touched_pixels,
)


def uneven_background(slope_x: float, slope_y: float, bow: float, level: float = 240.0) -> np.ndarray:
    """Return background under uneven illumination: (96, 120, 3) uint8."""
    y, x = np.mgrid[-1:1:96j, -1:1:120j]
    light = level * (1 + slope_x * x + slope_y * y - bow * (x * x + y * y))
    return np.repeat(np.clip(np.round(light), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@given(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02), st.floats(0, 0.02))
@settings(max_examples=30, deadline=None)
def test_uneven_illumination_is_corrected(slope_x, slope_y, bow) -> None:
    flat = flatten_background(uneven_background(slope_x, slope_y, bow))
    assert flat.background.mean() > 0.9
    assert np.abs(flat.od).max() < 0.006  # a grey value is 0.0018


@pytest.mark.parametrize("level", [150, 170, 190])
def test_grey_values_of_a_dim_background_may_differ_by_one(level: float) -> None:
    light = uneven_background(0.02, 0.02, 0.02, level)
    noise = np.random.default_rng(0).normal(0, 0.7, light.shape[:2])[..., None]
    flat = flatten_background(np.round(light + noise).astype(np.uint8))
    assert flat.background.mean() > 0.5


def test_pale_tissue_is_not_background() -> None:
    rgb = uneven_background(0.01, 0.0, 0.0)
    rng = np.random.default_rng(0)
    rgb[30:60, 30:80] = np.clip(rgb[30:60, 30:80] - rng.normal(6, 2, (30, 50, 1)), 0, 255)
    flat = flatten_background(rgb)
    assert not flat.background[34:56, 34:76].any()
    assert np.median(flat.od[34:56, 34:76]) == pytest.approx(0.011, abs=0.003)


def test_without_background_the_brightest_px_are_used() -> None:
    rng = np.random.default_rng(0)
    rgb = np.clip(rng.normal(225, 6, (64, 64, 3)), 0, 238).astype(np.uint8)
    flat = flatten_background(rgb)
    assert not flat.background.any()
    assert -0.01 < float(flat.od.min()) <= 0.01


def test_padding_is_not_background_and_has_no_density() -> None:
    rgb = uneven_background(0, 0, 0)
    rgb[:20] = 0
    rgb[-20:] = 255
    flat = flatten_background(rgb)
    assert flat.padding.sum() == 40 * 120
    assert not (flat.background & flat.padding).any()
    assert (flat.od[flat.padding] == 0).all()


def test_small_parts_are_removed_by_area() -> None:
    mask = np.zeros((20, 20), bool)
    mask[1:3, 1:3] = True
    mask[5:10, 5:10] = True
    assert remove_small_parts(mask, 5).sum() == 25
    assert remove_small_parts(mask, 4).sum() == 29


# -- areas without image -----------------------------------------------------------------------------------------


def test_pixels_that_touch_a_missing_tile_are_found_whatever_the_ratio() -> None:
    tiles = np.zeros((4, 3), bool)
    tiles[1, 2] = True
    assert np.argwhere(touched_pixels(tiles, (40, 30), (40, 30), (40, 30))).tolist() == [
        [y, x] for y in range(10, 20) for x in range(20, 30)
    ]
    coarse = touched_pixels(tiles, (40, 30), (36.5, 28), (9, 7))  # the last tiles extend beyond the slide
    expected = [
        [y, x] for y in range(9) for x in range(7) if y * 36.5 / 9 < 20 and (y + 1) * 36.5 / 9 > 10 and (x + 1) * 4 > 20
    ]
    assert np.argwhere(coarse).tolist() == expected


def glass_with_tissue(glass: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    rgb = np.full((120, 120, 3), glass, np.float32)
    rgb[20:100, 20:100] = rng.normal(170, 20, (80, 80, 1))
    return np.clip(rgb + rng.normal(0, 1, rgb.shape), 0, 253 if glass < 254 else 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("edge", [8.0, 7.6])
def test_tiles_filled_with_black_or_white_are_found(colour: int, edge: float) -> None:
    rgb = glass_with_tissue(240)
    y, x = round(5 * edge), round(7 * edge)
    rgb[int(5 * edge) : round(6 * edge + 0.49), int(7 * edge) : round(8 * edge + 0.49)] = colour
    found = filled_tiles(rgb, (edge, edge))
    assert found[y + 1 : y + 6, x + 1 : x + 6].all()
    assert found.sum() <= (np.ceil(edge) + 1) ** 2
    assert not filled_tiles(glass_with_tissue(240), (edge, edge)).any()


def test_white_of_an_overexposed_background_and_black_padding_are_no_filled_tiles() -> None:
    overexposed = glass_with_tissue(255)
    overexposed[50:71, 45:72] = 255  # a lumen that covers tiles
    assert not filled_tiles(np.where(overexposed > 250, 255, overexposed).astype(np.uint8), (8, 8)).any()
    padded = glass_with_tissue(240)
    padded[:, :40] = 0
    assert not filled_tiles(padded, (8, 8)).any()


def test_missing_pixels_get_the_colour_of_the_nearest_ones() -> None:
    rgb = np.zeros((9, 9, 3), np.uint8)
    rgb[:, :3], rgb[:, 6:] = 50, 200
    missing = np.zeros((9, 9), bool)
    missing[:, 3:6] = True
    filled = fill_missing(rgb, missing)
    assert (filled[:, 3] == 50).all()
    assert (filled[:, 5] == 200).all()
    assert np.array_equal(filled[~missing], rgb[~missing])
    assert fill_missing(rgb, np.ones((9, 9), bool)) is rgb


def test_missing_area_lies_in_tissue_if_most_of_its_rim_does() -> None:
    tissue, missing = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    tissue[:, 20:] = True
    missing[10:18, 30:38] = True  # inside
    missing[30:38, 4:12] = True  # on glass
    missing[44:52, 8:21] = True  # on glass, but touches tissue
    nothing = np.zeros_like(missing)
    lost = missing_in_tissue(tissue, missing, nothing)
    assert lost[10:18, 30:38].all()
    assert lost.sum() == 64
    band = np.zeros_like(missing)
    band[20:30, 30:] = True  # large, and reaches the edge
    assert missing_in_tissue(tissue, band, nothing).sum() == 300
    assert not missing_in_tissue(tissue, band, band).any()  # filled with black or white, it is padding
    assert missing_in_tissue(tissue, np.ones_like(missing), nothing).sum() == 0
