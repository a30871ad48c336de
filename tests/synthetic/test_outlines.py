"""Tests of outlines: pieces of tissue, artefacts on tissue, and generators by key."""

import cv2
import numpy as np
import pytest

from her2batch.synthetic.outlines import ARTEFACTS, artefact_outline, rng_for, smooth_noise, tissue_outline


def test_a_generator_depends_on_its_key_alone():
    assert rng_for(1, "a", 2).random() == rng_for(1, "a", 2).random()
    assert len({rng_for(seed, key).random() for seed in (1, 2) for key in ("a", "b")}) == 4


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_tissue_has_the_given_number_of_pieces(pieces):
    inside = tissue_outline(rng_for(0, pieces), (200, 500), 8.0, pieces) > 0
    assert cv2.connectedComponents(inside.astype(np.uint8))[0] - 1 == pieces
    assert 0.2 < inside.mean() < 0.7


@pytest.mark.parametrize("name", ARTEFACTS)
def test_artefacts_touch_tissue(name):
    tissue = tissue_outline(rng_for(0, "t"), (200, 250), 8.0, 1)
    field = artefact_outline(name, rng_for(0, name), tissue, 8.0)
    assert field.shape == tissue.shape
    assert ((field > 0) & (tissue > 0)).any()
    assert (field <= 0).any()


def test_smooth_noise_is_standardized():
    noise = smooth_noise(rng_for(0, "n"), (120, 130), 6.0)
    assert abs(noise.mean()) < 1e-4
    assert abs(noise.std() - 1) < 1e-3
