"""Sums over the px of each painted cell: position, extent and shape of its nucleus, completeness of its membrane."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


@dataclass
class CellSums:
    """Sums over the px of each cell, filled block by block while a slide is painted. Cells are numbered row by row.

    x, y: (rows, cols), places of the cells in the lattice, level-0 px, from which offsets are counted.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]

    @cached_property
    def nucleus(self) -> Sums:
        """Number of px of the nucleus, and sums of its offsets dx, dy, dx², dy² and dx·dy: (6, cells)."""
        return np.zeros((6, self.x.size))

    @cached_property
    def membrane(self) -> Sums:
        """Number of px of the membrane, and of those that are stained: (2, cells)."""
        return np.zeros((2, self.x.size))

    def add_nuclei(self, index: NDArray[np.intp], nucleus: NDArray[np.bool_], corner: tuple[int, int]) -> None:
        """Add the px of nuclei in a block.

        index: (h, w), cell of each px.  nucleus: (h, w), px in the nucleus of their cell.  corner: x, y of the block.
        """
        row, column = np.nonzero(nucleus)
        cell = index[row, column]
        dx = (column + corner[0]) - self.x.reshape(-1)[cell].astype(np.float64)
        dy = (row + corner[1]) - self.y.reshape(-1)[cell].astype(np.float64)
        for sums, weights in zip(self.nucleus, (None, dx, dy, dx * dx, dy * dy, dx * dy), strict=True):
            sums += np.bincount(cell, weights, self.x.size)

    def add_membranes(self, index: NDArray[np.intp], membrane: NDArray[np.bool_], stained: NDArray[np.bool_]) -> None:
        """Add the px of membranes in a block, (h, w) each, and those of them that are stained."""
        cell, is_stained = index[membrane], stained[membrane]
        self.membrane[0] += np.bincount(cell, minlength=self.x.size)
        self.membrane[1] += np.bincount(cell[is_stained], minlength=self.x.size)
