"""Pieces of tissue and proposals of controls, on masks whose pieces are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from her2batch.vision.pieces.connected import (
    OUTSIDE,
    Piece,
    is_unlike,
    label_joined,
    measure_pieces,
    propose_controls,
    tile_pieces,
)

MPP = 8.0
WHITE = (245.0, 245.0, 245.0)
BROWN = (150, 110, 70)
BLUE = (200, 190, 215)


def rectangles(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (120, 300)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def test_parts_nearer_than_a_tile_are_one_piece_and_others_are_not() -> None:
    fragments = rectangles((10, 10, 40, 40), (58, 10, 40, 40))  # 8 px = 64 µm apart
    apart = rectangles((10, 10, 40, 40), (70, 10, 40, 40))  # 20 px = 160 µm
    assert label_joined(fragments, MPP).max() == 0
    assert label_joined(apart, MPP).max() == 1


def test_pieces_are_numbered_in_raster_order_and_the_rest_is_outside() -> None:
    mask = rectangles((200, 5, 40, 40), (10, 60, 40, 40))
    labels = label_joined(mask, MPP)
    assert labels.dtype == np.int16
    assert (labels[10, 210], labels[70, 20]) == (0, 1)
    assert ((labels == OUTSIDE) == ~mask).all()


@pytest.mark.parametrize("fill", [False, True])
def test_an_empty_slide_has_no_piece_and_a_full_one_has_one(fill: bool) -> None:
    assert label_joined(np.full((20, 30), fill), MPP).max() == (0 if fill else OUTSIDE)


def test_bounding_box_area_and_stains_of_a_piece() -> None:
    mask = rectangles((10, 20, 30, 40), (100, 20, 50, 50))
    rgb = np.full((*mask.shape, 3), 245, np.uint8)
    rgb[20:60, 10:40], rgb[20:70, 100:150] = BROWN, BLUE
    brown, blue = measure_pieces(label_joined(mask, MPP), rgb, WHITE)
    assert brown[:5] == (10, 20, 30, 40, 1200)
    assert brown.dab > 0.3 > 0.05 > blue.dab
    assert blue.haematoxylin > 0.05


def piece(x: int, y: int, width: int, height: int, dab: float) -> Piece:
    return Piece(x, y, width, height, width * height, 0.08, dab)


PATIENT = piece(100, 10, 150, 100, 0.02)


def test_a_small_brown_piece_at_an_end_is_proposed() -> None:
    assert propose_controls([piece(10, 30, 30, 40, 0.25), PATIENT], 300, 120) == [0]
    assert propose_controls([PATIENT, piece(260, 30, 30, 40, 0.25)], 300, 120) == [1]


@pytest.mark.parametrize(
    ("why", "other"),
    [
        ("as large", piece(0, 10, 90, 100, 0.25)),
        ("alike", piece(10, 30, 30, 40, 0.03)),
        ("beside the tissue, not beyond it", piece(120, 112, 30, 8, 0.25)),
    ],
)
def test_a_piece_that_is_large_alike_or_beside_the_tissue_is_not_proposed(why: str, other: Piece) -> None:
    assert propose_controls([other, PATIENT], 300, 120) == [], why


def test_a_group_includes_the_control_of_the_patients_own_class() -> None:
    column = [piece(10, 40 * k, 30, 35, dab) for k, dab in enumerate((0.02, 0.1, 0.25))]
    assert propose_controls([*column, PATIENT], 300, 120) == [0, 1, 2]


def test_a_speck_beside_a_control_stays_tissue() -> None:
    assert propose_controls([piece(10, 10, 30, 40, 0.25), piece(10, 90, 8, 8, 0.02), PATIENT], 300, 120) == [0]


def test_the_cores_of_a_needle_biopsy_are_no_controls() -> None:
    cores = [piece(5 + 48 * k, 10, 40, 100, dab) for k, dab in enumerate((0.02, 0.25, 0.02, 0.03, 0.2, 0.1))]
    assert propose_controls(cores, 300, 120) == []


def test_densities_are_unlike_by_difference_and_ratio() -> None:
    assert is_unlike(0.02, 0.1)
    assert not is_unlike(0.02, 0.04)
    assert not is_unlike(0.22, 0.27)
    assert is_unlike(-0.01, 0.05)


def test_a_tile_belongs_to_the_piece_with_most_of_its_tissue() -> None:
    labels = label_joined(rectangles((0, 0, 50, 100), (80, 0, 100, 100)), MPP)
    tiles = np.array([[0, 0, 400], [320, 0, 330], [390, 0, 400], [1600, 0, 400]], np.int32)
    assert tile_pieces(labels, 300 * 8, 120 * 8, tiles).tolist() == [0, 0, 1, OUTSIDE]
