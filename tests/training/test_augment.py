"""Augmentation: size, background, ranges, and agreement of OpenCV and torch."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from her2batch.settings import ImageSettings
from her2batch.training.augment import (
    Augmentation,
    Pixels,
    apply_augmentations,
    apply_augmentations_on_device,
    augment,
    draw_augmentations,
)
from her2batch.training.fit_loop import random_stream

PLAIN = ImageSettings()
JITTERED = ImageSettings(jitter=0.2)


def smooth(n: int, edge: int) -> Pixels:
    """Pictures without detail finer than a few px, so that resampling is well defined."""
    noise = np.random.default_rng(0).integers(0, 256, (n, edge, edge, 3), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(one, (0, 0), edge / 12) for one in noise])


def move(
    turn: list[list[float]], shift: tuple[float, float] = (0, 0), gain: float = 1, offset: float = 0
) -> Augmentation:
    return Augmentation(
        np.array([turn], float), np.array([shift], float), np.array([gain], float), np.array([offset], float)
    )


@given(st.integers(1, 4), st.sampled_from([16, 31, 64]), st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
def test_augmentation_keeps_size_and_dtype(n: int, edge: int, seed: int, jitter: float) -> None:
    out = augment(smooth(n, edge), random_stream(seed), ImageSettings(jitter=jitter), np.full(3, 240, np.uint8))
    assert out.shape == (n, edge, edge, 3)
    assert out.dtype == np.uint8


@given(st.integers(0, 2**32))
def test_the_outside_has_the_background_colour_of_the_image(seed: int) -> None:
    fills = np.array([[240, 239, 200], [250, 235, 245]], np.uint8)
    bare = np.broadcast_to(fills[:, None, None], (2, 48, 48, 3)).copy()
    assert np.array_equal(augment(bare, random_stream(seed), PLAIN, fills), bare)


def test_the_same_seed_gives_the_same_images() -> None:
    pixels, fill = smooth(3, 32), np.full(3, 255, np.uint8)
    one, other = (augment(pixels, random_stream(5, 1), JITTERED, fill) for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, augment(pixels, random_stream(5, 2), JITTERED, fill))


def test_rotation_flip_and_shift_equal_numpy() -> None:
    picture, white = smooth(1, 40), np.full(3, 255, np.uint8)
    assert np.array_equal(apply_augmentations(picture, move([[1, 0], [0, 1]]), white), picture)
    assert np.array_equal(apply_augmentations(picture, move([[-1, 0], [0, 1]]), white), picture[:, :, ::-1])
    quarter = apply_augmentations(picture, move([[0, 1], [-1, 0]]), white)
    assert np.array_equal(quarter[0], np.rot90(picture[0], -1))
    right = apply_augmentations(picture, move([[1, 0], [0, 1]], (-0.1, 0)), white)  # the source lies 4 px to the left
    assert np.array_equal(right[:, :, 4:], picture[:, :, :-4])
    assert (right[:, :, :4] == 255).all()


def test_jitter_stretches_about_mid_grey_and_clips() -> None:
    grey = np.full((1, 8, 8, 3), 100, np.uint8)
    same = move([[1, 0], [0, 1]], gain=2, offset=-127.5)  # contrast 2: 127.5 + 2 · (100 − 127.5)
    assert np.unique(apply_augmentations(grey, same, grey[0, 0, 0])).tolist() == [72]
    assert np.unique(apply_augmentations(grey, move([[1, 0], [0, 1]], gain=3), grey[0, 0, 0])).tolist() == [255]


@given(st.integers(0, 2**32))
def test_drawn_values_stay_in_their_ranges(seed: int) -> None:
    moves = draw_augmentations(20, random_stream(seed), JITTERED)
    assert np.allclose(moves.turn @ moves.turn.transpose(0, 2, 1), np.eye(2) * (1 / scale(moves) ** 2)[:, None, None])
    assert ((scale(moves) >= 0.9) & (scale(moves) <= 1.1)).all()
    assert (np.abs(moves.shift) <= 0.05).all()
    bright = moves.gain + moves.offset / 127.5  # what mid-grey becomes
    assert ((bright >= 0.8 - 1e-9) & (bright <= 1.2 + 1e-9)).all()


def scale(moves: Augmentation) -> np.ndarray:
    return 1 / np.sqrt(np.abs(np.linalg.det(moves.turn)))


def test_without_jitter_colours_do_not_change() -> None:
    moves = draw_augmentations(50, random_stream(1), PLAIN)
    assert (moves.gain == 1).all()
    assert (moves.offset == 0).all()


@pytest.mark.parametrize("edge", [32, 63, 224])
def test_torch_and_opencv_give_nearly_the_same_images(edge: int) -> None:
    pixels = smooth(6, edge)
    fill = np.random.default_rng(1).integers(200, 256, (6, 3), dtype=np.uint8)
    moves = draw_augmentations(6, random_stream(3), JITTERED)
    ours = apply_augmentations_on_device(torch.from_numpy(pixels), moves, torch.from_numpy(fill)).numpy()
    apart = np.abs(ours.astype(int) - apply_augmentations(pixels, moves, fill))
    assert ours.dtype == np.uint8
    assert apart.mean() < 0.5
    assert np.quantile(apart, 0.999) <= 4  # the rim, where a pixel is mixed with the background in 32nds
