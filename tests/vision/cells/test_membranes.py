"""Membranes: rings, shared membranes, clumps, brown cytoplasm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.vision.cells.detection import Cells, detect_cells
from tests.vision.cells.drawing import MPP, REFERENCE, STAINS, Canvas


def find(canvas: Canvas, marker="membrane", background: float = 0.0) -> Cells:
    return detect_cells(canvas.pixels(background), MPP, STAINS, REFERENCE, marker)


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

    @pytest.mark.parametrize("brown", [0.06, 0.1, 0.15])
    def test_brown_cytoplasm_between_pale_nuclei_is_no_membrane(self, brown: float) -> None:
        cells = find(nest(brown, ring=0.0))
        assert len(cells) == 9
        assert (cells.category == 0).all()

    def test_membranes_that_stand_out_of_brown_cytoplasm_are_found(self) -> None:
        cells = find(nest(0.15, ring=0.45))
        assert len(cells) == 9
        assert (cells.faint > 0.8).all()


def nest(brown: float, ring: float) -> Canvas:
    """Return nine cells side by side whose cytoplasm, but not whose nuclei, is brown."""
    canvas, places = Canvas(60, 60), (19.0, 30.0, 41.0)
    for x, y in ((x, y) for x in places for y in places):
        canvas.nucleus(x, y)
        canvas.ring(x, y, ring)
    tumour = (abs(canvas.x - 30) < 17) & (abs(canvas.y - 30) < 17)
    canvas.d = np.where(tumour & (canvas.h == 0), np.maximum(canvas.d, brown), canvas.d)
    return canvas
