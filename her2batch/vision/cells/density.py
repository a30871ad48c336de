"""Densities of a block from which nuclei and membranes are read.

Nuclei are read from a coarse grid of about 1 µm/px, membranes from the px of the block. A block is worked through in
chunks that stay in the processor's cache; the result does not depend on them.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.membrane import CHROMA_UM, PEN_RIM_UM, RIDGE_UM, magnitude, restore_dab_detail, without_negatives
from her2batch.vision.stain import Stains, density_of_channels, pen_mask, separate_stains, shadow_mask, unmix

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

COARSE_UM = 1.0
"""Edge of a px of the coarse grid, approximately: a whole number of px of the block."""

SHADOW_RIM_UM = 5.0
"""Width of the pale rim of a shadow: half of the square in which it is found."""

CHUNK_PX = 240
"""Approximate edge of a chunk, px."""


class DensityMaps(NamedTuple):
    """Maps of a block. OD, float32, except `clean`.

    scale: px of the block per px of the coarse grid.
    (H, W): dab, DAB at the resolution of luminance, smoothed by RIDGE_UM; line, height of lines of DAB over their
    sides.
    (H / scale, W / scale): h, d, haematoxylin and DAB; coarse_dab, coarse_line, the two above; clean, bool, neither pen
    nor shadow nor excluded.
    """

    scale: int
    dab: Map
    line: Map
    h: Map
    d: Map
    coarse_dab: Map
    coarse_line: Map
    clean: Mask


def coarse_scale(mpp: float) -> int:
    """Return the px of a block per px of the coarse grid. Blocks of one slide must begin at multiples of it."""
    return max(1, round(COARSE_UM / mpp))


def density_maps(pixels: NDArray[np.uint8], mpp: float, stains: Stains, excluded: Mask | None = None) -> DensityMaps:
    """Return the maps of a block: pixels (H, W, 3) uint8 at mpp µm/px; excluded (H, W) bool.

    Incomplete squares of the coarse grid at the right and lower edge are dropped.
    """
    scale = coarse_scale(mpp)
    height, width = (edge // scale * scale for edge in pixels.shape[:2])
    halo = scale * -(-(round(CHROMA_UM / mpp) + round(4 * RIDGE_UM / mpp) + 2) // scale)
    step = max(1, CHUNK_PX // scale) * scale
    dab, line = np.empty((2, height, width), np.float32)
    od = np.empty((3, height // scale, width // scale), np.float32)
    channels = cv2.split(pixels[:height, :width])  # once: chunks overlap
    for top in range(0, height, step):
        for left in range(0, width, step):
            y, x = max(top - halo, 0), max(left - halo, 0)
            bottom, right = min(top + step, height), min(left + step, width)
            part = density_of_channels([one[y : bottom + halo, x : right + halo] for one in channels], stains.white)
            h, d = unmix(part, stains)
            smooth = cv2.GaussianBlur(restore_dab_detail(h, d, mpp), (0, 0), RIDGE_UM / mpp)
            core = np.s_[top - y : bottom - y, left - x : right - x]
            dab[top:bottom, left:right] = smooth[core]
            line[top:bottom, left:right] = line_height(np.asarray(smooth, np.float32), mpp)[core]
            for channel, out in zip(part, od, strict=True):
                out[top // scale : bottom // scale, left // scale : right // scale] = shrink(channel[core], scale)
    h, d, residual, _ = separate_stains(od, stains)
    um = mpp * scale
    clean = ~_dilate(pen_mask(od, residual, um), PEN_RIM_UM / um) & ~_dilate(shadow_mask(od, um), SHADOW_RIM_UM / um)
    if excluded is not None:
        clean &= shrink(excluded[:height, :width].astype(np.float32), scale) < 0.5
    return DensityMaps(scale, dab, line, h, d, shrink(dab, scale), shrink(line, scale), clean)


def shrink(values: Map, scale: int) -> Map:
    """Return the mean of each square of `scale` px: (H, W) → (H / scale, W / scale) float32."""
    size = values.shape[1] // scale, values.shape[0] // scale
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


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
    spread = magnitude(np.subtract(xx, yy), np.asarray(xy, np.float32))  # k₁ − k₂, half scale
    across = np.subtract(spread, np.add(xx, yy, out=xx), out=xx)
    line = np.minimum(across, np.add(spread, spread, out=spread), out=spread)
    cv2.multiply(line, 2**1.5 * s**2, dst=line)
    return without_negatives(line)


def _dilate(mask: Mask, px: float) -> Mask:
    """Return a mask dilated by `px` pixels."""
    if not mask.any():
        return mask
    edge = 2 * round(px) + 1
    return np.asarray(cv2.dilate(mask.view(np.uint8), np.ones((edge, edge), np.uint8)), np.uint8).view(np.bool_)
