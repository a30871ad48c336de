"""A stacked classifier: a multinomial logistic regression on the logarithms of the probabilities of base methods.

Stacked generalization: Wolpert, Neural Networks 5, 241 (1992), doi 10.1016/S0893-6080(05)80023-1; with class
probabilities as inputs: Ting and Witten, JAIR 10, 271 (1999), doi 10.1613/jair.594. The coefficients are plain numbers
in bundle.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from her2batch.settings import Settings

Floats = NDArray[np.float64]

FLOOR: Final = 1e-3
"""Smallest probability whose logarithm is read, so that one confident mistake of a method does not decide."""


class StackWeights(Settings):
    """A fitted stack of M base methods and C classes.

    bases: method and input of each base.  coefficients: (C, M · C), for the centred logarithms of the bases' p, base
    by base.  intercept: (C,).
    """

    bases: tuple[tuple[str, str], ...]
    coefficients: tuple[tuple[float, ...], ...]
    intercept: tuple[float, ...]


def centred_logs(p: NDArray[np.float32] | Floats) -> Floats:
    """Return the logarithms of probabilities, (…, C), of at least FLOOR, less their mean over the classes."""
    logs = np.log(np.maximum(np.asarray(p, np.float64), FLOOR))
    return np.asarray(logs - logs.mean(axis=-1, keepdims=True))


def stack_features(p: Floats) -> Floats:
    """Return what the regression reads: (n, M, C) probabilities, NaN where a base has no prediction → (n, M · C).

    A base without a prediction of a slide is replaced by the mean of the centred logarithms of the others. At least one
    base of each slide must have a prediction.
    """
    logs = np.where(np.isnan(p), np.nan, centred_logs(np.nan_to_num(p, nan=1.0)))
    there = ~np.isnan(logs[..., :1])
    mean = np.nansum(logs, axis=1, keepdims=True) / there.sum(axis=1, keepdims=True)
    return np.where(there, logs, mean).reshape(len(p), -1)


def stack_probabilities(weights: StackWeights, p: Floats) -> Floats:
    """Return class probabilities, (n, C), of slides with the base probabilities p, (n, M, C); see `stack_features`."""
    logits = stack_features(p) @ np.array(weights.coefficients).T + np.array(weights.intercept)
    out = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def fuse(weights: StackWeights, found: Mapping[tuple[str, str], NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """Return the probabilities, (C,), of a slide from those of its base methods, by method and input; None without any.

    The probabilities are those of the heads themselves, before their temperatures, as in training.
    """
    n = len(weights.intercept)
    p = np.array([found.get(base, np.full(n, np.nan)) for base in weights.bases], np.float64)
    if np.isnan(p).all():
        return None
    return np.asarray(stack_probabilities(weights, p[None])[0], np.float32)
