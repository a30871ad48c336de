"""Tests of the background model: uneven illumination, pale tissue, padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.vision.background import flatten_background, remove_small_parts


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
