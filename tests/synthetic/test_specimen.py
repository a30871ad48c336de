"""Tests of a synthetic slide's content: score from its cells, artefacts and tissue within their masks."""

import cv2
import numpy as np
import pytest

from her2batch.synthetic.outlines import ARTEFACTS
from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, CellMix, SlideTruth, ihc_score, make_tissue
from her2batch.tasks import IHC_SCORES
from her2batch.vision.stain import Stains, optical_density, unmix


def paint_truth(truth, seed=0):
    """Return level 0 of a slide, (height, width, 3) uint8, without writing a file; and its tissue."""
    specimen = make_tissue(truth, seed)
    size = truth.width, truth.height
    return paint_slide(specimen.cells, specimen.fields, specimen.noise, specimen.appearance, size), specimen


def dab_density(rgb, specimen, px=1):
    """Return the DAB density, (h, w), at a resolution `px` times coarser, and the tumour mask."""
    small = cv2.resize(rgb, None, fx=1 / px, fy=1 / px, interpolation=cv2.INTER_AREA)
    appearance = specimen.appearance
    white = tuple(float(v) for v in appearance.white)
    _, d = unmix(optical_density(small, white), Stains(white, appearance.haematoxylin, appearance.dab))
    mask = cv2.resize(specimen.masks["tumour"].astype(np.uint8), d.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return d, mask.astype(bool)


@pytest.mark.parametrize("ihc", IHC_SCORES)
def test_the_cells_of_a_slide_have_its_score(ihc):
    specimen = make_tissue(SlideTruth("a", TYPICAL_MIXES[ihc], width=2400, height=2000))
    assert ihc_score(specimen.mix) == ihc
    assert specimen.n_cells > 300


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
def test_the_score_follows_the_10_percent_rule(mix, expected):
    assert ihc_score(mix) == expected


@pytest.mark.slow
def test_a_thumbnail_distinguishes_3_plus_but_not_1_plus_from_0():
    """Strong staining is visible at any resolution; faint, broken rings only where a membrane is wider than one px."""
    mean, rings = {}, {}
    for ihc in IHC_SCORES:
        truth = SlideTruth("a", TYPICAL_MIXES[ihc], width=2000, height=1600)
        rgb, specimen = paint_truth(truth)
        for px in (1, 16):
            d, tumour = dab_density(rgb, specimen, px)
            mean[ihc, px] = float(d[tumour].mean())
            rings[ihc, px] = float(np.percentile(d[tumour], 98))
    assert mean["3+", 16] > 2 * mean["2+", 16]
    assert abs(mean["1+", 16] - mean["0", 16]) < 0.02  # less than the variation of cytoplasm between slides
    assert rings["1+", 1] - rings["0", 1] > 2 * (rings["1+", 16] - rings["0", 16])


def test_er_is_stained_in_nuclei():
    truth = SlideTruth("a", CellMix(0.2, 0.1, 0.3, 0.4), "er", width=1500, height=1200)
    specimen = make_tissue(truth)
    assert not specimen.cells.ring_d.any()
    assert specimen.cells.nucleus_d.max() > 0.8
    assert not specimen.regions.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARTEFACTS)
def test_artefacts_lie_within_their_mask(name):
    base = SlideTruth("a", TYPICAL_MIXES["2+"], width=2000, height=1600)
    plain, _ = paint_truth(base)
    rgb, specimen = paint_truth(SlideTruth("a", TYPICAL_MIXES["2+"], artefacts=(name,), width=2000, height=1600))
    px = specimen.fields.px
    different = (np.abs(rgb.astype(int) - plain).max(axis=2) > 12).astype(np.float32)
    h, w = 1600 // px, 2000 // px
    changed = cv2.resize(different[: h * px, : w * px], (w, h), interpolation=cv2.INTER_AREA)
    mask = specimen.masks[name][: changed.shape[0], : changed.shape[1]]
    near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    assert mask.any()
    assert set(specimen.masks) == {"tissue", "tumour", name}
    assert changed[~near].max() == 0
    assert changed[mask].mean() > 0.05


def test_the_tissue_mask_covers_the_stain():
    rgb, specimen = paint_truth(SlideTruth("a", TYPICAL_MIXES["1+"], width=2000, height=1600))
    white = np.array(specimen.appearance.white)
    od = cv2.resize(-np.log10(np.maximum(rgb, 1) / white).mean(axis=2), specimen.masks["tissue"].shape[::-1],
                    interpolation=cv2.INTER_AREA)  # fmt: skip
    inside = cv2.erode(specimen.masks["tissue"].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    outside = ~cv2.dilate(specimen.masks["tissue"].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert od[outside].max() < 0.02
    assert (od[inside] > 0.02).mean() > 0.8  # the rest is lumen, and gaps between fibres
