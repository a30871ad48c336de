"""A stack: equal weights are the geometric mean; a base without a prediction does not change what the others say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.models.bundle import ModelEntry
from her2batch.models.fusion.stack import StackWeights, fuse, stack_features

BASES = (("clam-sb", "stain"), ("resnet50", "thumbnail-224"))
MEAN = StackWeights(bases=BASES, coefficients=tuple(map(tuple, np.tile(np.eye(3) / 2, (1, 2)))), intercept=(0, 0, 0))
P = np.array([0.2, 0.5, 0.3], np.float32)


def test_equal_weights_give_the_geometric_mean() -> None:
    other = np.array([0.8, 0.1, 0.1], np.float32)
    p = fuse(MEAN, dict(zip(BASES, (P, other), strict=True)))
    expected = np.sqrt(P * other) / np.sqrt(P * other).sum()
    assert p is not None
    assert np.allclose(p, expected, atol=1e-6)


def test_a_missing_base_is_replaced_by_the_others_and_none_gives_nothing() -> None:
    p = fuse(MEAN, {BASES[1]: P})
    assert p is not None
    assert np.allclose(p, P, atol=1e-6)
    assert fuse(MEAN, {("another", "stain"): P}) is None


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 5))
def test_features_are_finite_for_certain_probabilities(seed: int, n_bases: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    p = np.eye(n_classes)[rng.integers(n_classes, size=(6, n_bases))]
    p[rng.random((6, n_bases)) < 0.3] = np.nan
    p[:, 0] = np.eye(n_classes)[0]
    features = stack_features(p)
    assert features.shape == (6, n_bases * n_classes)
    assert np.isfinite(features).all()


def test_a_fusion_without_its_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="a fusion, and no other model, has a stack"):
        ModelEntry(kind="fusion", task="her2-3way", method="fusion", input="methods", classes=("0", "low", "high"))
