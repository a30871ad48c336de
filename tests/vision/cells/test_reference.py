"""Figures of a slide: typical nuclei, hue and foreign colour."""

import numpy as np
import pytest

from her2batch.vision.cells.reference import fit_cell_reference, membrane_levels
from her2batch.vision.stain import Stains
from tests.vision.cells.drawing import MPP, STAINS, Canvas


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


def test_levels_rise_with_intensity_and_contrast() -> None:
    pale, dark = membrane_levels(Stains(nuclei=0.08)), membrane_levels(Stains(nuclei=0.4))
    assert list(pale) == sorted(pale)
    assert all(a < b for a, b in zip(pale, dark, strict=True))
