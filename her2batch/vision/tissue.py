"""Where the tissue is: for pale IHC as well as for deep H&E, on an overview of about 8 µm/px."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

SMALLEST_MM2 = 0.05
"""Pieces below this are dirt."""

HOLE_MM2 = 0.02
"""Holes below this belong to the tissue around them."""

BLUR_PX = 1.5

FAINTEST, PLAINEST = 0.010, 0.060
"""Optical density between which Otsu may put its threshold: below is the noise of glass, above is tissue whatever the
histogram says. Without the cap a dark 3+ piece pushes the pale pieces beside it into the background."""

FULL = 0.98
"""A mask that covers more of the slide than this has found no background."""

TEXTURE = 0.35
"""Weight of local contrast beside density: pale tissue is told from glass by its structure first."""


@dataclass(frozen=True)
class Tissue:
    """mask: (H, W) bool.  method: the segmentation that was used.  disagreement: 1 − Dice of the two.

    pen: (H, W) bool, ink on the glass, which is no tissue.
    """

    mask: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    method: str
    disagreement: float


def segment(rgb: NDArray[np.uint8], mpp: float) -> Tissue:
    """Find the tissue of a slide's overview: (H, W, 3) uint8 at `mpp` µm/px.

    Contrast stretch, Gaussian blur, Otsu and watershed (paper, 2.3) on density and texture; a second segmentation, by
    saturation, stands in where the first finds nothing plausible.
    """
    pen = pen_mask(rgb, mpp)
    first = _clean(_by_density(rgb) & ~pen, mpp)
    second = _clean(_by_saturation(rgb) & ~pen, mpp)
    disagreement = _disagreement(first, second)
    if not first.any() and second.any() and second.mean() < FULL:
        return Tissue(second, pen, "saturation", disagreement)
    return Tissue(first, pen, "density", disagreement)


def _by_density(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Density and texture, blurred, thresholded by Otsu within bounds, split along watersheds."""
    signal = _signal(rgb)
    if min(signal.shape) > 4:  # the outermost px are averages with the padding of the slide's last chunks
        signal = cv2.copyMakeBorder(signal[1:-1, 1:-1], 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    signal = cv2.GaussianBlur(signal, (0, 0), BLUR_PX)
    black = rgb.max(axis=2) < 8  # padding that scanners put round a scan
    threshold = _threshold(signal[~black])
    return (signal > threshold) & ~_large(black)


def _signal(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) float32: mean optical density against the local glass, and the local spread of it."""
    glass = _glass(rgb)
    od = np.maximum(-np.log10(np.maximum(rgb, 1) / glass), 0.0).astype(np.float32)
    density = od.mean(axis=2) + 0.5 * (od.max(axis=2) - od.min(axis=2))  # colour counts: stain has some, dust has not
    mean = cv2.blur(density, (3, 3))
    spread = np.sqrt(np.maximum(cv2.blur(density * density, (3, 3)) - mean * mean, 0.0))
    return np.asarray(density + TEXTURE * spread, np.float32)


def _glass(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """R, G, B of empty glass: the most frequent bright grey. Nothing below 200 counts as glass."""
    grey = rgb.min(axis=2)
    bright = grey >= 200
    if bright.mean() < 0.002:
        return np.full(3, 245.0)
    counts = np.bincount(grey[bright], minlength=256).astype(np.float64)
    mode = int(np.convolve(counts, np.ones(5) / 5, "same").argmax())
    near = bright & (np.abs(grey.astype(np.int16) - mode) <= 4)
    return np.asarray(np.median(rgb[near], axis=0), np.float64)


def _threshold(signal: NDArray[np.float32]) -> float:
    """Otsu's threshold of the stretched signal, kept within FAINTEST and PLAINEST (optical density)."""
    if not signal.size:
        return PLAINEST
    top = max(float(np.percentile(signal, 99)), PLAINEST)
    stretched = (np.sqrt(np.clip(signal / top, 0, 1)) * 255).astype(np.uint8)  # the root lifts what is pale
    level, _ = cv2.threshold(stretched.reshape(1, -1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip((level / 255) ** 2 * top, FAINTEST, PLAINEST))


def _by_saturation(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The field's usual way, for comparison: saturation, median blur, Otsu, at least 8 of 255."""
    saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 7)
    level, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask = (saturation > max(8.0, level)).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8)), bool)


