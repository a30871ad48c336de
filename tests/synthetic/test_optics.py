"""Tests of lens, sensor and tone curve."""

import numpy as np
import pytest

from her2batch.synthetic.optics import blur_and_sharpen, soft_edge, to_rgb

NO_NOISE = np.zeros((8, 8, 3), np.float32)


def grey(density, **tone):
    """Return the grey value of a uniform picture of this density on white of 240."""
    od = np.full((8, 8, 3), density - np.log10(240), np.float32)
    return int(to_rgb(od, NO_NOISE, **tone)[4, 4, 0])


def test_light_follows_the_density():
    assert [grey(one) for one in (0.0, 1.0, 2.0)] == [240, 24, 2]


def test_the_tone_curve_raises_densities():
    assert grey(1.0, black=0.05) == pytest.approx(255 * (24 / 255 - 0.05) / 0.95, abs=1)
    assert grey(2.0, black=0.05) == 0
    assert grey(1.0, gamma=1.2) == pytest.approx(255 * (24 / 255) ** 1.2, abs=1)


def test_blur_lowers_lines_and_keeps_areas():
    line = np.zeros((40, 40, 2), np.float32)
    line[20] = 1
    sharp, blurred = blur_and_sharpen(line), blur_and_sharpen(line, 1.5)
    assert blurred.max() < 0.7 * sharp.max()
    assert blurred.sum() == pytest.approx(sharp.sum(), rel=0.01)


def test_an_edge_is_half_at_its_middle():
    assert soft_edge(np.float32([-2, -0.5, 0, 0.5, 2]), 2.0).tolist() == [0, 0.25, 0.5, 0.75, 1]
