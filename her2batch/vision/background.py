"""The empty glass of a slide's overview: where it is, how bright at each place, and the tissue's density over it."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]

MAX_BACKGROUND_STD = 0.0015
"""Local contrast (optical density, mean over 5 × 5 px) below which bright px may be glass: glass has 0.0003–0.001, the
smoothest 1 % of the palest real tissue 0.0018."""

MIN_BACKGROUND_GREY = 200
"""Nothing below this grey is glass."""

MIN_BACKGROUND_SHARE = 0.005
"""Share of the slide from which glass is believed in."""

BACKGROUND_TOLERANCE_OD = 0.012
"""Optical density within which px are of one glass: pale smooth tissue (mucus, fat) stays out."""

MIN_SURFACE_CELLS = 6
"""Cells of a 4 × 4 grid in which glass must be seen before its brightness is modelled as a surface."""

MAX_SURFACE_DEVIATION_OD = 0.05
"""How far that surface may depart from its median: a fit runs away where no glass is."""

SURFACE_SAMPLE_PX = 20_000
"""Px that the surface is fitted to."""


class FlattenedOverview(NamedTuple):
    """An overview as density over its own glass.

    od: (H, W, 3) float32, base 10, 0 in the padding.  glass, padding: (H, W) bool; no glass where none was believed in.
    """

    od: Map
    glass: Mask
    padding: Mask


def flatten_background(rgb: NDArray[np.uint8]) -> FlattenedOverview:
    """Optical density of R, G, B over the glass at each place, of an overview (H, W, 3) uint8.

    Glass is bright and smooth. Its brightness is fitted as a surface of second order where it is seen in enough places,
    which evens out the light of a scanner; elsewhere its median counts, or, where there is none (a core that fills its
    image), the brightest there is.
    """
    padding = _padding_mask(rgb)
    od = np.asarray(cv2.LUT(rgb, _DENSITY_OF_GREY), np.float32)
    grey = channel_mean(od)
    glass = (channel_min(rgb) >= MIN_BACKGROUND_GREY) & ~padding
    if glass.any():
        grey[padding] = np.median(grey[glass])  # a step to the padding is no texture
    glass &= cv2.blur(local_std(grey), (5, 5)) < MAX_BACKGROUND_STD
    if glass.mean() < MIN_BACKGROUND_SHARE:
        brightest = np.maximum(np.percentile(rgb.reshape(-1, 3), 99.5, axis=0), MIN_BACKGROUND_GREY)
        surface, glass = np.log10(255 / brightest), np.zeros_like(glass)
    else:
        surface, glass = _fit_background(od, grey, glass)
    flat = np.asarray(od - surface, np.float32)
    flat[padding] = 0
    return FlattenedOverview(flat, glass, padding)


_DENSITY_OF_GREY = np.repeat(-np.log10(np.maximum(np.arange(256), 1) / 255), 3).astype(np.float32).reshape(1, 256, 3)


def _padding_mask(rgb: NDArray[np.uint8]) -> Mask:
    """Black and pure white that scanners put round and between what they scanned."""
    black = (rgb[..., 0] < 8) & (rgb[..., 1] < 8) & (rgb[..., 2] < 8)
    return remove_small_parts(black, 0.01 * black.size) | (channel_min(rgb) >= 254)


def _fit_background(od: Map, grey: Map, glass: Mask) -> tuple[Map, Mask]:
    """Density of the glass itself, (H, W, 3) or (3,), and the px of (H, W) that are glass indeed.

    Starts from the brightest and takes in what fits, five times.
    """
    h, w = glass.shape
    ys, xs = np.nonzero(glass)
    step = -(-len(ys) // SURFACE_SAMPLE_PX)
    ys, xs = ys[::step], xs[::step]
    terms = _quadratic_terms(xs / max(w - 1, 1), ys / max(h - 1, 1))
    seen = od[ys, xs]
    middle = np.percentile(seen[grey[ys, xs] <= np.percentile(grey[ys, xs], 10)], 50, axis=0)
    factors = np.zeros((terms.shape[1], 3))
    factors[0] = middle
    for _ in range(5):
        like = np.abs((seen - terms @ factors).mean(axis=1)) < BACKGROUND_TOLERANCE_OD
        if not like.any():
            break
        order = terms.shape[1] if _count_covered_cells(xs[like] / w, ys[like] / h) >= MIN_SURFACE_CELLS else 1
        factors[:] = 0
        factors[:order] = np.linalg.lstsq(terms[like][:, :order], seen[like], rcond=None)[0]
        middle = np.median(seen[like], axis=0)
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j].astype(np.float32)
    surface = (
        _quadratic_terms(x, y) @ factors.astype(np.float32) if factors[1:].any() else factors[0].astype(np.float32)
    )
    surface = np.clip(surface, middle - MAX_SURFACE_DEVIATION_OD, middle + MAX_SURFACE_DEVIATION_OD).astype(np.float32)
    level = channel_mean(surface) if surface.ndim == 3 else surface.mean()
    return surface, glass & (np.abs(grey - level) < BACKGROUND_TOLERANCE_OD)


def _quadratic_terms(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """Terms of second order at places x, y (0–1): (…, 6)."""
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _count_covered_cells(x: NDArray[np.floating], y: NDArray[np.floating]) -> int:
    """Cells of a 4 × 4 grid in which at least 2 % of the places x, y (0–1) lie."""
    counts = np.histogram2d(x, y, bins=4, range=((0, 1), (0, 1)))[0]
    return int((counts > 0.02 * counts.sum()).sum())


def channel_mean(image: Map) -> Map:
    """Mean of three channels: (H, W, 3) → (H, W) float32."""
    return np.asarray(cv2.transform(image, np.full((1, 3), 1 / 3, np.float32)), np.float32)


def channel_min(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Least of three channels: (H, W, 3) → (H, W) uint8."""
    r, g, b = cv2.split(rgb)
    return np.asarray(cv2.min(cv2.min(r, g), b), np.uint8)


def local_std(density: Map) -> Map:
    """Local standard deviation over 3 × 3 px: (H, W) float32."""
    middle = cv2.blur(density, (3, 3))
    return np.asarray(np.sqrt(np.maximum(cv2.blur(density * density, (3, 3)) - middle * middle, 0)), np.float32)


def remove_small_parts(mask: Mask, px: float) -> Mask:
    """Drop connected parts of fewer than `px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= px
    keep[0] = False
    return np.asarray(keep[labels], bool)
