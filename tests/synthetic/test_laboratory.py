"""Tests of laboratories: fixed figures within their ranges, the densities that they reach, and unchanged cells."""

import re
from dataclasses import replace

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.synthetic.cohort import paint_truth
from her2batch.synthetic.laboratory import FIGURES, SITES, laboratory, laboratory_of
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth, make_tissue
from her2batch.vision.stain import Stains, optical_density, separate_stains

THREE_PLUS = SlideTruth("a", TYPICAL_MIXES["3+"], width=700, height=600)


def white_of(rgb):
    return tuple(np.median(rgb[:12].reshape(-1, 3), axis=0).tolist())


def test_a_laboratory_always_has_the_same_figures():
    assert laboratory(7) == laboratory(7) == laboratory_of("7") == laboratory_of("lab-7")
    assert laboratory(7) != laboratory(8)
    assert laboratory_of("north") is SITES["north"]


@pytest.mark.parametrize("name", ["east", "lab-", "-3", "7.5"])
def test_an_unknown_laboratory_is_refused(name):
    with pytest.raises(InputError, match=re.escape(repr(name))):
        laboratory_of(name)


@pytest.mark.parametrize("figure", [one for one in FIGURES if one.name not in ("white", "tint", "hue", "subsampling")])
def test_figures_lie_within_their_documented_ranges_and_fill_them(figure):
    values = [getattr(laboratory(seed), figure.name) for seed in range(1, 100)]
    assert figure.low <= min(values)
    assert max(values) <= figure.high
    span = figure.high - figure.low
    assert min(values) < figure.low + 0.15 * span
    assert max(values) > figure.high - 0.15 * span


def test_stain_vectors_have_unit_length_and_a_quarter_of_scanners_is_dim():
    drawn = [laboratory(seed) for seed in range(1, 100)]
    for lab in drawn:
        assert np.linalg.norm(lab.haematoxylin) == pytest.approx(1)
        assert np.linalg.norm(lab.dab) == pytest.approx(1)
        assert lab.dab[2] > lab.haematoxylin[2] + 0.1
    assert 0.1 < np.mean([np.mean(lab.white) < 225 for lab in drawn]) < 0.45


def test_slides_reach_the_densities_of_dark_brown_tissue_and_of_pale_counterstain():
    """Intense membranes of real tissue have a DAB density of 1.2–2; pale nuclei one of haematoxylin of 0.05."""
    dark = replace(SITES["north"], dab_strength=1.4, black=0.06)
    pale = replace(SITES["north"], counterstain=0.28)
    membranes = paint_truth(THREE_PLUS, laboratory=dark)
    _, d, _, _ = separate_stains(optical_density(membranes.rgb, white_of(membranes.rgb)), Stains())
    assert np.percentile(d, 97) > 1.2
    nuclei = paint_truth(SlideTruth("a", TYPICAL_MIXES["0"], width=700, height=600), laboratory=pale)
    density = nuclei.cells.filter(nuclei.cells["tumour"])["haematoxylin"].to_numpy()
    assert 0.03 < np.median(density) < 0.09


def test_a_laboratory_changes_the_appearance_but_not_the_cells():
    first, second = (paint_truth(replace(THREE_PLUS, site=f"lab-{seed}")) for seed in (2, 5))
    assert np.abs(first.rgb.astype(int) - second.rgb).mean() > 3
    cells = [one.cells.filter(one.cells["tumour"]) for one in (first, second)]
    for name in ("x", "y", "category", "area"):
        assert cells[0][name].equals(cells[1][name])


@pytest.mark.slow
def test_every_figure_changes_the_picture():
    """An unused figure would silently vary nothing."""
    changes = {"dab_strength": 1.3, "counterstain": 0.5, "thickness": 1.2, "cytoplasm": 0.06, "blood": 0.04,
               "edge": 0.6, "blur_um": 0.3, "black": 0.1, "gamma": 1.2, "vignetting": 0.04,
               "white": (190.0, 190.0, 190.0)}  # fmt: skip
    small = replace(THREE_PLUS, width=512, height=512)
    plain = paint_truth(small).rgb
    for name, value in changes.items():
        rgb = paint_truth(small, laboratory=replace(SITES["north"], **{name: value})).rgb
        assert np.abs(rgb.astype(int) - plain).max() > 10, name


def test_the_edge_artefact_darkens_dab_at_the_edge_of_the_tissue_only():
    truth = SlideTruth("a", TYPICAL_MIXES["3+"], width=3000, height=2400)
    fields = make_tissue(truth, laboratory=replace(SITES["north"], edge=0.8)).fields
    at_edge, inside = (fields.tissue > 0) & (fields.tissue < 10), fields.tissue > 180
    assert fields.dab_factor[at_edge].min() > 1.6
    assert fields.dab_factor[inside].max() < 1.05
    plain, darker = (
        paint_truth(THREE_PLUS, laboratory=replace(SITES["north"], edge=edge)).cells["membrane_dab"].to_numpy()
        for edge in (0.0, 0.8)
    )
    assert np.percentile(darker / np.maximum(plain, 1e-6), 95) > 1.4


def test_the_contrast_stretch_raises_densities_and_a_dim_scanner_darkens_the_glass():
    def density(lab):
        rgb = paint_truth(THREE_PLUS, laboratory=lab).rgb
        return optical_density(rgb, white_of(rgb)).mean(axis=0)

    north = SITES["north"]
    plain, contrasty = density(north), density(replace(north, black=0.1))
    assert np.percentile(contrasty, 95) > 1.2 * np.percentile(plain, 95)
    dim = paint_truth(THREE_PLUS, laboratory=replace(north, white=(190.0, 188.0, 192.0))).rgb
    assert np.mean(white_of(dim)) == pytest.approx(190, abs=3)
