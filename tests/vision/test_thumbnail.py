"""Tests of thumbnails: all tissue, centred, on the slide's own background."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.vision.thumbnail import letterbox, letterbox_frame

BACKGROUND = (240.4, 239.6, 250.0)


def test_a_wide_piece_of_tissue_fills_the_width() -> None:
    overview = np.full((300, 400, 3), 235, np.uint8)
    tissue = np.zeros((300, 400), bool)
    tissue[100:200, 50:250] = True
    overview[tissue] = (150, 90, 40)
    out = letterbox(overview, tissue, 224, BACKGROUND)
    assert (out[56:168] == (150, 90, 40)).all()
    assert (out[:56] == (240, 240, 250)).all()
    assert (out[168:] == (240, 240, 250)).all()


def test_all_pieces_are_shown() -> None:
    overview = np.full((200, 200, 3), 240, np.uint8)
    tissue = np.zeros((200, 200), bool)
    for y, x in ((0, 0), (190, 190)):
        tissue[y : y + 10, x : x + 10] = True
        overview[y : y + 10, x : x + 10] = 0
    out = letterbox(overview, tissue, 100, BACKGROUND)
    assert out[0, 0].max() == 0
    assert out[-1, -1].max() == 0


def test_without_tissue_the_whole_slide_is_shown() -> None:
    overview = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(letterbox(overview, np.zeros((64, 64), bool), 64, BACKGROUND), overview)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([224, 512]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_it_is_a_square_whatever_the_tissue(height: int, width: int, factor: int, edge: int, seed: int) -> None:
    tissue = np.random.default_rng(seed).random((height, width)) < 0.01
    overview = np.zeros((height * factor, width * factor, 3), np.uint8)
    out = letterbox(overview, tissue, edge, BACKGROUND)
    assert out.shape == (edge, edge, 3)
    assert (out == 0).any()


def test_frame_is_the_square_around_the_tissue_in_the_slide() -> None:
    tiles = np.array([[1000, 2000, 400], [2600, 2000, 400]], np.int32)
    corner, size, edge = letterbox_frame(np.zeros((100, 100, 3), np.uint8), tiles, 10_000, 10_000)
    assert (corner.tolist(), size.tolist(), edge) == ([1000, 2000], [2000, 400], 2000)
