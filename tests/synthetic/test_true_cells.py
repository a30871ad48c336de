"""Tests of the truth of cells: positions and shapes as painted, categories in the shares of the mix, and matching."""

import cv2
import numpy as np
import pyarrow.compute as pc
import pytest

from her2batch.files.parquet import read_parquet
from her2batch.synthetic.cohort import make_cohort, paint_truth
from her2batch.synthetic.specimen import TYPICAL_MIXES, CellMix, SlideTruth
from her2batch.synthetic.true_cells import CELL_SCHEMA, empty_cells, match_cells
from her2batch.vision.stain import Stains, optical_density, separate_stains


@pytest.fixture(scope="module")
def painted():
    return paint_truth(SlideTruth("a", TYPICAL_MIXES["3+"], width=1500, height=1200, artefacts=("pen",)))


def inside(cells, k, shape, mpp, grow=1.0):
    """Return the px of the ellipse of cell k: (h, w) bool."""
    row = {name: cells[name][k].as_py() for name in ("x", "y", "long_axis", "short_axis", "angle")}
    mask = np.zeros(shape, np.uint8)
    axes = grow * row["long_axis"] / mpp, grow * row["short_axis"] / mpp
    cv2.ellipse(mask, ((row["x"], row["y"]), axes, np.degrees(row["angle"])), 1, -1)
    return mask.astype(bool)


def test_a_cohort_has_the_cells_of_every_slide(tmp_path):
    folder = make_cohort(tmp_path, 2, size=(700, 600), workers=1)
    for slide in (folder / "slides").iterdir():
        cells = read_parquet(folder / "truth" / f"{slide.stem}.cells.parquet")
        assert cells.schema.equals(CELL_SCHEMA)
        assert set(cells["slide_id"].to_pylist()) == {slide.stem}
        assert cells.num_rows > 20


def test_nuclei_are_darker_than_their_surroundings(painted):
    """The haematoxylin lies inside the ellipses of the table, not in the ring around them."""
    stains = Stains(painted.specimen.appearance.white)
    h, _, _, _ = separate_stains(optical_density(painted.rgb, stains.white), stains)
    cells = painted.cells
    clear = pc.and_(pc.is_null(cells["artefact"]), pc.equal(cells["category"], 0))
    quiet = cells.filter(clear)
    assert quiet.num_rows > 20
    differences = []
    for k in range(quiet.num_rows):
        nucleus = inside(quiet, k, h.shape, 0.25)
        ring = inside(quiet, k, h.shape, 0.25, 1.6) & ~inside(quiet, k, h.shape, 0.25, 1.25)
        differences.append(h[nucleus].mean() - h[ring].mean())
    assert np.median(differences) > 0.05
    assert np.mean(np.array(differences) > 0) > 0.95


def test_categories_have_the_shares_of_the_mix_and_membranes_their_completeness(painted):
    tumour = painted.cells.filter(painted.cells["tumour"])
    category, completeness = tumour["category"].to_numpy(), tumour["completeness"].to_numpy()
    shares = np.bincount(category, minlength=4) / len(category)
    assert np.allclose(shares, painted.specimen.mix, atol=0.02)  # a few cells have no visible nucleus
    means = [completeness[category == k].mean() for k in range(4)]
    assert means[0] == 0
    assert 0.3 < means[1] < 0.7
    assert means[2] > 0.85
    assert means[3] > 0.95
    density = tumour["membrane_dab"].to_numpy()
    assert [np.median(density[category == k]) > limit for k, limit in ((1, 0.15), (2, 0.3), (3, 0.8))] == [True] * 3


def test_kinds_differ_in_shape_as_in_tissue():
    cells = paint_truth(SlideTruth("b", TYPICAL_MIXES["1+"], width=1800, height=1500)).cells

    def median(kind, name):
        return float(np.median(cells.filter(pc.equal(cells["kind"], kind))[name].to_numpy()))

    assert median("fibroblast", "elongation") > 2.5
    assert median("lymphocyte", "elongation") < 1.5
    assert median("lymphocyte", "area") < 0.8 * median("tumour", "area")
    assert median("lymphocyte", "haematoxylin") > 1.2 * median("tumour", "haematoxylin")
    assert 15 < median("tumour", "area") < 60


def test_cells_outside_tumour_have_no_category_and_nuclear_markers_no_completeness():
    cells = paint_truth(SlideTruth("a", CellMix(0.4, 0.2, 0.2, 0.2), "ki67", width=900, height=800)).cells
    tumour = cells["tumour"].to_numpy()
    assert pc.is_null(cells["category"]).to_numpy().tolist() == (~tumour).tolist()
    assert cells["completeness"].null_count == cells.num_rows
    category = cells["category"].to_numpy(zero_copy_only=False)
    dab = cells["nuclear_dab"].to_numpy()
    medians = [np.median(dab[category == k]) for k in range(4)]
    assert medians == sorted(medians)
    assert medians[3] > 0.5


def test_cells_under_pen_are_named(painted):
    cells = painted.cells
    under = cells.filter(pc.equal(cells["artefact"], "pen"))
    assert 0 < under.num_rows < cells.num_rows
    px = painted.specimen.fields.px
    rows, columns = (np.asarray(under[name].to_numpy() // px, int) for name in "yx")
    assert painted.specimen.masks["pen"][rows, columns].all()


def test_detections_match_one_to_one_where_their_centre_lies_in_the_nucleus(painted):
    cells = painted.cells
    x, y = cells["x"].to_numpy(), cells["y"].to_numpy()
    exact = match_cells(cells, x, y, 0.25)
    assert (exact == np.arange(len(x))).all()
    assert (match_cells(cells, np.repeat(x, 2), np.repeat(y, 2), 0.25) >= 0).sum() == len(x)  # twice the same cell
    along = cells["long_axis"].to_numpy() / 2 / 0.25
    angle = cells["angle"].to_numpy()
    within = match_cells(cells, x + 0.5 * along * np.cos(angle), y + 0.5 * along * np.sin(angle), 0.25)
    assert (within == np.arange(len(x))).mean() > 0.95  # the rest lies in a neighbour as well
    beyond = match_cells(cells, x - 1.2 * along * np.cos(angle), y - 1.2 * along * np.sin(angle), 0.25)
    assert (beyond != np.arange(len(x))).all()


def test_nothing_matches_a_slide_without_cells():
    assert (match_cells(empty_cells(), np.array([1.0, 2.0]), np.array([3.0, 4.0]), 0.25) == -1).all()
    assert len(match_cells(empty_cells(), np.array([]), np.array([]), 0.25)) == 0
