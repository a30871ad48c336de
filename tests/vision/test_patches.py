"""Patches: which are worth classifying, and their contrast."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from her2batch.vision.patches import clahe, usable


@given(st.integers(0, 100), st.integers(0, 100))
def test_white_and_black_are_counted_as_shares(white: int, black: int) -> None:
    black = min(black, 100 - white)
    patch = np.full((10, 10, 3), 128, np.uint8)
    patch.reshape(100, 3)[:white] = 221
    patch.reshape(100, 3)[100 - black :] = 29
    assert usable(patch[None])[0] == (white <= 70 and black <= 20)


def test_a_colour_is_neither_white_nor_black() -> None:
    brown, blue = np.array([240, 180, 230]), np.array([10, 20, 60])
    patches = np.stack([np.broadcast_to(one, (8, 8, 3)) for one in (brown, blue)]).astype(np.uint8)
    assert usable(patches).tolist() == [True, True]


def test_clahe_spreads_lightness_and_leaves_colour() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(120, 136, (2, 224, 224, 1), dtype=np.uint8).repeat(3, axis=3)
    out = clahe(grey)
    assert out.std() > 1.5 * grey.std()
    assert np.ptp(out.astype(int), axis=3).max() <= 6


def test_clahe_works_patch_by_patch_on_a_copy() -> None:
    patches = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    before = patches.copy()
    together = clahe(patches)
    assert np.array_equal(patches, before)
    assert all(np.array_equal(clahe(patches[k : k + 1])[0], together[k]) for k in range(3))
