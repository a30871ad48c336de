"""Figures of a slide: typical nuclei, hue and foreign colour."""

import numpy as np
import pytest

from her2batch.synthetic.specimen import PEN_DENSITIES
from her2batch.vision.cells.reference import fit_cell_reference, membrane_levels
from her2batch.vision.stain import Stains
from tests.vision.cells.drawing import MPP, STAINS, WHITE, Canvas


def tiles(h: float = 0.25, d: float = 0.4) -> np.ndarray:
    canvas = Canvas(112, 112)
    for x in range(12, 110, 14):
        for y in range(12, 110, 14):
            canvas.nucleus(x, y, h=h)
            canvas.ring(x, y, d)
    return canvas.pixels()[None]


@pytest.mark.parametrize("h", [0.12, 0.25, 0.4])
def test_typical_nuclei_follow_the_counterstain(h: float) -> None:
    assert fit_cell_reference(tiles(h), MPP, STAINS).nuclei == pytest.approx(h, rel=0.3)


def test_a_grey_copy_has_no_hue() -> None:
    grey = np.repeat(tiles().mean(axis=3, keepdims=True), 3, axis=3).astype(np.uint8)
    assert fit_cell_reference(tiles(), MPP, STAINS).hue_spread > 0.1
    assert fit_cell_reference(grey, MPP, STAINS).hue_spread < 0.01


def test_random_colours_are_foreign() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    assert fit_cell_reference(noise, MPP, STAINS).foreign > 0.12
    assert fit_cell_reference(tiles(), MPP, STAINS).foreign < 0.1


@pytest.mark.parametrize("pen", PEN_DENSITIES, ids=["green", "blue", "black", "red"])
def test_pen_across_the_tissue_changes_no_figure(pen: tuple[float, float, float]) -> None:
    plain = np.repeat(tiles(), 2, axis=0)
    marked = plain.copy()
    stroke = marked[0, 80:150]  # 35 µm
    stroke[:] = np.round(stroke * 10 ** -np.asarray(pen))
    before, after = fit_cell_reference(plain, MPP, STAINS), fit_cell_reference(marked, MPP, STAINS)
    assert after.nuclei == pytest.approx(before.nuclei, rel=0.1)
    assert after.nuclei_and_dab == pytest.approx(before.nuclei_and_dab, rel=0.1)
    assert after.foreign == pytest.approx(before.foreign, abs=0.02)
    assert after.hue_spread == pytest.approx(before.hue_spread, abs=0.03)


def test_the_rim_of_an_air_bubble_changes_no_figure() -> None:
    plain = np.repeat(tiles(), 2, axis=0)
    distance = np.abs(np.hypot(*np.mgrid[-112:112, -112:112]) - 70) * MPP  # µm from a ring of 70 µm
    rim = 0.25 * np.exp(-((distance / 5) ** 2))
    marked = plain.copy()
    marked[0] = np.round(marked[0] * 10 ** -rim[..., None])
    before, after = fit_cell_reference(plain, MPP, STAINS), fit_cell_reference(marked, MPP, STAINS)
    assert after.nuclei == pytest.approx(before.nuclei, rel=0.1)


@pytest.mark.parametrize(("d", "width", "left", "black"), [(1.2, 3.0, 0.4, 0), (2.2, 2.0, 0.0, 60)])
def test_haematoxylin_that_is_left_in_dark_brown_is_not_that_of_nuclei(d, width, left, black) -> None:
    canvas, places = Canvas(112, 112), range(12, 110, 12)
    for x, y in ((x, y) for x in places for y in places):
        canvas.nucleus(x, y, h=0.12)
        canvas.ring(x, y, d, width=width)
    canvas.h += left * canvas.d
    scanned = np.clip((canvas.pixels().astype(float) - black) * WHITE / (WHITE - black), 0, 255).astype(np.uint8)
    assert fit_cell_reference(scanned[None], MPP, STAINS).nuclei < 0.18


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_brown_nuclei_do_not_hide_pale_unstained_ones(share: float) -> None:
    canvas, places = Canvas(168, 168), np.arange(12, 166, 14)
    brown = np.random.default_rng(3).random((len(places), len(places))) < share
    for (column, row), stained in np.ndenumerate(brown):
        canvas.nucleus(places[column], places[row], h=0.45 if stained else 0.15, d=0.9 if stained else 0.0)
    assert fit_cell_reference(canvas.pixels()[None], MPP, STAINS).nuclei_and_dab < 0.17


def test_a_colour_that_covers_the_tissue_is_its_stain_and_not_pen() -> None:
    red = np.round(tiles() * 10 ** -np.asarray(PEN_DENSITIES[3])).astype(np.uint8)
    assert fit_cell_reference(red, MPP, STAINS).foreign > 0.12


def test_levels_rise_with_intensity_and_contrast() -> None:
    pale, dark = membrane_levels(Stains(nuclei=0.08)), membrane_levels(Stains(nuclei=0.4))
    assert list(pale) == sorted(pale)
    assert all(a < b for a, b in zip(pale, dark, strict=True))
