"""Cells of a synthetic slide: blocks with a margin give those of the whole, and outlines surround nuclei."""

from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth, make_tissue
from her2batch.vision.cells.density import coarse_scale
from her2batch.vision.cells.detection import (
    CELL_MARGIN_UM,
    Cells,
    Marker,
    cell_contours,
    detect_cells,
    fit_cell_reference,
)
from her2batch.vision.stain import Stains, fit_stain_vectors
from tests.vision.cells.drawing import MPP


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


@pytest.mark.parametrize("marker", ["membrane", "nuclear"])
def test_the_rim_of_an_air_bubble_has_no_cells_and_changes_no_others(marker: Marker) -> None:
    pixels, stains = tissue("1+")
    distance = np.abs(np.hypot(*np.mgrid[-300:300, -400:400]) - 200) * MPP  # µm from a ring of 100 µm
    rim = 0.3 * np.exp(-((distance / 6) ** 2))
    marked = np.round(pixels * 10 ** -rim[..., None]).astype(np.uint8)
    reference = fit_cell_reference(pixels[None, 100:500, 200:600], MPP, stains)
    plain, found = (detect_cells(one, MPP, stains, reference, marker) for one in (pixels, marked))

    def of(cells: Cells, inside: bool) -> Cells:
        away = distance[cells.y.astype(int), cells.x.astype(int)]
        return cells.select(away < 5 if inside else away > 25)

    assert len(of(plain, True)) > 10
    assert len(of(found, True)) == 0
    before, after = of(plain, False), of(found, False)
    near = np.hypot(before.x[:, None] - after.x, before.y[:, None] - after.y)  # px
    same = (near.min(axis=1) < 1) & (after.category[near.argmin(axis=1)] == before.category)
    assert len(before) > 100
    assert same.mean() > 0.97


def test_outlines_surround_their_nuclei() -> None:
    pixels, stains = tissue()
    reference = fit_cell_reference(pixels[None, 100:500, 200:600], MPP, stains)
    part = np.ascontiguousarray(pixels[200:424, 300:524])
    cells, outlines = cell_contours(part, MPP, stains, reference, "membrane")
    assert outlines.shape == (len(cells), 16, 2)
    x, y = np.moveaxis(outlines, 2, 0)
    area = 0.5 * abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(axis=1)) * MPP**2
    assert np.median(area / cells.area) == pytest.approx(1, abs=0.2)
