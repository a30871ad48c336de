"""Tests of the sums over the px of cells, in one block and in several."""

import numpy as np

from her2batch.synthetic.cell_sums import CellSums


def test_sums_do_not_depend_on_how_a_slide_is_cut():
    rng = np.random.default_rng(0)
    index, nucleus = rng.integers(0, 6, (40, 60)), rng.random((40, 60)) < 0.3
    stained = nucleus & (rng.random((40, 60)) < 0.5)
    x, y = rng.uniform(0, 60, (2, 3)).astype(np.float32), rng.uniform(0, 40, (2, 3)).astype(np.float32)
    whole, parts = CellSums(x, y), CellSums(x, y)
    whole.add_nuclei(index, nucleus, (100, 200))
    whole.add_membranes(index, nucleus, stained)
    for columns in (np.s_[:, :25], np.s_[:, 25:]):
        parts.add_nuclei(index[columns], nucleus[columns], (100 + (columns[1].start or 0), 200))
        parts.add_membranes(index[columns], nucleus[columns], stained[columns])
    assert np.allclose(whole.nucleus, parts.nucleus)
    assert np.array_equal(whole.membrane, parts.membrane)
    row, column = np.nonzero(nucleus & (index == 4))
    assert whole.nucleus[0, 4] == len(row)
    assert np.isclose(x.ravel()[4] + whole.nucleus[1, 4] / len(row), column.mean() + 100)
    assert np.isclose(y.ravel()[4] + whole.nucleus[2, 4] / len(row), row.mean() + 200)
