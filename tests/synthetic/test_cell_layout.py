"""Tests of the layout of cells: their kinds, categories in exact shares, blood, and patterns of staining."""

import numpy as np
import pytest

from her2batch.synthetic.cell_layout import (
    ERYTHROCYTE,
    FIBROBLAST,
    LYMPHOCYTE,
    STROMA,
    TUMOUR,
    CellStaining,
    add_blood,
    assign_staining,
    make_cells,
    make_lattice,
)
from her2batch.synthetic.laboratory import SITES

PX = 32


@pytest.fixture(scope="module")
def lattice():
    tissue, islands = np.full((60, 80), 100, np.float32), np.full((60, 80), -1, np.float32)
    islands[:, :40] = 1
    return make_lattice(np.random.default_rng(0), (80 * PX, 60 * PX), 0.25, PX, tissue, islands)


def draw_cells(lattice, pattern="usual", stain="her2", category=2):
    staining = np.full(lattice.kind.shape, category, np.uint8)
    return make_cells(
        np.random.default_rng(1), lattice, staining, CellStaining(stain, pattern, 0.25, 0.3, SITES["north"])
    )


def test_tumour_lies_in_islands_and_stroma_between_them(lattice):
    left = lattice.x < 40 * PX
    assert not (lattice.kind[~left] == TUMOUR).any()
    assert (lattice.kind[left & (lattice.kind > 0)] == TUMOUR).all()
    assert {STROMA, FIBROBLAST, LYMPHOCYTE} <= set(np.unique(lattice.kind))


def test_categories_have_exactly_the_shares_of_the_mix(lattice):
    staining = assign_staining(np.random.default_rng(2), lattice, (0.1, 0.2, 0.3, 0.4), 8.0, (60, 80))
    tumour = lattice.kind == TUMOUR
    counts = np.bincount(staining[tumour], minlength=4)
    assert np.allclose(counts / tumour.sum(), (0.1, 0.2, 0.3, 0.4), atol=1 / tumour.sum())
    assert not staining[~tumour].any()


def test_blood_takes_its_share_outside_tumour(lattice):
    with_blood = add_blood(np.random.default_rng(3), lattice, 0.05, 8.0, (60, 80))
    outside = np.isin(lattice.kind, (STROMA, FIBROBLAST, LYMPHOCYTE))
    assert np.mean(with_blood.kind[outside] == ERYTHROCYTE) == pytest.approx(0.05, abs=0.01)
    assert (with_blood.kind[~outside] == lattice.kind[~outside]).all()
    assert add_blood(np.random.default_rng(3), lattice, 0.0, 8.0, (60, 80)) is lattice
    assert draw_cells(with_blood).nucleus_d[with_blood.kind == ERYTHROCYTE].min() > 0.1


def test_patterns_decide_where_dab_is(lattice):
    tumour = lattice.kind == TUMOUR
    usual, cytoplasmic, weak, nuclear = (
        draw_cells(lattice), draw_cells(lattice, "cytoplasmic"), draw_cells(lattice, "weak-complete"),
        draw_cells(lattice, stain="ki67"),
    )  # fmt: skip
    assert usual.ring_d[tumour].mean() > 0.3
    assert not usual.nucleus_d.any()
    assert not cytoplasmic.ring_d.any()
    assert cytoplasmic.body_d[tumour].min() > 0.2
    assert weak.ring_d[tumour].mean() < 0.6 * usual.ring_d[tumour].mean()
    assert (weak.ring_share == usual.ring_share).all()
    assert not nuclear.ring_d.any()
    assert nuclear.nucleus_d[tumour].mean() > 0.4
