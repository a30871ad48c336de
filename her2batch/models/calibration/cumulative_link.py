"""A cumulative-link model whose prior is an uncalibrated method: with no labelled slides it is that method.

The model is P(y ≥ k | x) = σ(shift + step_k + slope · z_k + Σ_j weight_j · x_kj) for the steps k = 1 … K − 1 between K
ordered classes (McCullagh, J R Stat Soc B 1980; with evidence of its own for each step: Peterson & Harrell, Appl Stat
1990). z_k is the logit of P(y ≥ k) by the uncalibrated method. x_kj is further evidence: a measurement, the same for
all steps, or the difference of another method's logit from z_k, so that with a slope of 1 a weight of 1 puts that
method in the place of this one (a logarithmic opinion pool; Genest & Zidek, Stat Sci 1986). All steps share one slope
and one weight for each evidence, so the parameters are few: one shift, K − 1 steps, one slope and the weights. Their
Gaussian prior is centred on the uncalibrated method (shift, steps and weights 0, slope 1), and the fit is the maximum
of the posterior, so few slides move the method a little and many decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOGIT_LIMIT: Final = 6.0
"""Largest logit of the uncalibrated method: probabilities beyond 0.9975 are claims that no laboratory can check."""

LAPSE: Final = 0.01
"""Share of slides whose label says nothing about the evidence, in the likelihood: one mislabelled slide cannot decide.
Readers of one laboratory contradict themselves more often than that."""


@dataclass(frozen=True)
class LinkPrior:
    """Standard deviations of the Gaussian prior.

    shift: of all steps together, in logits: a laboratory that stains more or less strongly.  step: of each step by
    itself.  slope: of the natural logarithm of the slope.  weight: of further evidence, per its unit.  other: of the
    weight of another method, whose evidence is the difference of its logits from the method's own.
    """

    shift: float
    step: float
    slope: float
    weight: float
    other: float


@dataclass(frozen=True)
class LinkModel:
    """A fitted model. shift, slope: numbers.  steps: (K − 1,).  weights: (J,)."""

    shift: float
    slope: float
    steps: Floats
    weights: Floats

    @property
    def parameters(self) -> Floats:
        """All parameters as one vector, the slope as its logarithm: (K + 1 + J,)."""
        return np.concatenate([[self.shift, np.log(self.slope)], self.steps, self.weights])

    def cumulative_logits(self, evidence: Floats) -> Floats:
        """Return the logits of P(y ≥ k), k = 1 … K − 1, which fall from step to step: (n, K − 1, 1 + J) → (n, K − 1).

        A step whose own evidence says more than the step below counts as that step.
        """
        return np.minimum.accumulate(_logits(self.parameters, evidence), axis=1)

    def probabilities(self, evidence: Floats) -> Floats:
        """Return the probability of each class, (n, K − 1, 1 + J) → (n, K); rows sum to 1."""
        reached = _sigmoid(self.cumulative_logits(evidence))
        ends = np.ones((len(reached), 1)), np.zeros((len(reached), 1))
        return np.maximum(-np.diff(np.hstack([ends[0], reached, ends[1]]), axis=1), 0.0)


def uncalibrated_model(steps: int, further: int) -> LinkModel:
    """Return the centre of the prior: the uncalibrated method. steps: K − 1.  further: J."""
    return LinkModel(0.0, 1.0, np.zeros(steps), np.zeros(further))


def cumulative_evidence(p: NDArray[np.floating]) -> Floats:
    """Return the logits of P(y ≥ k) of class probabilities, within LOGIT_LIMIT: (n, K) → (n, K − 1)."""
    above = np.cumsum(np.asarray(p, np.float64)[:, ::-1], axis=1)[:, ::-1][:, 1:]
    smallest = 1 / (1 + np.exp(LOGIT_LIMIT))
    above = np.clip(above, smallest, 1 - smallest)
    return np.asarray(np.log(above) - np.log1p(-above))


def fit_link_model(
    evidence: Floats,
    labels: NDArray[np.int64],
    prior: LinkPrior,
    weights: Floats | None = None,
    others: frozenset[int] = frozenset(),
) -> LinkModel:
    """Return the model of the largest posterior, by L-BFGS from the centre of the prior; the same data give the same.

    evidence: (n, K − 1, 1 + J), the method's own logits first.  labels: (n,) classes.  weights: (n,) of the slides in
    the likelihood, as the slides of one patient count together as one; None: 1 each.  others: which of the J further
    columns are the differences of another method.
    """
    n, steps, width = evidence.shape
    start = uncalibrated_model(steps, width - 1).parameters
    if not n:
        return uncalibrated_model(steps, width - 1)
    further = [prior.other if k in others else prior.weight for k in range(width - 1)]
    deviations = np.concatenate([[prior.shift, prior.slope], np.full(steps, prior.step), further])
    counts = np.ones(n) if weights is None else weights

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value, gradient = _negative_log_likelihood(parameters, evidence, labels, counts)
        scaled = parameters / deviations
        return value + 0.5 * float(scaled @ scaled), gradient + scaled / deviations

    from scipy.optimize import minimize  # slow to import, and most runs fit nothing

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8}).x
    return LinkModel(float(found[0]), float(np.exp(found[1])), found[2 : 2 + steps], found[2 + steps :])


def _logits(parameters: Floats, evidence: Floats) -> Floats:
    steps = evidence.shape[1]
    shift, slope = parameters[0], np.exp(parameters[1])
    own = shift + parameters[2 : 2 + steps] + slope * evidence[:, :, 0]
    return np.asarray(own + evidence[:, :, 1:] @ parameters[2 + steps :])


def _negative_log_likelihood(
    parameters: Floats, evidence: Floats, labels: NDArray[np.int64], counts: Floats
) -> tuple[float, Floats]:
    """Return the negative logarithm of the likelihood, and its gradient by the parameters."""
    n, steps, _ = evidence.shape
    raw = _logits(parameters, evidence)
    lowest = _positions_of_minimum(raw)  # the step that decides each step
    rows = np.arange(n)
    reached = np.hstack([np.ones((n, 1)), _sigmoid(np.take_along_axis(raw, lowest, 1)), np.zeros((n, 1))])
    p = reached[rows, labels] - reached[rows, labels + 1]
    mixed = (1 - LAPSE) * p + LAPSE / (steps + 1)
    slopes = reached * (1 - reached)  # 0 at both ends
    outer = -counts * (1 - LAPSE) / mixed
    by_logit = np.zeros((n, steps + 2))
    np.add.at(by_logit, (rows, labels), outer * slopes[rows, labels])
    np.add.at(by_logit, (rows, labels + 1), -outer * slopes[rows, labels + 1])
    by_step = np.zeros((n, steps))
    for k in range(steps):
        np.add.at(by_step, (rows, lowest[:, k]), by_logit[:, k + 1])
    by_slope = float((by_step * evidence[:, :, 0]).sum()) * np.exp(parameters[1])
    by_weight = np.einsum("nk,nkj->j", by_step, evidence[:, :, 1:])
    gradient = np.concatenate([[by_step.sum(), by_slope], by_step.sum(axis=0), by_weight])
    return float(-(counts * np.log(mixed)).sum()), gradient


def _positions_of_minimum(raw: Floats) -> NDArray[np.int64]:
    """Return for each step the position of the smallest logit up to it: (n, K − 1) → (n, K − 1)."""
    lowest = np.minimum.accumulate(raw, axis=1)
    is_new = np.hstack([np.ones((len(raw), 1), bool), raw[:, 1:] < lowest[:, :-1]])
    return np.asarray(np.maximum.accumulate(np.where(is_new, np.arange(raw.shape[1]), 0), axis=1), np.int64)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
