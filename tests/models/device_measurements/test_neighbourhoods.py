"""Filters in torch equal those of OpenCV, also where a window is larger than the map."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.models.device_measurements import neighbourhoods as filters


def maps(seed: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.2, 0.3, (2, *shape)).astype(np.float32)


def square(edge: int) -> NDArray[np.uint8]:
    return np.ones((edge, edge), np.uint8)


def assert_equal(found: torch.Tensor, expected: list[NDArray], atol: float = 0.0) -> None:
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=0, atol=atol)


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(st.integers(0, 99), SHAPES, st.sampled_from([1, 3, 5, 9, 21, 63]))
@settings(deadline=None, max_examples=40)
def test_box_and_extremes_equal_opencv(seed: int, shape: tuple[int, int], edge: int) -> None:
    values = maps(seed, shape)
    kept, given_maps = values.copy(), torch.from_numpy(values)
    assert_equal(filters.box_mean(given_maps, edge), [cv2.blur(one, (edge, edge)) for one in values], 1e-6)
    assert_equal(filters.dilate(given_maps, edge), [cv2.dilate(one, square(edge)) for one in values])
    assert_equal(filters.erode(given_maps, edge), [cv2.erode(one, square(edge)) for one in values])
    opened = [cv2.morphologyEx(one, cv2.MORPH_OPEN, square(edge)) for one in values]
    assert_equal(filters.opening(given_maps, edge), opened)
    assert np.array_equal(values, kept)  # also where the window is one px and could be the map itself


@given(st.integers(0, 99), SHAPES, st.sampled_from([0.25, 0.5, 1.0, 1.5, 5.0]))
@settings(deadline=None, max_examples=30)
def test_gaussian_blur_and_derivatives_equal_opencv(seed: int, shape: tuple[int, int], sigma: float) -> None:
    values = maps(seed, shape)
    blurred = [cv2.GaussianBlur(one, (0, 0), sigma) for one in values]
    assert_equal(filters.gaussian_blur(torch.from_numpy(values), sigma), blurred, 1e-6)
    found = filters.second_derivatives(torch.from_numpy(values))
    for map_, (dx, dy, scale) in zip(found, ((2, 0, 0.125), (0, 2, 0.125), (1, 1, 0.25)), strict=True):
        assert_equal(map_, [cv2.Sobel(one, cv2.CV_32F, dx, dy, ksize=3, scale=scale) for one in values], 1e-6)


@pytest.mark.parametrize("edge", [1, 5, 41])
def test_masks_are_counted_and_dilated_exactly(edge: int) -> None:
    masks = (maps(1, (50, 30)) > 0.6).astype(np.uint8)
    counts = [cv2.boxFilter(one, cv2.CV_32F, (edge, edge), normalize=False) for one in masks]
    assert_equal(filters.box_sum(torch.from_numpy(masks).float(), edge), counts)
    assert_equal(filters.dilate(torch.from_numpy(masks), edge), [cv2.dilate(one, square(edge)) for one in masks])
