"""Streams of random numbers: the same for the same seed and keys, independent for others."""

import numpy as np

from her2batch.training.recipes.random_streams import random_stream


def test_streams_are_independent() -> None:
    assert abs(np.corrcoef(random_stream(0, 1).random(4000), random_stream(0, 2).random(4000))[0, 1]) < 0.1


def test_random_streams_differ_by_key_and_are_repeatable() -> None:
    draws = {keys: random_stream(*keys).integers(2**60) for keys in ((0, 1), (0, 2), (1, 1), (1,), (0, 1, 2))}
    assert len(set(draws.values())) == len(draws)
    assert random_stream(0, 1).integers(2**60) == draws[0, 1]
