"""Shifts of an image: shapes stay, each changes what it says, and DAB is monotone for any px."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from her2batch.vision.shifts.scanner_shifts import SHIFTS, UNCHANGED, ScannerShift, scale_dab, shift_image
from her2batch.vision.stain import Stains, optical_density, unmix
from tests.conftest import tissue_image

MPP = 0.5
STAINS = Stains((240.0, 238.0, 242.0))
PIXELS = arrays(np.uint8, (6, 5, 3), elements=st.integers(0, 255))


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return tissue_image(300, 260, brown=0.4)


@pytest.mark.parametrize("shift", [UNCHANGED, *SHIFTS], ids=lambda shift: shift.name)
def test_shape_and_type_stay(tissue: np.ndarray, shift: ScannerShift) -> None:
    before = tissue.copy()
    found = shift_image(tissue, shift, MPP, STAINS)
    assert (found.shape, found.dtype) == (tissue.shape, tissue.dtype)
    assert (tissue == before).all()
    assert (found != tissue).any() == (shift.kind not in ("none", "scale"))


def test_there_are_twelve_shifts_of_every_kind() -> None:
    assert len(SHIFTS) == len({shift.name for shift in SHIFTS}) == 12
    assert {shift.kind for shift in SHIFTS} == {"white", "gamma", "jpeg", "blur", "scale", "dab"}
    factors = [shift.value for shift in SHIFTS if shift.kind == "dab"]
    assert (min(factors), max(factors)) == (0.7, 1.4)


@given(PIXELS, st.floats(0.3, 3), st.floats(0.3, 3))
def test_more_dab_is_never_lighter(pixels: np.ndarray, one: float, other: float) -> None:
    weak, strong = (scale_dab(pixels, factor, STAINS) for factor in sorted((one, other)))
    assert (strong <= weak).all()


@given(PIXELS)
def test_same_amount_of_dab_changes_nothing(pixels: np.ndarray) -> None:
    assert (scale_dab(pixels, 1.0, STAINS) == pixels).all()


@pytest.mark.parametrize("factor", [0.7, 0.85, 1.2, 1.4])
def test_dab_is_scaled_in_optical_density_and_haematoxylin_stays(factor: float) -> None:
    dab, haematoxylin = np.meshgrid(np.linspace(0.05, 0.6, 20), np.linspace(0.0, 0.4, 20))
    od = haematoxylin[..., None] * np.array(STAINS.haematoxylin) + dab[..., None] * np.array(STAINS.dab)
    rgb = np.rint(np.array(STAINS.white) * 10**-od).astype(np.uint8)
    h, d = unmix(optical_density(scale_dab(rgb, factor, STAINS), STAINS.white), STAINS)
    assert np.abs(d - factor * dab).max() < 0.03
    assert np.abs(h - haematoxylin).max() < 0.03


def test_gamma_multiplies_densities_and_white_is_dimmed() -> None:
    grey = np.full((4, 4, 3), 128, np.uint8)
    assert shift_image(grey, ScannerShift("g", "gamma", 2.0), MPP, STAINS)[0, 0, 0] == round(255 * (128 / 255) ** 2)
    assert (
        shift_image(grey, ScannerShift("w", "white", channels=(1, 0.5, 0.25)), MPP, STAINS)[0, 0] == (128, 64, 32)
    ).all()


def test_blur_and_jpeg_keep_the_mean(tissue: np.ndarray) -> None:
    for shift in SHIFTS:
        if shift.kind in ("blur", "jpeg"):
            found = shift_image(tissue, shift, MPP, STAINS)
            assert abs(found.mean() - tissue.mean()) < 0.5
