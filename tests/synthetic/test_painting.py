"""Tests of painting: assignment of px to cells, densities, artefacts, and Beer–Lambert."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.synthetic.noise import NOISE_PX, make_noise_fields
from her2batch.synthetic.painting import (
    MARGIN,
    RIM_CELLS,
    Appearance,
    Cells,
    Fields,
    PaintWindow,
    paint_slide,
    plan_paint_blocks,
    voronoi,
)

WHITE = (240.0, 238.0, 245.0)
APPEARANCE = Appearance(0.25, (0.65, 0.704, 0.286), (0.269, 0.568, 0.778), WHITE, (0.75, 0.18, 0.55), 0.3)


@pytest.fixture(scope="module")
def noise():
    return make_noise_fields(np.random.default_rng(0), 0.25)


def cell_lattice(width, height, pitch=40, jitter=0.3, **densities):
    """Return cells over a slide that have only the given densities."""
    rows, cols = -(-height // pitch) + 2 * RIM_CELLS, -(-width // pitch) + 2 * RIM_CELLS
    rng = np.random.default_rng(1)
    y = ((np.arange(rows)[:, None] - RIM_CELLS + 0.5 + rng.uniform(-jitter, jitter, (rows, cols))) * pitch).astype(
        np.float32
    )
    x = ((np.arange(cols) - RIM_CELLS + 0.5 + rng.uniform(-jitter, jitter, (rows, cols))) * pitch).astype(np.float32)
    ellipse = np.tile(np.float32([1 / 12**2, 0, 1 / 12**2]), (rows, cols, 1))
    names = ("nucleus_h", "nucleus_d", "ring_d", "ring_share", "ring_px", "body_h", "body_d", "fibre")
    arrays = {name: np.full((rows, cols), densities.get(name, 0.0), np.float32) for name in names}
    return Cells(pitch, x, y, ellipse, **arrays)


def uniform_fields(width, height, tissue=1000.0, **artefacts):
    """Return the fields of a slide that is tissue everywhere, or nowhere."""
    shape = -(-height // 32), -(-width // 32)
    one = {name: np.full(shape, value, np.float32) for name, value in artefacts.items()}
    return Fields(
        32, np.full(shape, tissue, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.float32), **one
    )


def density(rgb):
    """Return the mean optical density of R, G, B."""
    return -np.log10(np.maximum(rgb, 1) / np.array(WHITE)).mean(axis=(0, 1))


def test_background_is_white_with_scanner_noise(noise):
    rgb = paint_slide(cell_lattice(700, 500), uniform_fields(700, 500, tissue=-1000.0), noise, APPEARANCE, (700, 500))
    assert rgb.shape == (500, 700, 3)
    assert np.allclose(rgb.mean(axis=(0, 1)), WHITE, atol=0.2)
    assert np.all((rgb.std(axis=(0, 1)) > 1.0) & (rgb.std(axis=(0, 1)) < 2.5))


def test_density_follows_the_stain_vectors(noise):
    brown = paint_slide(cell_lattice(600, 600, body_d=0.5), uniform_fields(600, 600), noise, APPEARANCE, (600, 600))
    blue = paint_slide(cell_lattice(600, 600, body_h=0.5), uniform_fields(600, 600), noise, APPEARANCE, (600, 600))
    assert np.allclose(density(brown), 0.5 * np.array(APPEARANCE.dab), rtol=0.08)
    assert np.allclose(density(blue), 0.5 * np.array(APPEARANCE.haematoxylin), rtol=0.08)


def test_membranes_follow_the_cell_borders_and_nuclei_are_central(noise):
    cells = cell_lattice(600, 600, jitter=0.0, ring_d=1.0, ring_share=1.2, ring_px=2.0, nucleus_h=0.4)
    rgb = paint_slide(cells, uniform_fields(600, 600), noise, APPEARANCE, (600, 600)).astype(int)
    redness = (rgb[..., 0] - rgb[..., 2]).reshape(15, 40, 15, 40).mean(axis=(0, 2))  # mean over all cells
    assert redness[0].mean() > redness[20].mean() + 10
    assert redness[20, 20] < 0


def test_incomplete_membranes_leave_gaps(noise):
    def brown(share):
        cells = cell_lattice(600, 600, ring_d=1.0, ring_share=share, ring_px=2.0)
        rgb = paint_slide(cells, uniform_fields(600, 600), noise, APPEARANCE, (600, 600)).astype(int)
        return float(((rgb[..., 0] - rgb[..., 2]) > 30).mean())

    assert brown(1.2) > 0.05
    assert brown(-0.1) == 0
    assert 0.2 < brown(0.4) / brown(1.2) < 0.6


@pytest.mark.parametrize("pitch", [20, 39, 40, 46, 49])
def test_each_px_belongs_to_its_nearest_cell(pitch):
    cells = cell_lattice(400, 400, pitch)
    block = next(plan_paint_blocks(400, 400, cells.pitch))
    edge_px = block.columns * pitch + 2 * MARGIN
    window = PaintWindow(-MARGIN, -MARGIN, edge_px, edge_px)
    no_warp = np.zeros((window.h, window.w), np.float32)
    index, edge, dx, dy = voronoi(cells, block, window, (no_warp, no_warp))
    inside = np.random.default_rng(2).integers(MARGIN, window.w - MARGIN, (200, 2)).tolist()
    borders = [(MARGIN + k * pitch + step, MARGIN + k * pitch + 7) for k in range(1, 8) for step in (-1, 0)]
    for row, column in [*inside, *borders, *(px[::-1] for px in borders)]:
        away = np.hypot(cells.x - (column - MARGIN), cells.y - (row - MARGIN)).ravel()
        first, second = np.sort(away)[:2]
        assert away[index[row, column]] == pytest.approx(first, abs=1e-3)
        assert edge[row, column] == pytest.approx((second - first) / 2, abs=1e-3)
        assert np.hypot(dx[row, column], dy[row, column]) == pytest.approx(first, abs=1e-3)


def test_blocks_join_without_a_visible_seam(noise):
    """A wide slide is cut into blocks; its columns differ no more at a seam than elsewhere."""
    cells = cell_lattice(1400, 300, nucleus_h=0.3, body_h=0.1, ring_d=0.5, ring_share=1.0, ring_px=2.0)
    rgb = paint_slide(cells, uniform_fields(1400, 300), noise, APPEARANCE, (1400, 300)).astype(float)
    steps = np.abs(np.diff(rgb, axis=1)).mean(axis=(0, 2))
    seam = (640 // cells.pitch) * cells.pitch
    assert steps[seam - 1] < steps.mean() + 4 * steps.std()


def test_a_fold_is_darker_and_pen_adds_its_density(noise):
    cells = cell_lattice(500, 500, body_d=0.2)
    plain, folded, marked = (
        paint_slide(cells, uniform_fields(500, 500, **extra), noise, APPEARANCE, (500, 500))
        for extra in ({}, {"fold": 100.0}, {"pen": 100.0})
    )
    assert np.allclose(density(folded), 1.9 * density(plain), rtol=0.1)
    assert np.allclose(density(marked) - density(plain), APPEARANCE.pen, atol=0.03)


def test_blur_removes_fine_structure_only(noise):
    cells = cell_lattice(500, 500, nucleus_h=0.4, ring_d=0.6, ring_share=1.0, ring_px=2.0)
    sharp, blurred = (
        paint_slide(cells, uniform_fields(500, 500, **extra), noise, APPEARANCE, (500, 500))
        for extra in ({}, {"blur": 100.0})
    )
    fine = [np.abs(cv2.Laplacian(rgb.astype(np.float32), cv2.CV_32F)).mean() for rgb in (sharp, blurred)]
    assert fine[1] < 0.6 * fine[0]
    assert np.allclose(density(blurred), density(sharp), atol=0.03)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(12, 60))
@settings(max_examples=60)
def test_blocks_cover_a_slide_once(width, height, pitch):
    seen = np.zeros((-(-height // pitch), -(-width // pitch)), int)
    for block in plan_paint_blocks(width, height, pitch):
        seen[block.row : block.row + block.rows, block.column : block.column + block.columns] += 1
        assert max(block.rows, block.columns) * pitch + 2 * MARGIN <= NOISE_PX
    assert (seen == 1).all()
