"""Tiles cut on a device equal those that OpenCV cuts, to one grey value."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.models.device_measurements.cut_tiles import cut_tiles_on_device, has_flat_square, shrink
from her2batch.slides.slide import resample
from her2batch.vision.tile_grid import Block, Rect, cut_tiles


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(0, 99), st.sampled_from([26, 30, 32, 35, 40, 46, 64, 70, 77, 96]), st.integers(-1, 1))
@settings(deadline=None, max_examples=40)
def test_tiles_equal_the_reference(seed: int, edge: int, other: int) -> None:
    """Enlarged, as they are, and reduced by whole and other factors; the last two leave the slide."""
    pixels = picture(2 * edge + 9, 3 * edge + 4, seed)
    rects = np.array([(0, 0, edge, edge), (edge, 3, edge + other, edge), (2 * edge + 6, 9, edge, edge),
                      (edge, edge + 11, edge, edge)], np.int64)  # fmt: skip
    block = Block(Rect(0, 0, pixels.shape[1], pixels.shape[0]), (0, 1, 2, 3), rects)
    found = cut_tiles_on_device(torch.from_numpy(pixels), rects.tolist(), 32).numpy()
    assert np.abs(found.astype(int) - cut_tiles(pixels, block, 32)).max() <= 1


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (31, 47), (63, 96)])
def test_shrunk_pixels_equal_the_reference(size: tuple[int, int]) -> None:
    pixels = picture(64, 96)
    found = shrink(torch.from_numpy(pixels), size[1], size[0]).numpy()
    assert np.abs(found.astype(int) - resample(pixels, size[1], size[0])).max() <= 1


def test_a_square_of_one_colour_is_found() -> None:
    chunks = picture(240, 240)[None].repeat(3, axis=0)
    chunks[1, 64:128, 100:200] = (128, 3, 77)
    chunks[2, 64:90, 100:200] = 128  # lower than a square
    assert has_flat_square(torch.from_numpy(chunks)).tolist() == [False, True, False]
    assert has_flat_square(torch.zeros((1, 16, 16, 3), dtype=torch.uint8)).tolist() == [True]
