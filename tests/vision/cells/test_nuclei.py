"""Nuclei: found, split, and told from glass."""

import numpy as np
import pytest

from her2batch.vision.cells.detection import Cells, detect_cells
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

    @pytest.mark.parametrize("d", [0.12, 0.25, 0.4])
    def test_brown_without_haematoxylin_is_no_nucleus_of_a_nuclear_marker(self, d: float) -> None:
        canvas = Canvas(100, 60)
        canvas.nucleus(25, 30, h=0.25, d=d)
        canvas.nucleus(75, 30, h=0.0, d=d)  # an erythrocyte, or a patch of brown cytoplasm
        cells = find(canvas, "nuclear")
        assert (cells.x * MPP).tolist() == pytest.approx([25], abs=1)

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
