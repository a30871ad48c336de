"""A grid is a value; how coarse a slide may be stands in one place."""

import numpy as np

from her2batch.way.grids import COARSEST, Grid


def test_a_grid_says_where_its_tiles_are_cut() -> None:
    one = Grid(0.5, 224, np.array([[0, 0, 448]], np.int32))
    assert (one.mpp, one.edge, one.tiles.tolist()) == (0.5, 224, [[0, 0, 448]])
    assert 1 < COARSEST < 2
