"""Conformal sets: no gaps, never empty, all classes where a class has too few patients, and the stated coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.models.calibration.conformal import CalibrationScores, conformal_sets, fill_gaps, needed_patients


def scores_of(fit: np.ndarray, patients: np.ndarray | None = None) -> CalibrationScores:
    patients = np.arange(len(fit)) if patients is None else patients
    share = 1 / np.bincount(patients)[patients] if len(fit) else np.zeros(0)
    return CalibrationScores(fit, np.zeros(len(fit), np.int64), share, len(set(patients.tolist())))


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_a_class_needs_so_many_patients(coverage: float, needed: int) -> None:
    assert needed_patients(coverage) == needed


@given(st.integers(2, 6), st.integers(0, 30), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_sets_have_no_gaps_and_are_never_empty(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [scores_of(rng.random(n)) for _ in range(classes)]
    kept = conformal_sets(rng.dirichlet(np.ones(classes), 20)[:, None, :], scores, 0.9)
    assert kept.any(axis=1).all()
    assert (kept == fill_gaps(kept)).all()
    if n < needed_patients(0.9):
        assert kept.all()


@pytest.mark.parametrize("short", range(4))
def test_too_few_patients_of_one_class_leave_all_classes(short: int) -> None:
    rng = np.random.default_rng(0)
    scores = [scores_of(rng.random(8 if k == short else 40)) for k in range(4)]
    assert conformal_sets(np.full((3, 1, 4), 0.25), scores, 0.9).all()


def test_many_slides_of_one_patient_are_one_patient() -> None:
    fit = np.linspace(0.5, 0.9, 40)
    scores = [scores_of(fit, np.arange(40) % 3) for _ in range(2)]
    assert scores[0].patients == 3
    assert conformal_sets(np.array([[[0.99, 0.01]]]), scores, 0.9).all()


def test_a_slide_that_fits_no_class_keeps_the_ones_that_it_fits_best() -> None:
    scores = [scores_of(np.full(20, 0.9)), scores_of(np.full(20, 0.9))]
    assert conformal_sets(np.array([[[0.5, 0.5]]]), scores, 0.9).all()


@pytest.mark.parametrize("per_class", [9, 12, 25, 60])
@pytest.mark.parametrize("hard", [0, 1])
def test_each_class_is_covered_even_where_one_is_harder(per_class: int, hard: int) -> None:
    """Coverage on average hides a class that is missed: here one class is harder than the others."""
    rng = np.random.default_rng(per_class)
    covered = np.zeros(3)
    trials, new = 150, 20

    def draw(label: int, n: int) -> np.ndarray:
        centre = np.eye(3)[label] * (0.7 if label == hard else 3.0)
        logits = centre + rng.normal(0, 1, (n, 3))
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    for _ in range(trials):
        scores = [scores_of(draw(k, per_class)[:, k]) for k in range(3)]
        for k in range(3):
            covered[k] += conformal_sets(draw(k, new)[:, None, :], scores, 0.9)[:, k].mean()
    assert (covered / trials > 0.88).all()
