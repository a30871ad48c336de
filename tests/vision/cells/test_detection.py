"""Tests of cell detection on drawn and synthetic cells."""

from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth, make_tissue
from her2batch.vision.cells.density import coarse_scale
from her2batch.vision.cells.detection import (
    CELL_MARGIN_UM,
    Cells,
    cell_contours,
    detect_cells,
    fit_cell_reference,
)
from her2batch.vision.stain import Stains, fit_stain_vectors
from tests.vision.cells.drawing import MPP, REFERENCE, STAINS, Canvas


def find(canvas: Canvas, marker="membrane", background: float = 0.0) -> Cells:
    return detect_cells(canvas.pixels(background), MPP, STAINS, REFERENCE, marker)


class TestNuclei:
    def test_a_nucleus_is_found_where_it_is_with_its_area(self) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(31, 24, radius=4)
        cells = find(canvas)
        assert len(cells) == 1
        assert (cells.x[0] + 0.5) * MPP == pytest.approx(31, abs=0.5)
        assert (cells.y[0] + 0.5) * MPP == pytest.approx(24, abs=0.5)
        assert cells.area[0] == pytest.approx(np.pi * 16, rel=0.25)
        assert cells.elongation[0] < 1.2

    @pytest.mark.parametrize("distance", [5.5, 6.5, 8.0])
    @pytest.mark.parametrize("angle", [0.0, 0.5, 1.2])
    def test_touching_nuclei_are_split(self, distance: float, angle: float) -> None:
        canvas = Canvas(60, 60)
        for side in (-0.5, 0.5):
            canvas.nucleus(30 + side * distance * np.cos(angle), 30 + side * distance * np.sin(angle))
        assert len(find(canvas)) == 2

    def test_a_long_nucleus_is_one_and_elongated(self) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(30, 30, radius=3.5, stretch=1.6)
        cells = find(canvas)
        assert len(cells) == 1
        assert cells.elongation[0] > 1.8

    @pytest.mark.parametrize(("h", "d"), [(0.25, 0.0), (0.15, 0.3), (0.05, 0.8), (0.0, 0.6)])
    def test_brown_nuclei_are_nuclei_of_nuclear_markers(self, h: float, d: float) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(30, 30, h=h, d=d)
        cells = find(canvas, "nuclear")
        assert len(cells) == 1
        assert cells.nuclear_dab[0] == pytest.approx(d, abs=0.15 * d + 0.03)

    def test_nuclear_categories_follow_the_density(self) -> None:
        canvas = Canvas(160, 60)
        for k, d in enumerate((0.0, 0.18, 0.4, 0.9)):
            canvas.nucleus(20 + 40 * k, 30, radius=4, d=d)
        cells = find(canvas, "nuclear")
        assert cells.category[np.argsort(cells.x)].tolist() == [0, 1, 2, 3]

    def test_pale_nuclei_in_a_brown_net_are_cells(self) -> None:
        canvas = Canvas(100, 100)
        for x in range(15, 95, 12):
            for y in range(15, 95, 12):
                canvas.ring(x, y, 1.0, width=1.4, radius=6)
        cells = find(canvas)
        assert len(cells) >= 0.8 * 49
        assert (cells.category == 3).mean() > 0.9

    def test_glass_has_no_cells(self) -> None:
        assert len(find(Canvas(60, 60))) == 0

    def test_excluded_px_have_no_cells(self) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(30, 30)
        pixels = canvas.pixels()
        excluded = np.ones(pixels.shape[:2], bool)
        assert len(detect_cells(pixels, MPP, STAINS, REFERENCE, "membrane", excluded)) == 0


