"""The grid of a tissue microarray: rows and columns of its cores, fitted to the centres of its pieces of tissue.

Row 1 is at the top of the image, column 1 at its left. The array may be turned by some degrees and stretched; a few
cores may be missing, broken or out of place.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Cell = tuple[int, int]
"""Row and column, from 1."""

MAX_TURN = np.tan(np.radians(15))
"""Largest slope of a row of cores, as a tangent."""

MAX_OFFSET = 0.4
"""Largest distance of a core from its place on the grid, as a share of the pitch; beyond, it belongs to no place."""


class ArrayGrid(NamedTuple):
    """The places of the pieces on the grid.

    cells: of each piece, None beside the grid.  is_ambiguous: the cores that are there fit the map in several ways,
    because a whole outer row or column is missing.
    """

    cells: tuple[Cell | None, ...]
    is_ambiguous: bool


def fit_array_grid(centres: Points, areas: NDArray[np.float64], wanted: Collection[Cell]) -> ArrayGrid:
    """Place the pieces of a microarray on the grid of its map.

    centres: (n, 2) x, y in any unit.  areas: (n,); fragments, with less than a third of the median, do not decide the
    grid.  wanted: the cells of the map.
    """
    nothing = ArrayGrid((None,) * len(centres), False)
    if not len(centres) or not wanted:
        return nothing
    whole = areas >= np.median(areas) / 3
    steps = _steps(centres[whole])
    if steps is None:  # one core, or cores that are no neighbours of each other
        steps = np.eye(2) * max(1.0, float(np.ptp(centres, axis=0).max()))
    positions = centres @ np.linalg.inv(steps)  # columns and rows, with an unknown origin
    numbers = _numbers(positions, whole)
    design = np.column_stack([numbers[whole], np.ones(int(whole.sum()))])
    if np.linalg.matrix_rank(design) == 3:  # the pitch of all rows and columns together
        fitted = np.linalg.lstsq(design, centres[whole], rcond=None)[0]
        positions = (centres - fitted[2]) @ np.linalg.inv(fitted[:2])
        numbers = np.round(positions).astype(int)
    offset, is_ambiguous = _match(numbers[whole], wanted)
    near = np.hypot(*(positions - np.round(positions)).T) <= MAX_OFFSET
    cells: list[Cell | None] = []
    for (column, row), fits in zip((numbers + offset).tolist(), near.tolist(), strict=True):
        cells.append((row, column) if fits and (row, column) in wanted else None)
    return ArrayGrid(tuple(cells), is_ambiguous)


def _steps(centres: Points) -> NDArray[np.float64] | None:
    """Return the step to the next column and to the next row, (2, 2); None where the cores are too few to say."""
    found: list[NDArray[np.float64] | None] = [None, None]
    for axis in (0, 1):
        steps = []
        for centre in centres:
            away = centres - centre
            ahead = away[(away[:, axis] > 0) & (np.abs(away[:, 1 - axis]) <= MAX_TURN * away[:, axis])]
            if len(ahead):
                steps.append(ahead[np.argmin(ahead[:, axis])])
        if steps:
            lengths = np.array([step[axis] for step in steps])
            typical = np.array(steps)[lengths <= 1.5 * np.quantile(lengths, 0.25)]  # over no gap
            found[axis] = np.median(typical, axis=0)
    across, along = found
    if across is None and along is None:
        return None
    if across is None:
        assert along is not None
        across = np.array([along[1], -along[0]])
    if along is None:
        along = np.array([-across[1], across[0]])
    return np.stack([across, along])


def _numbers(positions: Points, whole: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the numbers of columns and rows, (n, 2). The phase of the grid is the circular mean of the cores'."""
    phase = np.angle(np.exp(2j * np.pi * positions[whole]).mean(axis=0)) / (2 * np.pi)
    return np.asarray(np.round(positions - phase).astype(int))


def _match(numbers: NDArray[np.int64], wanted: Collection[Cell]) -> tuple[NDArray[np.int64], bool]:
    """Return the offset of columns and rows with which most cores lie on the map, and whether another does as well."""
    cells = np.array([(column, row) for row, column in wanted])
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    counts: dict[tuple[int, int], int] = {}
    own = set(map(tuple, cells.tolist()))
    for dx in range(int(cells[:, 0].min() - high[0]), int(cells[:, 0].max() - low[0]) + 1):
        for dy in range(int(cells[:, 1].min() - high[1]), int(cells[:, 1].max() - low[1]) + 1):
            counts[dx, dy] = sum((column + dx, row + dy) in own for column, row in numbers.tolist())
    best = max(counts.values())
    chosen = [offset for offset, count in counts.items() if count == best]
    return np.array(chosen[0]), len(chosen) > 1
