"""Densities of a block from which nuclei and membranes are read."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.membrane import PEN_RIM_UM, RIDGE_UM, restore_dab_detail
from her2batch.vision.stain import Stains, optical_density, pen_mask, separate_stains

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


class DensityMaps(NamedTuple):
    """Maps of a block, (H, W) each.

    h, d: haematoxylin and DAB density, OD.  d_smooth: DAB at the resolution of luminance, smoothed by RIDGE_UM.
    line: height of lines of DAB over their sides, OD.  clean: not pen and not excluded.
    """

    h: Map
    d: Map
    d_smooth: Map
    line: Map
    clean: Mask


def density_maps(pixels: NDArray[np.uint8], mpp: float, stains: Stains, excluded: Mask | None = None) -> DensityMaps:
    """Return the maps of a block: pixels (H, W, 3) uint8 at mpp µm/px; excluded (H, W) bool."""
    od = optical_density(pixels, stains.white)
    h, d, residual, _ = separate_stains(od, stains)
    clean = ~_dilate(pen_mask(od, residual, mpp), PEN_RIM_UM / mpp)
    if excluded is not None:
        clean &= ~excluded
    smooth = cv2.GaussianBlur(restore_dab_detail(h, d, mpp), (0, 0), RIDGE_UM / mpp)
    return DensityMaps(h, d, np.asarray(smooth, np.float32), line_height(np.asarray(smooth, np.float32), mpp), clean)


def line_height(smooth: Map, mpp: float) -> Map:
    """Return the height of lines over their sides, OD: (H, W) float32; dots have none.

    With the curvatures k₁ ≥ k₂ of a px across and along a line, a ridge has the height of k₁, and a round dot has
    k₁ = k₂. The height of a line is that of k₁, or of k₁ − k₂ where both are positive. The scale is that of
    `vision.membrane.ridge_height`.
    """
    s = RIDGE_UM / mpp
    xx = cv2.Sobel(smooth, cv2.CV_32F, 2, 0, ksize=3, scale=0.125)
    yy = cv2.Sobel(smooth, cv2.CV_32F, 0, 2, ksize=3, scale=0.125)
    xy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1, ksize=3, scale=0.25)
    spread = cv2.magnitude(cv2.subtract(xx, yy), xy)  # k₁ − k₂, half scale
    total = cv2.add(xx, yy)
    line = cv2.min(cv2.subtract(spread, total), cv2.add(spread, spread))
    cv2.multiply(line, 2**1.5 * s**2, dst=line)
    return np.asarray(np.maximum(line, 0), np.float32)


def _dilate(mask: Mask, px: float) -> Mask:
    """Return a mask dilated by `px` pixels."""
    if not mask.any():
        return mask
    edge = 2 * round(px) + 1
    return np.asarray(cv2.dilate(mask.view(np.uint8), np.ones((edge, edge), np.uint8)), np.uint8).view(np.bool_)
