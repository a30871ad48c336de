"""Calibration on the predictions of the folds: temperature and plausible sets."""

import numpy as np
import pytest

from her2batch.models.predictor import apply_temperature, plausible_classes
from her2batch.training.make_bundle import fit_temperature, fit_threshold


def simulated(n: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Honest probabilities of three classes with labels drawn from them; then sharpened."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet((0.7, 0.7, 0.7), n)
    labels = np.array([rng.choice(3, p=row) for row in honest])
    return apply_temperature(honest.astype(np.float32), 1 / sharpness), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_scaling_corrects_overconfidence(sharpness: float) -> None:
    p, labels = simulated(4000, 0, sharpness)
    assert fit_temperature(p, labels) == pytest.approx(sharpness, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_plausible_sets_contain_the_true_class_of_nine_in_ten_slides(seed: int) -> None:
    p, labels = simulated(1500, seed)
    threshold = fit_threshold(p, labels)
    new, truth = simulated(4000, seed + 100)
    covered = np.mean([label in plausible_classes(row, threshold) for row, label in zip(new, truth, strict=True)])
    assert 0.87 < covered < 0.96


def test_too_few_slides_give_no_threshold() -> None:
    p, labels = simulated(8, 0)
    assert fit_threshold(p, labels) is None
    assert fit_threshold(*simulated(9, 0)) is not None
