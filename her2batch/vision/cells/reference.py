"""Figures of a slide to which its cells are compared, from the tiles that the stain vectors are fitted to."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.cells.density import density_maps
from her2batch.vision.cells.nuclei import coarse_scale, nuclear_density, shrink_to_grid
from her2batch.vision.membrane import membrane_thresholds
from her2batch.vision.stain import Stains, optical_density, separate_stains

Map = NDArray[np.float32]

MIN_NUCLEUS_OD = 0.04
"""Least density of a slide's typical nuclei, OD: fainter structure is noise."""

MIN_STAINED_PX = 100
"""Stained px of the coarse grid that a figure needs."""

STAINED_OD = 0.12
"""Optical density (mean of channels) from which a px shows the colour of its stain."""

NUCLEAR_FACTOR, DARK_SHARE = 1.2, 0.35
"""Nuclei of nuclear markers are looked for from this multiple of the density by haematoxylin, or this share of that of
the dark ones if it is more: with a pale counterstain, cytoplasm is as dark as its nuclei are by haematoxylin."""


class CellReference(NamedTuple):
    """Figures of a slide, OD except the last two.

    nuclei: density of its nuclei by haematoxylin.  nuclei_and_dab: of its paler nuclei by haematoxylin and DAB.  faint,
    moderate, intense: contrast from which a membrane has that intensity.  background: DAB of unstained tissue.
    negative: DAB of unstained nuclei.  hue_spread: standard deviation of the share of DAB in all stain.  foreign: share
    of the absorbed light that belongs to neither stain.
    """

    nuclei: float
    nuclei_and_dab: float
    faint: float
    moderate: float
    intense: float
    background: float
    negative: float
    hue_spread: float
    foreign: float


def fit_cell_reference(pixels: NDArray[np.uint8], mpp: float, stains: Stains) -> CellReference:
    """Return the figures of a slide from some of its tiles: (n, t, t, 3) uint8 at mpp µm/px."""
    tiles = [density_maps(tile, mpp, stains) for tile in pixels]
    nuclei, total = (
        _typical_nuclei(_joined([nuclear_density(maps, marker, mpp) for maps in tiles]))
        for marker in ("membrane", "nuclear")
    )
    total = min(total, max(NUCLEAR_FACTOR * nuclei, DARK_SHARE * total))
    hue_spread, foreign = _colours(pixels, mpp, stains)
    return CellReference(
        nuclei, total, *membrane_thresholds(stains), stains.background, stains.background, hue_spread, foreign
    )


def _joined(maps: list[Map]) -> Map:
    """Return the values of several maps, (n,) float32."""
    return np.concatenate([one.reshape(-1) for one in maps]) if maps else np.zeros(0, np.float32)


def _typical_nuclei(density: Map) -> float:
    """Return the typical density of nuclei: the median above Otsu's threshold over stained px (Otsu 1979)."""
    stained = density[density > MIN_NUCLEUS_OD / 2]
    if len(stained) < MIN_STAINED_PX:
        return MIN_NUCLEUS_OD
    levels = np.clip(stained * np.float32(255 / np.percentile(stained, 99)), 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    upper = stained[levels > threshold]
    return max(float(np.median(upper)) if len(upper) else 0.0, MIN_NUCLEUS_OD)


def _colours(pixels: NDArray[np.uint8], mpp: float, stains: Stains) -> tuple[float, float]:
    """Return the spread of hue and the share of foreign colour of the stained px."""
    shares, foreign, density = [], 0.0, 0.0
    scale = coarse_scale(mpp)
    for tile in pixels:
        od = separate_stains(optical_density(tile, stains.white), stains)
        h, d, residual, mean = (shrink_to_grid(one, scale) for one in od)
        stained = mean > STAINED_OD
        h, d = np.maximum(h[stained], 0), np.maximum(d[stained], 0)
        shares.append(d / np.maximum(h + d, np.float32(1e-3)))
        foreign += float(np.abs(residual[stained]).sum())
        density += float((h + d).sum())
    values = _joined(shares)
    if len(values) < MIN_STAINED_PX:
        return 1.0, 0.0  # nothing to judge by
    return float(values.std()), foreign / max(density, 1e-6)
