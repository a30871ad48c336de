"""Tests of noise: periodic, of the stated mean and deviation."""

import numpy as np

from her2batch.synthetic.noise import NOISE_PX, make_noise_fields


def test_noise_is_periodic_and_of_unit_deviation():
    noise = make_noise_fields(np.random.default_rng(0), 0.25)
    for field in (noise.mottle, noise.drift_x, noise.grain):
        step = np.abs(np.diff(field, axis=1)).mean(axis=0)
        assert step[NOISE_PX - 1] < 1.3 * step.mean()
        assert field.shape == (2 * NOISE_PX, 2 * NOISE_PX)
    assert 0.9 < noise.grain.std() < 1.1
    assert 0 <= noise.mottle.min() <= noise.mottle.max() <= 1
