"""Figures of a slide to which its cells are compared, from the tiles that the stain vectors are fitted to."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.cells.density import coarse_scale, density_maps, shrink
from her2batch.vision.cells.nuclei import Marker, nuclear_density
from her2batch.vision.membrane import ABSORBED_LIGHT, REFERENCE_NUCLEI_OD
from her2batch.vision.stain import Stains, optical_density, separate_stains

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

MARKERS: tuple[Marker, Marker] = ("membrane", "nuclear")

MIN_NUCLEUS_OD = 0.04
"""Least density of a slide's typical nuclei, OD: fainter structure is noise."""

MIN_STAINED_PX = 100
"""Stained px of the coarse grid that a figure needs."""

STAINED_OD = 0.12
"""Optical density (mean of channels) from which a px shows the colour of its stain."""

MIN_CLEAN_SHARE = 0.5
"""Share of the tiles' area from which pen and shadows are left out of the figures. A strange colour that covers more is
no artefact over the tissue but its stain, for which the slide must be refused."""

NUCLEAR_FACTOR = 0.9
"""Typical density of the nuclei of nuclear markers, as a multiple of that by haematoxylin and of that of blue px: in
intensely brown nuclei the scanner's contrast leaves haematoxylin that is not there. Unstained nuclei are the
palest and must not be missed beside dark ones: with 1.2, the positive share of synthetic slides was 4 % too high, with
0.9 1 %."""

CONTRAST_EXPONENT, CONTRAST_RANGE = 0.25, (0.6, 1.6)
"""Power of the ratio of the slide's nuclear density to REFERENCE_NUCLEI_OD by which the levels are shifted: section
thickness and the scanner's contrast change both stains, but counterstain and DAB are developed apart. With a power of
0, 84 % of the slides above were scored right, with 0.25 90 %, and with 0.5, the membrane rule's, 90 %."""


def membrane_levels(stains: Stains) -> tuple[float, float, float]:
    """Return the contrast (OD) from which a membrane of this slide is faint, moderate and intense."""
    ratio = stains.nuclei / REFERENCE_NUCLEI_OD if stains.nuclei > 0 else 1.0
    shift = float(np.clip(ratio**CONTRAST_EXPONENT, *CONTRAST_RANGE))
    faint, moderate, intense = (float(-np.log10(1 - absorbed) * shift) for absorbed in ABSORBED_LIGHT.values())
    return faint, moderate, intense


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

    @property
    def contrast(self) -> float:
        """Factor by which section thickness and scanner shift the levels of staining; 1 on a usual slide."""
        return float(self.moderate / -np.log10(1 - ABSORBED_LIGHT["moderate"]))


def fit_cell_reference(pixels: NDArray[np.uint8], mpp: float, stains: Stains) -> CellReference:
    """Return the figures of a slide from some of its tiles: (n, t, t, 3) uint8 at mpp µm/px."""
    tiles = [density_maps(tile, mpp, stains) for tile in pixels]
    clean = [maps.clean for maps in tiles]
    if np.mean([px.mean() for px in clean]) < MIN_CLEAN_SHARE:
        clean = [np.ones_like(px) for px in clean]
    unstained = [px & (maps.h > maps.d) for maps, px in zip(tiles, clean, strict=True)]

    blue, both = ([nuclear_density(maps, marker, mpp) for maps in tiles] for marker in MARKERS)

    def typical(densities: list[Map], where: list[Mask], otherwise: float = MIN_NUCLEUS_OD) -> float:
        return _typical_nuclei(_joined([one[px] for one, px in zip(densities, where, strict=True)]), otherwise)

    nuclei, total = typical(blue, clean), typical(both, clean)
    total = min(total, NUCLEAR_FACTOR * min(nuclei, typical(both, unstained, nuclei)))
    levels = membrane_levels(stains)
    # in dark brown, and where the scanner clips it to black, haematoxylin is left that is not there
    pale = [px & (maps.d < stains.background + levels[1]) for px, maps in zip(clean, tiles, strict=True)]
    nuclei = min(nuclei, typical(blue, pale, nuclei))
    hue_spread, foreign = _colours(pixels, mpp, stains, clean)
    return CellReference(nuclei, total, *levels, stains.background, stains.background, hue_spread, foreign)


def _joined(maps: list[Map]) -> Map:
    """Return the values of several maps, (n,) float32."""
    return np.concatenate([one.reshape(-1) for one in maps]) if maps else np.zeros(0, np.float32)


def _typical_nuclei(density: Map, otherwise: float) -> float:
    """Return the typical density of nuclei: the median above Otsu's threshold over stained px (Otsu 1979).

    otherwise: the density where hardly any px is stained.
    """
    stained = density[density > MIN_NUCLEUS_OD / 2]
    if len(stained) < MIN_STAINED_PX:
        return otherwise
    levels = np.clip(stained * np.float32(255 / np.percentile(stained, 99)), 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    upper = stained[levels > threshold]
    return max(float(np.median(upper)) if len(upper) else 0.0, MIN_NUCLEUS_OD)


def _colours(pixels: NDArray[np.uint8], mpp: float, stains: Stains, clean: list[Mask]) -> tuple[float, float]:
    """Return the spread of hue and the share of foreign colour of the stained px.

    The hue is that of the coarse grid, which JPEG's noise does not reach. Foreign colour is that of single px, because
    random colours are grey on average.  clean: where each tile has no artefacts, on the coarse grid.
    """
    shares, foreign, density = [], 0.0, 0.0
    scale = coarse_scale(mpp)
    for tile, usable in zip(pixels, clean, strict=True):
        fine = separate_stains(optical_density(tile, stains.white), stains)
        stained = (fine.mean > STAINED_OD) & _enlarge(usable, fine.mean.shape)
        foreign += float(np.abs(fine.residual[stained]).sum())
        density += float(np.abs(fine.h[stained] + fine.d[stained]).sum())
        h, d, mean = (shrink(one, scale) for one in (fine.h, fine.d, fine.mean))
        dark = (mean > STAINED_OD) & usable
        shares.append(d[dark] / np.maximum(h[dark] + d[dark], np.float32(1e-3)))
    values = _joined(shares)
    if len(values) < MIN_STAINED_PX:
        return 1.0, 0.0  # nothing to judge by
    return float(np.clip(values, -1, 2).std()), foreign / max(density, 1e-6)


def _enlarge(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Return a mask of the coarse grid at the resolution of a tile, (H, W) bool."""
    large = cv2.resize(mask.view(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(large, np.uint8).view(np.bool_)
