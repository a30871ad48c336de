"""Maps of a block: lines have a height, dots have none, and chunks leave no trace."""

import numpy as np
import pytest

from her2batch.vision.cells import density
from her2batch.vision.cells.density import coarse_scale, density_maps, line_height, shrink
from tests.vision.cells.drawing import MPP, STAINS, Canvas


def test_a_line_is_high_and_a_dot_is_not() -> None:
    y, x = np.mgrid[:41, :41] - 20.0
    line = np.exp(-(x**2) / 2).astype(np.float32)
    dot = np.exp(-(x**2 + y**2) / 2).astype(np.float32)
    assert line_height(line, MPP)[20, 20] > 10 * line_height(dot, MPP)[20, 20]


def test_the_coarse_grid_is_about_one_micrometre() -> None:
    assert [coarse_scale(mpp) for mpp in (0.25, 0.5, 1.0, 2.0)] == [4, 2, 1, 1]
    assert shrink(np.ones((6, 4), np.float32), 2).shape == (3, 2)


def test_chunks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(80, 70)
    for x in range(10, 75, 11):
        canvas.nucleus(x, 30)
        canvas.ring(x, 30, 0.5)
    pixels = canvas.pixels()
    whole = density_maps(pixels, MPP, STAINS)
    monkeypatch.setattr(density, "CHUNK_PX", 40)
    parts = density_maps(pixels, MPP, STAINS)
    np.testing.assert_allclose(parts.line, whole.line, atol=1e-5)
    np.testing.assert_allclose(parts.dab, whole.dab, atol=1e-5)
