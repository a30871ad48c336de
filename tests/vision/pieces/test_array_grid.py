"""Grids of tissue microarrays: turned, stretched, with missing, broken and misplaced cores."""

import numpy as np
import pytest

from her2batch.vision.pieces.array_grid import fit_array_grid

ROWS, COLUMNS = 5, 7
CELLS = [(row, column) for row in range(1, ROWS + 1) for column in range(1, COLUMNS + 1)]


def array(
    turn: float = 0.0,
    stretch: float = 1.0,
    jitter: float = 0.0,
    missing: tuple[tuple[int, int], ...] = (),
    seed: int = 1,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Centres, areas and true cells of an array with a pitch of 100."""
    rng = np.random.default_rng(seed)
    there = [cell for cell in CELLS if cell not in missing]
    points = np.array([(100 * column * stretch, 110 * row) for row, column in there], float)
    angle = np.radians(turn)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    order = rng.permutation(len(there))
    points = (points @ rotation + rng.normal(0, jitter, points.shape) + 37)[order]
    return points, np.full(len(points), 50.0), [there[k] for k in order]


@pytest.mark.parametrize("turn", [-6, -2, 0, 3, 6])
@pytest.mark.parametrize("stretch", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("jitter", [0, 8])
def test_every_core_has_its_place(turn: float, stretch: float, jitter: float) -> None:
    centres, areas, truth = array(turn, stretch, jitter)
    assert list(fit_array_grid(centres, areas, CELLS).cells) == truth


@pytest.mark.parametrize("seed", range(5))
def test_missing_cores_shift_no_other(seed: int) -> None:
    drawn = np.random.default_rng(seed).permutation(len(CELLS))[:12]
    missing = tuple(CELLS[k] for k in drawn)
    centres, areas, truth = array(3, 1.1, 5, missing, seed)
    found = fit_array_grid(centres, areas, CELLS)
    if not found.is_ambiguous:
        assert list(found.cells) == truth


def test_a_map_with_gaps_places_an_array_whose_first_column_is_missing() -> None:
    missing = tuple((row, 1) for row in range(1, ROWS + 1))
    centres, areas, truth = array(missing=(*missing, (3, 4)))
    assert fit_array_grid(centres, areas, CELLS).is_ambiguous
    with_gap = [cell for cell in CELLS if cell != (3, 4)]  # the map knows the empty place
    found = fit_array_grid(centres, areas, with_gap)
    assert not found.is_ambiguous
    assert list(found.cells) == truth


def test_fragments_belong_to_their_core_and_dirt_between_cores_to_none() -> None:
    centres, areas, truth = array()
    extra = np.array([centres[0] + (20, 10), centres[0] + (50, 55)])
    found = fit_array_grid(np.vstack([centres, extra]), np.append(areas, [5.0, 5.0]), CELLS)
    assert list(found.cells) == [*truth, truth[0], None]


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_a_single_row_or_column_is_a_grid(shape: tuple[int, int]) -> None:
    cells = [(row, column) for row in range(1, shape[0] + 1) for column in range(1, shape[1] + 1)]
    centres = np.array([(100.0 * column, 100.0 * row) for row, column in cells])
    assert list(fit_array_grid(centres, np.ones(len(cells)), cells).cells) == cells


def test_one_core_and_none() -> None:
    assert fit_array_grid(np.array([[5.0, 5.0]]), np.ones(1), [(1, 1)]).cells == ((1, 1),)
    assert fit_array_grid(np.empty((0, 2)), np.empty(0), CELLS).cells == ()
