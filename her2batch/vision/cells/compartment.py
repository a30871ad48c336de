"""Likelihood that a cell belongs to the tumour, from its nucleus and its neighbourhood.

Stroma has elongated, sparse nuclei; lymphocytes have small, round, dark ones. The features of a cell, and their means
over the cells around it, enter a logistic model. Its coefficients were fitted on 48,642 cells of synthetic slides of
laboratories 1 to 24, those found in a true nucleus; benchmarks/cell_compartment.py repeats the fit on its own slides.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Map = NDArray[np.float32]

TUMOUR_LIKELIHOOD = 0.5
"""Likelihood from which a cell counts as a tumour cell."""

NEIGHBOURHOOD_UM = 30.0
"""Edge of the square of neighbours: three cells across."""


class CellFeatures(NamedTuple):
    """Properties of n cells, (n,) float32 each.

    area: of the nucleus, µm².  elongation: long over short axis.  density: stain of the nucleus, as a share of the
    slide's typical one.  texture: coefficient of variation of the stain inside the nucleus.
    """

    area: Map
    elongation: Map
    density: Map
    texture: Map


INPUTS = (
    "intercept", "log area", "log elongation", "density", "texture",
    "neighbours", "neighbours' log area", "neighbours' log elongation", "neighbours' density",
)  # fmt: skip
"""Inputs of the model, in the order of the coefficients."""

COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "membrane": (-7.681, 1.212, -1.657, -3.145, -12.814, 0.924, 1.894, -5.775, 3.001),
    "nuclear": (-19.314, 1.282, -1.366, 1.322, -6.43, 0.904, 3.12, -3.393, 0.614),
}
"""Coefficients of the model for each kind of marker."""


def model_inputs(features: CellFeatures, place: NDArray[np.intp], shape: tuple[int, int], um: float) -> Map:
    """Return the inputs of the model: (n, len(INPUTS)) float32.

    place: flat index of each cell's px on a grid of `shape` at `um` µm/px.
    """
    own = np.stack(
        [np.log(features.area), np.log(features.elongation), features.density, features.texture], axis=1
    ).astype(np.float32)
    edge = 2 * round(NEIGHBOURHOOD_UM / um / 2) + 1

    def around(weights: Map | None) -> Map:
        """Return the sum over the square around each cell."""
        total = np.zeros(shape, np.float32)
        np.add.at(total.reshape(-1), place, 1 if weights is None else weights)
        summed = cv2.boxFilter(total, -1, (edge, edge), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(summed.reshape(-1)[place], np.float32)

    count = np.maximum(around(None), 1)
    means = [around(values) / count for values in (own[:, 0], own[:, 1], own[:, 2])]
    density = count * np.float32(1000 / (edge * um) ** 2)  # cells per 1000 µm²
    return np.concatenate([np.ones((len(own), 1), np.float32), own, np.stack([density, *means], axis=1)], axis=1)


def tumour_likelihood(inputs: Map, kind: str) -> Map:
    """Return the likelihood that each cell belongs to the tumour, (n,) float32; inputs as of `model_inputs`."""
    # A matrix product would round as the array happens to lie in memory.
    logit = (inputs * np.asarray(COEFFICIENTS[kind], np.float32)).sum(axis=1, dtype=np.float64)
    return np.asarray(expit(logit), np.float32)
