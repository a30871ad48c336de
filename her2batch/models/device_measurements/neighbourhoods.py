"""Filters over the neighbourhood of each px, as torch operations on maps (n, h, w), equal to OpenCV's.

Sums and extremes over a window are built from windows of 1, 2, 4, … px: one of k px takes at most 2 · log2(k)
operations. All filters are elementwise operations and copies, which are repeatable on every device, and none of them
waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import torch

Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

ROWS, COLUMNS = 1, 2
"""Dimensions of a map (n, h, w)."""


def gaussian_blur(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur maps (n, h, w) float32 by a Gaussian of σ px, as cv2.GaussianBlur does with a kernel of size (0, 0)."""
    weights = _gaussian_weights(sigma)
    for dim in (COLUMNS, ROWS):
        length, radius = values.shape[dim], len(weights) - 1
        padded = _pad_mirrored(values, dim, radius)
        values = padded.narrow(dim, radius, length) * weights[0]
        for distance, weight in enumerate(weights[1:], start=1):
            pair = padded.narrow(dim, radius - distance, length) + padded.narrow(dim, radius + distance, length)
            values = values.add_(pair, alpha=weight)
    return values


@lru_cache(maxsize=64)
def _gaussian_weights(sigma: float) -> tuple[float, ...]:
    """Return the weights of the middle px and of those at 1, 2, … px from it."""
    size = round(sigma * 8 + 1) | 1  # of cv2.GaussianBlur for float32
    kernel = cv2.getGaussianKernel(size, sigma, cv2.CV_32F).ravel()
    return tuple(float(weight) for weight in kernel[size // 2 :])


def box_sum(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Sum maps (n, h, w) over the square of `edge` px (odd) around each px. Px outside mirror those inside."""
    for dim in (COLUMNS, ROWS):
        values = _slide_window(_pad_mirrored(values, dim, edge // 2), edge, dim, torch.add)
    return values


def box_mean(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Average maps (n, h, w) over the square of `edge` px (odd) around each px, as cv2.blur does."""
    return box_sum(values, edge) * (1 / edge**2)  # not in place: the sum over one px is the map itself


def dilate(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Return the maximum in the square of `edge` px (odd) around each px: (n, h, w). Px outside do not count."""
    lowest = 0 if values.dtype in (torch.uint8, torch.bool) else -torch.inf
    for dim in (COLUMNS, ROWS):
        values = _slide_window(_pad_constant(values, dim, edge // 2, lowest), edge, dim, torch.maximum)
    return values


def erode(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Return the minimum of float32 maps (n, h, w) in the square of `edge` px around each px."""
    return dilate(values.neg(), edge).neg_()


def opening(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Return the morphological opening of float32 maps (n, h, w) by a square of `edge` px."""
    return dilate(erode(values, edge), edge)


def second_derivatives(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the Sobel derivatives xx, yy, xy (n, h, w) of maps, scaled so that xx is half of a second difference."""
    (left, middle, right) = _neighbours(values, COLUMNS)
    across, along = left + right - 2 * middle, left + right + 2 * middle
    slope = right - left
    (above, row, below) = _neighbours(across, ROWS)
    xx = (above + below + 2 * row) * 0.125
    (above, row, below) = _neighbours(along, ROWS)
    yy = (above + below - 2 * row) * 0.125
    (above, _, below) = _neighbours(slope, ROWS)
    return xx, yy, (below - above) * 0.25


def _neighbours(values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the px before, the px itself and the px after, along a dimension."""
    padded, length = _pad_mirrored(values, dim, 1), values.shape[dim]
    return padded.narrow(dim, 0, length), values, padded.narrow(dim, 2, length)


def _slide_window(padded: torch.Tensor, size: int, dim: int, combine: Combine) -> torch.Tensor:
    """Combine every `size` px in a row along a dimension, which becomes shorter by size − 1."""
    length = padded.shape[dim] - size + 1
    result, offset, power, window = None, 0, 1, padded
    while True:
        if size & power:
            piece = window.narrow(dim, offset, length)
            result = piece if result is None else combine(result, piece)
            offset += power
        if 2 * power > size:
            assert result is not None
            return result
        shorter = window.shape[dim] - power
        window = combine(window.narrow(dim, 0, shorter), window.narrow(dim, power, shorter))
        power *= 2


def _pad_mirrored(values: torch.Tensor, dim: int, px: int) -> torch.Tensor:
    """Pad maps along a dimension with their mirror image without the px at the edge (BORDER_REFLECT_101)."""
    if px == 0:
        return values
    return values.index_select(dim, _mirrored_rows(values.shape[dim], px, values.device))


@lru_cache(maxsize=256)
def _mirrored_rows(length: int, px: int, device: torch.device) -> torch.Tensor:
    """Return the row that stands at each position of a padded dimension: (length + 2 px,) int64."""
    period = max(2 * (length - 1), 1)
    at = np.arange(-px, length + px) % period
    return torch.from_numpy(np.minimum(at, period - at)).to(device)


def _pad_constant(values: torch.Tensor, dim: int, px: int, value: float) -> torch.Tensor:
    """Pad maps along a dimension with a value."""
    sides = (px, px) if dim == COLUMNS else (0, 0, px, px)
    return torch.nn.functional.pad(values, sides, value=value)
