"""Streams of random numbers: the same for the same seed and keys, independent for others."""

import numpy as np

from her2batch.training.recipes.random_streams import random_stream


def test_a_stream_depends_on_the_seed_and_on_every_key() -> None:
    drawn = [random_stream(*keys).random(8).tolist() for keys in ((0,), (1,), (0, 1), (0, 1, 2), (0, 2, 1), (0, 1))]
    assert drawn[2] == drawn[5]
    assert len({tuple(one) for one in drawn}) == 5
    assert abs(np.corrcoef(random_stream(0, 1).random(4000), random_stream(0, 2).random(4000))[0, 1]) < 0.1
