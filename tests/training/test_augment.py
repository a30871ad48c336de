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
from her2batch.training.recipes.random_streams import random_stream

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


STAINED = ImageSettings(stain_jitter=0.2, right_angles=0.5)


def test_stain_jitter_multiplies_the_optical_density_and_keeps_the_background() -> None:
    fill = np.array([[240, 230, 220]], np.uint8)
    picture = np.broadcast_to(fill[:, None, None], (1, 8, 8, 3)).copy()
    picture[:, 2:6, 2:6] = (120, 92, 55)
    factors = np.array([[2.0, 1.0, 0.5]])
    still = Augmentation(np.eye(2)[None], np.zeros((1, 2)), np.ones(1), np.zeros(1), factors)
    out = apply_augmentations(picture, still, fill)
    assert np.array_equal(out[:, :2], picture[:, :2])
    assert out[0, 3, 3].tolist() == [60, 92, 110]  # 240 · (1/2)², 230 · 0.4, 220 · (1/4)^½


@given(st.integers(0, 2**32))
def test_stain_jitter_never_changes_the_background(seed: int) -> None:
    fills = np.array([[240, 239, 200], [250, 235, 245]], np.uint8)
    bare = np.broadcast_to(fills[:, None, None], (2, 48, 48, 3)).copy()
    assert np.array_equal(augment(bare, random_stream(seed), STAINED, fills), bare)


def test_a_share_of_the_images_is_turned_by_right_angles_only() -> None:
    pixels, fill = smooth(8, 33), np.full(3, 255, np.uint8)
    moves = draw_augmentations(8, random_stream(3), ImageSettings(right_angles=1))
    out = apply_augmentations(pixels, moves, fill)
    for picture, result in zip(pixels, out, strict=True):
        ways = [np.rot90(flipped, k) for flipped in (picture, picture[:, ::-1]) for k in range(4)]
        assert sum(np.array_equal(result, way) for way in ways) == 1
    mixed = draw_augmentations(400, random_stream(4), STAINED)
    right = np.isin(np.abs(mixed.turn), (0, 1)).all((1, 2))
    assert 150 < right.sum() < 250


def test_settings_that_are_off_draw_nothing() -> None:
    plain, other = (draw_augmentations(6, random_stream(1), settings) for settings in (PLAIN, STAINED))
    assert plain.density is None
    assert other.density is not None
    free = ~np.isin(np.abs(other.turn), (0, 1)).all((1, 2))
    assert np.array_equal(plain.turn[free], other.turn[free])


def test_torch_and_opencv_give_nearly_the_same_colours() -> None:
    pixels, fill = smooth(6, 32), np.random.default_rng(1).integers(200, 256, (6, 3), dtype=np.uint8)
    moves = draw_augmentations(6, random_stream(3), ImageSettings(stain_jitter=0.3, right_angles=1))
    ours = apply_augmentations_on_device(torch.from_numpy(pixels), moves, torch.from_numpy(fill)).numpy()
    assert np.abs(ours.astype(int) - apply_augmentations(pixels, moves, fill)).max() <= 1
