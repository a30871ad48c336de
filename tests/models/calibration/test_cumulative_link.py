"""The cumulative-link model: without labelled slides it is the uncalibrated method; with them it learns its shift."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from her2batch.models.calibration.cumulative_link import (
    LinkModel,
    _negative_log_likelihood,
    cumulative_evidence,
    fit_link_model,
    uncalibrated_model,
)
from her2batch.models.calibration.fitting import PRIOR


def slides(n: int, classes: int = 4, shift: float = 0.0, seed: int = 0, further: int = 0) -> tuple:
    """Evidence whose logits are too high by `shift`, and the true classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    latent = 4.0 * labels[:, None] + rng.normal(0, 0.8, (n, 1))
    z = latent - 4.0 * (np.arange(classes - 1) + 0.5)[None] + shift
    more = rng.normal(size=(n, classes - 1, further))
    return np.concatenate([z[:, :, None], more], axis=2), labels


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_without_labelled_slides_the_probabilities_are_those_of_the_method(classes: int) -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(classes) * 2, 50)
    evidence = cumulative_evidence(p)[:, :, None]
    model = fit_link_model(evidence[:0], np.zeros(0, np.int64), PRIOR)
    assert model.probabilities(evidence) == pytest.approx(p, abs=0.01)


@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 2), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_probabilities_are_ordered_and_sum_to_1(classes: int, n: int, further: int, seed: int) -> None:
    evidence, labels = slides(n, classes, seed=seed, further=further)
    labels = np.random.default_rng(seed).permutation(labels)  # even where the labels make no sense
    p = fit_link_model(evidence, labels, PRIOR).probabilities(evidence)
    assert p.shape == (n, classes)
    assert p.min() >= 0
    assert p.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("shift", [-6.0, -3.0, 3.0, 6.0])
def test_a_laboratory_that_stains_otherwise_is_learnt_from_20_slides(shift: float) -> None:
    evidence, labels = slides(200, shift=shift)
    before = uncalibrated_model(3, 0).probabilities(evidence).argmax(axis=1) == labels
    after = fit_link_model(evidence[:20], labels[:20], PRIOR).probabilities(evidence).argmax(axis=1) == labels
    assert after.mean() > before.mean() + 0.1
    assert after.mean() > 0.9


def test_five_slides_do_not_spoil_a_method_that_is_right() -> None:
    evidence, labels = slides(200)
    right = (uncalibrated_model(3, 0).probabilities(evidence).argmax(axis=1) == labels).mean()
    for start in range(0, 60, 5):
        part = slice(start, start + 5)
        model = fit_link_model(evidence[part], labels[part], PRIOR)
        assert (model.probabilities(evidence).argmax(axis=1) == labels).mean() > right - 0.03


def test_one_wrong_label_among_twenty_does_not_decide() -> None:
    evidence, labels = slides(200)
    wrong = labels[:20].copy()
    wrong[0] = 3
    model = fit_link_model(evidence[:20], wrong, PRIOR)
    assert (model.probabilities(evidence).argmax(axis=1) == labels).mean() > 0.95


def test_two_slides_of_a_patient_weigh_as_much_as_one() -> None:
    evidence, labels = slides(8, shift=2.0)
    doubled = np.repeat(evidence, 2, axis=0), np.repeat(labels, 2)
    single = fit_link_model(evidence, labels, PRIOR)
    assert fit_link_model(*doubled, PRIOR, np.full(16, 0.5)).shift == pytest.approx(single.shift, abs=1e-4)


def test_the_gradient_is_that_of_the_likelihood() -> None:
    evidence, labels = slides(12, further=2, shift=1.0)
    weights, at = np.linspace(0.5, 1, 12), np.array([0.3, -0.2, 0.1, 0.4, -0.3, 0.2, 0.1])
    _, gradient = _negative_log_likelihood(at, evidence, labels, weights)
    numeric = approx_fprime(at, lambda x: _negative_log_likelihood(x, evidence, labels, weights)[0], 1e-7)
    assert gradient == pytest.approx(numeric, abs=1e-4)


def test_a_step_whose_own_evidence_is_stronger_never_gives_a_negative_probability() -> None:
    model = LinkModel(0.0, 1.0, np.array([-3.0, 3.0, 0.0]), np.zeros(0))
    p = model.probabilities(np.array([[[0.0], [0.0], [0.0]]]))
    assert p.min() == 0
    assert p.sum() == pytest.approx(1)


def test_the_same_slides_give_the_same_model() -> None:
    evidence, labels = slides(30, shift=2.0, further=1)
    first, second = (fit_link_model(evidence, labels, PRIOR) for _ in range(2))
    assert first.parameters.tolist() == second.parameters.tolist()
