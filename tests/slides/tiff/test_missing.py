"""Tiles that a TIFF does not store, on tables without a file."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from her2batch.slides.slide import Box
from her2batch.slides.tiff.missing import MAX_STEP, missing_tiles, present_tiles, rebuild_tile


@dataclass
class Table:
    width: int
    height: int
    tile_width: int
    tile_height: int
    stored: NDArray[np.bool_]


def table(width: int, height: int, tile: int, missing: list[tuple[int, int]]) -> Table:
    stored = np.ones((-(-height // tile), -(-width // tile)), bool)
    for place in missing:
        stored[place] = False
    return Table(width, height, tile, tile, stored)


def test_area_is_that_of_whole_tiles() -> None:
    assert missing_tiles(table(100, 70, 32, [])) is None
    area = missing_tiles(table(100, 70, 32, [(0, 1), (2, 3)]))
    assert area is not None
    assert (area.width, area.height) == (128, 96)
    assert np.argwhere(area.mask).tolist() == [[0, 1], [2, 3]]


def test_tile_is_made_of_the_finer_level_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("her2batch.slides.tiff.missing.MAX_READ", 3000)
    levels = [table(200, 150, 32, []), table(50, 37, 32, [(1, 0), (0, 1)])]
    read: list[Box] = []

    def read_level(level: int, box: Box) -> np.ndarray:
        assert level == 0
        read.append(box)
        rows = np.arange(box.y, box.bottom, dtype=np.uint8)[:, None, None]
        return np.broadcast_to(rows, (box.height, box.width, 3)).copy()

    pixels = rebuild_tile(levels, 1, (0, 1), 1, read_level)
    assert pixels is not None
    assert pixels.shape == (32, 18, 3)
    assert len(read) > 1
    assert max(box.width * box.height for box in read) <= 3000
    assert np.abs(pixels[:, 0, 0] - (np.arange(32) + 0.5) * 150 / 37).max() < 2
    half = rebuild_tile(levels, 1, (1, 0), 2, read_level)
    assert half is not None
    assert half.shape == (3, 16, 3)  # the level ends 5 px below the tile's top


def test_tile_that_no_finer_level_has_stays_missing() -> None:
    levels = [table(128, 128, 32, [(0, 0), (0, 1), (1, 0), (1, 1)]), table(64, 64, 32, [(0, 0), (1, 1)])]
    assert present_tiles(levels, 1).tolist() == [[False, True], [True, True]]
    assert not present_tiles(levels, 0)[0, 0]
    assert rebuild_tile(levels, 1, (0, 0), 1, lambda *_: np.zeros((1, 1, 3), np.uint8)) is None


def test_step_of_levels_that_is_too_large_is_not_bridged() -> None:
    levels = [table(64 * (MAX_STEP + 1), 64 * (MAX_STEP + 1), 64, []), table(64, 64, 64, [(0, 0)])]
    assert rebuild_tile(levels, 1, (0, 0), 1, lambda *_: np.zeros((1, 1, 3), np.uint8)) is None


def test_tiles_that_are_present_are_those_that_can_be_rebuilt() -> None:
    rng = np.random.default_rng(5)
    for width, height in ((700, 500), (1023, 333), (64, 2000)):
        levels = [
            Table(
                width // k, height // k, 32, 48, rng.random((-(-(height // k) // 48), -(-(width // k) // 32))) < share
            )
            for k, share in ((1, 0.2), (3, 0.3), (9, 0.1))
        ]
        for level in (1, 2):
            present = present_tiles(levels, level)
            for row, column in np.ndindex(present.shape):
                rebuilt = rebuild_tile(levels, level, (row, column), 1, lambda _, box: np.zeros((*box[:1:-1], 3), "u1"))
                assert present[row, column] == (levels[level].stored[row, column] or rebuilt is not None)