def pen_mask(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Ink: saturated hues that neither haematoxylin, eosin nor DAB has, and black that is no shadow of tissue."""
    hue, saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))
    green = (hue > 35) & (hue < 95) & (saturation > 70)
    blue = (hue >= 95) & (hue < 125) & (saturation > 165)
    red = ((hue > 174) | (hue < 4)) & (saturation > 180) & (value > 110)
    black = (value < 55) & (saturation < 90) & (value >= 8)
    ink = _without_small((green | blue | red | black), SMALLEST_MM2 * 1e6 / mpp**2)
    return np.asarray(cv2.dilate(ink.astype(np.uint8), np.ones((5, 5), np.uint8)), bool) if ink.any() else ink


def _clean(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Close, split along watersheds, drop pieces and fill holes that are too small to matter."""
    if not mask.any():
        return mask
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
    px = 1e6 / mpp**2
    filled = ~_without_small(~closed, HOLE_MM2 * px)
    return _without_small_pieces(filled, SMALLEST_MM2 * px)


def _without_small_pieces(mask: NDArray[np.bool_], px: float) -> NDArray[np.bool_]:
    """Drop small pieces; pieces that only touch are told apart by the watershed of the distance to the rim."""
    distance = ndimage.distance_transform_edt(mask)
    peaks = peak_local_max(distance, min_distance=10, labels=ndimage.label(mask)[0], exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    pieces = watershed(-distance, markers, mask=mask)
    whole = _without_small(mask, px)
    necks = np.bincount(pieces[mask & ~whole].ravel(), minlength=len(peaks) + 1)
    sizes = np.bincount(pieces.ravel(), minlength=len(peaks) + 1)
    keep = sizes >= np.maximum(px, 1)
    keep[0] = False
    keep |= (necks == 0) & (sizes > 0) & (np.arange(len(sizes)) > 0)  # a small basin of a large piece stays
    return np.asarray(keep[pieces] & mask & whole, bool)


def _without_small(mask: NDArray[np.bool_], px: float) -> NDArray[np.bool_]:
    """Drop connected parts of fewer than `px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= px
    keep[0] = False
    return np.asarray(keep[labels], bool)


def _large(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return _without_small(mask, 0.01 * mask.size) if mask.any() else mask


def _disagreement(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """1 − Dice; 0 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 - 2.0 * int((a & b).sum()) / total if total else 0.0


def tile_fractions(mask: NDArray[np.bool_], width: int, height: int, tiles: NDArray[np.int32]) -> NDArray[np.float32]:
    """Share of each tile that is tissue, outside the slide counted as none: (n,) float32.

    mask: (h, w) bool over the whole slide.  width, height: of level 0, px.  tiles: (n, 3) int32 x, y, size, level-0 px.
    Areas are exact: a tile that covers part of a mask px gets that part.
    """
    sums = np.pad(mask.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    x, y, size = (tiles[:, k].astype(np.float64) for k in range(3))
    fx, fy = mask.shape[1] / width, mask.shape[0] / height
    area = (
        _integral(sums, (x + size) * fx, (y + size) * fy)
        - _integral(sums, x * fx, (y + size) * fy)
        - _integral(sums, (x + size) * fx, y * fy)
        + _integral(sums, x * fx, y * fy)
    )
    return np.clip(area / np.maximum(size * size * fx * fy, 1e-12), 0, 1).astype(np.float32)


def _integral(sums: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The summed mask left of x and above y, between its grid points by bilinear interpolation."""
    h, w = sums.shape[0] - 1, sums.shape[1] - 1
    x, y = np.clip(x, 0, w), np.clip(y, 0, h)
    x0, y0 = np.minimum(x.astype(int), w - 1), np.minimum(y.astype(int), h - 1)
    u, v = x - x0, y - y0
    top = sums[y0, x0] * (1 - u) + sums[y0, x0 + 1] * u
    bottom = sums[y0 + 1, x0] * (1 - u) + sums[y0 + 1, x0 + 1] * u
    return np.asarray(top * (1 - v) + bottom * v, np.float64)
