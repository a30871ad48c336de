"""Classifiers on counts of patch classes: learning, the search of settings, and refused data."""

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.models.heads import head_probabilities
from her2batch.settings import CountsSettings
from her2batch.training.fit_counts import GRIDS, fit_count_classifier

QUICK = CountsSettings(search=False)


def examples(n: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    shares = rng.dirichlet(np.ones(4), n) * 0.6 + np.eye(4)[labels] * 0.4
    return np.hstack([shares, rng.uniform(2, 5, (n, 1))]), labels, [f"p{k // 3}" for k in range(n)]


@pytest.mark.parametrize("method", GRIDS)
def test_a_classifier_learns_from_counts_and_not_from_noise(method: str) -> None:
    features, labels, patients = examples(90)
    new, truth, _ = examples(90, seed=1)
    p = head_probabilities(fit_count_classifier(method, features, labels, patients, 3, QUICK, 0), new, 3)
    assert (p.argmax(1) == truth).mean() > 0.8
    shuffled = np.random.default_rng(2).permutation(labels)
    p = head_probabilities(fit_count_classifier(method, features, shuffled, patients, 3, QUICK, 0), new, 3)
    assert (p.argmax(1) == truth).mean() < 0.6


@pytest.mark.parametrize("method", ["svm", "mlp"])
@pytest.mark.slow
def test_a_search_gives_the_same_head_twice(method: str) -> None:
    features, labels, patients = examples(45)
    one, other = (
        fit_count_classifier(method, features, labels, patients, 3, CountsSettings(inner_folds=2), 0) for _ in range(2)
    )
    assert np.array_equal(head_probabilities(one, features, 3), head_probabilities(other, features, 3))


@pytest.mark.slow
def test_a_search_finds_the_better_values() -> None:
    """A wide margin under much noise wants a smooth machine; the same grid's least one memorises."""
    features, labels, patients = examples(60)
    head = fit_count_classifier("svm", features, labels, patients, 3, CountsSettings(inner_folds=3), 0)
    found = head[-1].calibrated_classifiers_[0].estimator.get_params()
    assert found["C"] in GRIDS["svm"].grid["C"]
    assert found["gamma"] in GRIDS["svm"].grid["gamma"]


@pytest.mark.parametrize("method", GRIDS)
def test_a_class_with_few_slides_can_be_trained(method: str) -> None:
    features, labels, patients = examples(30)
    rare = np.r_[np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:1]]
    head = fit_count_classifier(
        method, features[rare], labels[rare], [patients[k] for k in rare], 3, CountsSettings(), 0
    )
    p = head_probabilities(head, features, 3)
    assert np.allclose(p.sum(1), 1)
    assert np.isfinite(p).all()


def test_a_single_class_is_refused() -> None:
    features, _, patients = examples(9)
    with pytest.raises(InputError, match="one class"):
        fit_count_classifier("mlp", features, np.zeros(9, np.int64), patients, 3, QUICK, 0)


def test_an_unknown_classifier_is_refused() -> None:
    features, labels, patients = examples(9)
    with pytest.raises(InputError, match="random-forest"):
        fit_count_classifier("xgboost", features, labels, patients, 3, QUICK, 0)
