"""What a synthetic slide shows: its score comes from its cells, and everything is where its mask says."""

import cv2
import numpy as np
import pytest

from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import ARTEFACTS, TYPICAL_MIXES, CellMix, SlideTruth, ihc_score, make_tissue
from her2batch.tasks import IHC_SCORES
from her2batch.vision.stain import Stains, optical_density, unmix


def painted(truth, seed=0):
    """Level 0 of a slide: (height, width, 3) uint8, without going through a file."""
    one = make_tissue(truth, seed)
    return paint_slide(one.cells, one.fields, one.noise, one.appearance, (truth.width, truth.height)), one


def dab(rgb, one, px=1):
    """Mean DAB density in tissue, at a resolution `px` times coarser."""
    small = cv2.resize(rgb, None, fx=1 / px, fy=1 / px, interpolation=cv2.INTER_AREA)
    white = tuple(float(v) for v in one.appearance.white)
    _, d = unmix(optical_density(small, white), Stains(white, one.appearance.haematoxylin, one.appearance.dab))
    mask = cv2.resize(one.masks["tumour"].astype(np.uint8), d.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return d, mask.astype(bool)


@pytest.mark.parametrize("ihc", IHC_SCORES)
def test_each_score_is_painted_from_cells_that_make_it(ihc):
    one = make_tissue(SlideTruth("a", TYPICAL_MIXES[ihc], width=2400, height=2000))
    assert ihc_score(one.mix) == ihc
    assert one.n_cells > 300


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (CellMix(1.0, 0.0, 0.0, 0.0), "0"),
        (CellMix(0.90, 0.10, 0.0, 0.0), "0"),
        (CellMix(0.89, 0.11, 0.0, 0.0), "1+"),
        (CellMix(0.50, 0.39, 0.11, 0.0), "2+"),
        (CellMix(0.90, 0.0, 0.0, 0.10), "2+"),
        (CellMix(0.89, 0.0, 0.0, 0.11), "3+"),
    ],
)
def test_the_score_is_the_guidelines_ten_percent(mix, expected):
    assert ihc_score(mix) == expected


def test_a_thumbnail_shows_three_plus_but_not_one_plus_from_zero():
    """Strong staining is seen at any resolution; faint, broken rings only where a membrane is more than one px."""
    mean, rings = {}, {}
    for ihc in IHC_SCORES:
        truth = SlideTruth("a", TYPICAL_MIXES[ihc], width=2000, height=1600)
        rgb, one = painted(truth)
        for px in (1, 16):
            d, tumour = dab(rgb, one, px)
            mean[ihc, px] = float(d[tumour].mean())
            rings[ihc, px] = float(np.percentile(d[tumour], 98))
    assert mean["3+", 16] > 2 * mean["2+", 16]
    assert abs(mean["1+", 16] - mean["0", 16]) < 0.02  # less than cytoplasm differs from slide to slide
    assert rings["1+", 1] - rings["0", 1] > 2 * (rings["1+", 16] - rings["0", 16])


def test_receptors_are_stained_in_nuclei():
    truth = SlideTruth("a", CellMix(0.2, 0.1, 0.3, 0.4), "er", width=1500, height=1200)
    one = make_tissue(truth)
    assert not one.cells.ring_d.any()
    assert one.cells.nucleus_d.max() > 0.8
    assert not one.regions.any()


@pytest.mark.parametrize("name", ARTEFACTS)
def test_artefacts_are_where_their_mask_is(name):
    base = SlideTruth("a", TYPICAL_MIXES["2+"], width=2000, height=1600)
    plain, _ = painted(base)
    rgb, one = painted(SlideTruth("a", TYPICAL_MIXES["2+"], artefacts=(name,), width=2000, height=1600))
    px = one.fields.px
    different = (np.abs(rgb.astype(int) - plain).max(axis=2) > 12).astype(np.float32)
    h, w = 1600 // px, 2000 // px
    changed = cv2.resize(different[: h * px, : w * px], (w, h), interpolation=cv2.INTER_AREA)
    mask = one.masks[name][: changed.shape[0], : changed.shape[1]]
    near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    assert mask.any()
    assert set(one.masks) == {"tissue", "tumour", name}
    assert changed[~near].max() == 0
    assert changed[mask].mean() > 0.05


def test_the_tissue_mask_is_where_stain_is():
    rgb, one = painted(SlideTruth("a", TYPICAL_MIXES["1+"], width=2000, height=1600))
    white = np.array(one.appearance.white)
    od = cv2.resize(-np.log10(np.maximum(rgb, 1) / white).mean(axis=2), one.masks["tissue"].shape[::-1],
                    interpolation=cv2.INTER_AREA)  # fmt: skip
    inside = cv2.erode(one.masks["tissue"].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    outside = ~cv2.dilate(one.masks["tissue"].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert od[outside].max() < 0.02
    assert (od[inside] > 0.02).mean() > 0.8  # the rest is lumen, and gaps between fibres