class TestMembranes:
    @given(st.floats(0.1, 0.9), st.floats(20, 40), st.floats(20, 40))
    @settings(max_examples=20, deadline=None)
    def test_the_stained_share_of_the_circumference_is_measured(self, share: float, x: float, y: float) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(x, y)
        canvas.ring(x, y, 0.4, share)
        assert find(canvas).faint[0] == pytest.approx(share, abs=0.13)

    def test_categories_follow_the_wording(self) -> None:
        canvas = Canvas(200, 60)
        for k, (d, share) in enumerate([(0, 0), (0.22, 0.45), (0.25, 1.0), (0.5, 1.0), (1.2, 1.0)]):
            canvas.nucleus(20 + 40 * k, 30)
            canvas.ring(20 + 40 * k, 30, d, share)
        cells = find(canvas)
        assert cells.category[np.argsort(cells.x)].tolist() == [0, 1, 2, 2, 3]

    def test_a_shared_membrane_counts_for_both(self) -> None:
        canvas = Canvas(60, 60)
        for x in (24.5, 35.5):
            canvas.nucleus(x, 30)
        canvas.d[(abs(canvas.x - 30) < 0.6) & (abs(canvas.y - 30) < 5)] = 0.5
        cells = find(canvas)
        assert len(cells) == 2
        assert (cells.faint >= 0.25).all()

    @pytest.mark.parametrize("clumps", [1, 2])
    def test_a_clump_is_no_ring(self, clumps: int) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(30, 30)
        for k in range(clumps):
            canvas.clump(30 + 5.5 * np.cos(3 * k), 30 + 5.5 * np.sin(3 * k), 1.0, radius=1.2)
        cells = find(canvas)
        assert cells.category[0] <= 1
        assert cells.faint[0] <= 0.2 * clumps

    @pytest.mark.parametrize("background", [0.1, 0.25, 0.5])
    def test_brown_cytoplasm_is_no_membrane(self, background: float) -> None:
        canvas = Canvas(60, 60)
        canvas.nucleus(30, 30)
        cells = find(canvas, background=background)
        assert len(cells) == 1
        assert cells.category[0] == 0
        assert cells.cytoplasm_dab[0] == pytest.approx(background, abs=0.05)


@cache
def tissue(ihc: str = "2+") -> tuple[NDArray[np.uint8], Stains]:
    """Return a synthetic slide at 0.5 µm/px and its stains."""
    truth = SlideTruth(f"cells-{ihc}", TYPICAL_MIXES[ihc], width=1600, height=1200)
    made = make_tissue(truth, 5)
    pixels = paint_slide(made.cells, made.fields, made.noise, made.appearance, (1600, 1200))
    small = cv2.resize(pixels, (800, 600), interpolation=cv2.INTER_AREA)
    return small, fit_stain_vectors(small[None, 100:500, 200:600], (243.0, 243.0, 244.0), 0.5)


def test_blocks_with_a_margin_give_the_cells_of_the_whole() -> None:
    pixels, stains = tissue()
    reference = fit_cell_reference(pixels[None, 100:500, 200:600], MPP, stains)
    whole = detect_cells(pixels, MPP, stains, reference, "membrane")
    margin = round(CELL_MARGIN_UM / MPP / coarse_scale(MPP)) * coarse_scale(MPP)
    parts = []
    for top in range(0, 600, 300):
        for left in range(0, 800, 400):
            y, x = max(top - margin, 0), max(left - margin, 0)
            block = np.ascontiguousarray(pixels[y : top + 300 + margin, x : left + 400 + margin])
            cells = detect_cells(block, MPP, stains, reference, "membrane")
            core = cells.within((left - x, top - y, left - x + 400, top - y + 300))
            parts.append(np.stack([core.x + x, core.y + y, core.faint, core.moderate, core.tumour, core.category], 1))
    found = np.concatenate(parts)
    expected = np.stack([whole.x, whole.y, whole.faint, whole.moderate, whole.tumour, whole.category], 1)
    assert len(whole) > 200
    assert len(found) == len(expected)
    order, wanted = np.lexsort(found[:, :2].T.round(1)), np.lexsort(expected[:, :2].T.round(1))
    np.testing.assert_allclose(found[order], expected[wanted], atol=1e-3)


def test_outlines_surround_their_nuclei() -> None:
    pixels, stains = tissue()
    reference = fit_cell_reference(pixels[None, 100:500, 200:600], MPP, stains)
    part = np.ascontiguousarray(pixels[200:424, 300:524])
    cells, outlines = cell_contours(part, MPP, stains, reference, "membrane")
    assert outlines.shape == (len(cells), 16, 2)
    x, y = np.moveaxis(outlines, 2, 0)
    area = 0.5 * abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(axis=1)) * MPP**2
    assert np.median(area / cells.area) == pytest.approx(1, abs=0.2)
