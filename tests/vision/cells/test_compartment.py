"""Tumour or not: large, round, dense cells against spindly, sparse ones."""

import numpy as np

from her2batch.vision.cells.compartment import INPUTS, CellFeatures, model_inputs, tumour_likelihood


def likelihood(area: float, elongation: float, step: int, kind: str) -> np.ndarray:
    y, x = (one.ravel() for one in np.mgrid[0:120:step, 0:120:step])
    n = len(x)
    columns = [np.full(n, value, np.float32) for value in (area, elongation, 1.0, 0.25)]
    inputs = model_inputs(CellFeatures(*columns), y * 120 + x, (120, 120), 1.0)
    assert inputs.shape == (n, len(INPUTS))
    return tumour_likelihood(inputs, kind)


def test_tumour_is_told_from_stroma() -> None:
    for kind in ("membrane", "nuclear"):
        tumour, stroma = likelihood(45, 1.2, 11, kind), likelihood(18, 3.0, 22, kind)
        assert tumour.mean() > 0.9
        assert stroma.mean() < 0.2
