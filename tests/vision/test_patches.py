"""Tests of patches: selection by content, contrast, and class labels from annotations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from her2batch.vision.patches import apply_clahe, label_patches, usable_patches


@given(st.integers(0, 100), st.integers(0, 100))
def test_white_and_black_px_limit_usable_patches(white: int, black: int) -> None:
    black = min(black, 100 - white)
    patch = np.full((10, 10, 3), 128, np.uint8)
    patch.reshape(100, 3)[:white] = 221
    patch.reshape(100, 3)[100 - black :] = 29
    assert usable_patches(patch[None])[0] == (white <= 70 and black <= 20)


def test_coloured_px_are_neither_white_nor_black() -> None:
    brown, blue = np.array([240, 180, 230]), np.array([10, 20, 60])
    patches = np.stack([np.broadcast_to(one, (8, 8, 3)) for one in (brown, blue)]).astype(np.uint8)
    assert usable_patches(patches).tolist() == [True, True]


def test_clahe_widens_lightness_and_keeps_colour() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(120, 136, (2, 224, 224, 1), dtype=np.uint8).repeat(3, axis=3)
    out = apply_clahe(grey)
    assert out.std() > 1.5 * grey.std()
    assert np.ptp(out.astype(int), axis=3).max() <= 6


def test_clahe_treats_each_patch_alone_and_returns_a_copy() -> None:
    patches = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    before = patches.copy()
    together = apply_clahe(patches)
    assert np.array_equal(patches, before)
    assert all(np.array_equal(apply_clahe(patches[k : k + 1])[0], together[k]) for k in range(3))


# -- classes ---------------------------------------------------------------------------------------------------


def tiles(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows, np.int32)


def test_a_patch_gets_the_class_that_covers_most_of_it() -> None:
    shapes = [(1, box(0, 0, 40, 100)), (3, box(40, 0, 100, 100))]
    labels, shares = label_patches(shapes, tiles((0, 0, 100), (0, 0, 50), (200, 0, 100)))
    assert labels.tolist() == [3, 1, -1]
    assert shares.tolist() == pytest.approx([0.6, 0.8, 0])


def test_five_percent_cover_is_enough_and_less_is_not() -> None:
    labels, _ = label_patches([(2, box(0, 0, 5, 100))], tiles((0, 0, 100)))
    assert labels.tolist() == [2]
    labels, _ = label_patches([(2, box(0, 0, 4.9, 100))], tiles((0, 0, 100)))
    assert labels.tolist() == [-1]


def test_overlapping_areas_of_a_class_count_once() -> None:
    shapes = [(0, box(0, 0, 30, 100)), (0, box(0, 0, 30, 100)), (1, box(50, 0, 90, 100))]
    labels, shares = label_patches(shapes, tiles((0, 0, 100)))
    assert (labels.tolist(), shares.tolist()) == ([1], pytest.approx([0.4]))


def test_of_two_equal_shares_the_higher_class_wins() -> None:
    shapes = [(2, box(0, 0, 50, 100)), (1, box(50, 0, 100, 100))]
    assert label_patches(shapes, tiles((0, 0, 100)))[0].tolist() == [2]


def test_holes_are_not_covered() -> None:
    ring = Polygon([(0, 0), (100, 0), (100, 100), (0, 100)], [[(10, 10), (90, 10), (90, 90), (10, 90)]])
    labels, shares = label_patches([(1, ring)], tiles((0, 0, 100), (20, 20, 40)))
    assert labels.tolist() == [1, -1]
    assert shares[0] == pytest.approx(0.36)


PLACE, EDGE = st.integers(0, 60), st.integers(1, 40)
RECTANGLES = st.lists(st.tuples(st.integers(0, 3), PLACE, PLACE, EDGE, EDGE), max_size=5)


@given(RECTANGLES)
def test_shares_equal_counted_pixels(rectangles: list[tuple[int, ...]]) -> None:
    grid = np.array([(x, y, 20) for y in range(0, 100, 20) for x in range(0, 100, 20)], np.int32)
    labels, shares = label_patches([(k, box(x, y, x + w, y + h)) for k, x, y, w, h in rectangles], grid)
    masks = np.zeros((4, 100, 100), bool)
    for k, x, y, w, h in rectangles:
        masks[k, y : y + h, x : x + w] = True
    for (x, y, size), label, share in zip(grid, labels, shares, strict=True):
        counted = masks[:, y : y + size, x : x + size].mean(axis=(1, 2))
        best = max(range(4), key=lambda k: (counted[k], k))
        if counted[best] >= 0.05 + 1e-6:
            assert (label, share) == (best, pytest.approx(counted[best], abs=1e-6))
        elif counted[best] < 0.05 - 1e-6:
            assert label == -1
