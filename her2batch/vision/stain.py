"""Light into stain: optical density, haematoxylin and DAB, and what is a slide's own about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]

HAEMATOXYLIN: Vector = (0.650, 0.704, 0.286)
DAB: Vector = (0.269, 0.568, 0.778)
"""Optical density of the two stains in R, G, B, unit length.  Source: Ruifrok & Johnston 2001."""

LEAST_OD = 0.15
"""Optical density (mean of channels) from which a pixel counts as stained when vectors are fitted (Macenko 2009)."""

LEAST_STAINED = 20_000
"""Stained px of either stain that a fit needs; with fewer the published vectors stay."""

MOST_TURN = 0.94
"""Cosine between a fitted vector and the published one, at least: further off it is another dye, or dirt."""

NUCLEUS_OD = 0.08
"""Haematoxylin density of the palest nuclei that are looked for."""

EOSIN = 0.12
"""Share of the light taken by pink alone, from which a slide is H&E: haematoxylin and DAB give 0.00–0.04, H&E more."""


@dataclass(frozen=True)
class Stains:
    """A slide's own stain: plain values, so it compares, hashes and travels.

    white: R, G, B of its background, 0–255.  haematoxylin, dab: unit vectors.  nuclei: haematoxylin density that is
    typical of its nuclei, base 10; 0 when none were seen.
    """

    white: Vector = (255.0, 255.0, 255.0)
    haematoxylin: Vector = HAEMATOXYLIN
    dab: Vector = DAB
    nuclei: float = 0.0


def optical_density(rgb: NDArray[np.uint8], white: Vector) -> NDArray[np.float32]:
    """Optical density of a brightfield image (Beer–Lambert), base 10, by a table of 256 values a channel.

    rgb: (H, W, 3) uint8.  white: the background, 0–255.  Returns (H, W, 3) float32; 0 for background, a little below
    for anything brighter.  Source: Ruifrok & Johnston 2001.
    """
    return np.asarray(cv2.LUT(rgb, _table(white)), np.float32)


@lru_cache(maxsize=64)
def _table(white: Vector) -> NDArray[np.float32]:
    levels = np.maximum(np.arange(256, dtype=np.float64)[:, None], 1.0)
    return (-np.log10(levels / np.asarray(white))).astype(np.float32).reshape(1, 256, 3)


def unmix(od: NDArray[np.float32], stains: Stains) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Haematoxylin and DAB density of each pixel: (H, W, 3) → two (H, W) float32.

    The third direction, orthogonal to both, takes what is neither.  Source: Ruifrok & Johnston 2001.
    """
    both = cv2.transform(od, _inverse(stains.haematoxylin, stains.dab))
    h, d = cv2.split(both)
    return np.asarray(h, np.float32), np.asarray(d, np.float32)


@lru_cache(maxsize=64)
def _inverse(haematoxylin: Vector, dab: Vector) -> NDArray[np.float32]:
    h, d = _unit(np.asarray(haematoxylin)), _unit(np.asarray(dab))
    inverse = np.linalg.inv(np.stack([h, d, _unit(np.cross(h, d))]))
    return np.ascontiguousarray(inverse[:, :2].T, dtype=np.float32)


def white_point(overview: NDArray[np.uint8], background: NDArray[np.bool_]) -> Vector:
    """R, G, B of the empty glass: the median of the background's brighter half.

    overview: (H, W, 3) uint8.  background: (H, W) bool.  Where hardly any background is in sight (a core that fills
    its image), the brightest of the image stands in, and nothing below 200 is taken for white.
    """
    pixels = overview[background]
    pixels = pixels[pixels.min(axis=1) > 0] if len(pixels) else pixels  # black padding is no glass
    if len(pixels) >= max(50, overview.shape[0] * overview.shape[1] // 200):
        grey = pixels.mean(axis=1)
        chosen = np.median(pixels[grey >= np.median(grey)], axis=0)
    else:
        chosen = np.percentile(overview.reshape(-1, 3), 99.5, axis=0)
    r, g, b = np.maximum(chosen, 200.0).tolist()
    return r, g, b


def fit_stains(sample: NDArray[np.uint8], white: Vector) -> Stains:
    """A slide's stain vectors and nuclear density from some of its tiles: (n, t, t, 3) uint8 at the tiles' mpp.

    The vectors are the extremes of the stained pixels' directions in their main plane (Macenko et al. 2009), kept only
    where there is enough of both stains and they stay near the published ones.
    """
    if not len(sample):
        return Stains(white)
    flat = sample.reshape(-1, sample.shape[2], 3)
    od = optical_density(flat, white).reshape(-1, 3)
    stained = od[::3][od[::3].mean(axis=1) > LEAST_OD]
    vectors = _macenko(stained) if len(stained) >= LEAST_STAINED else None
    fitted = Stains(white, *vectors) if vectors else Stains(white)
    h, _ = unmix(optical_density(flat, white), fitted)
    nuclear = cv2.GaussianBlur(h, (0, 0), 1.0)
    nuclear = nuclear[nuclear > NUCLEUS_OD]
    nuclei = float(np.percentile(nuclear, 75)) if len(nuclear) > h.size / 1000 else 0.0
    return Stains(fitted.white, fitted.haematoxylin, fitted.dab, nuclei)


def _macenko(stained: NDArray[np.float32]) -> tuple[Vector, Vector] | None:
    """Haematoxylin and DAB directions of stained pixels (n, 3); None when they aren't both there."""
    _, axes = np.linalg.eigh(np.cov(stained.astype(np.float64).T))
    plane = axes[:, :0:-1]
    plane = plane * np.where(plane[:1] < 0, -1.0, 1.0)
    angles = np.arctan2(stained @ plane[:, 1], stained @ plane[:, 0])
    ends = [plane @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(angles, [1, 99])]
    ends = [_unit(np.maximum(end, 0.0)) for end in ends]
    h, d = sorted(ends, key=lambda end: float(end[2] - end[0]))  # DAB takes more blue than red
    near_h = float(h @ _unit(np.asarray(HAEMATOXYLIN)))
    near_d = float(d @ _unit(np.asarray(DAB)))
    if near_h < MOST_TURN or near_d < MOST_TURN:
        return None
    return (float(h[0]), float(h[1]), float(h[2])), (float(d[0]), float(d[1]), float(d[2]))


def marker(sample: NDArray[np.uint8], stains: Stains) -> str:
    """'he' when a slide's colour is eosin's pink, 'ihc' otherwise: a HER2 0 slide is haematoxylin alone.

    sample: (n, t, t, 3) uint8.  Pink takes green light and hardly any red or blue; haematoxylin takes as much red as
    green, DAB more blue than green.
    """
    if not len(sample):
        return "ihc"
    od = optical_density(sample.reshape(-1, sample.shape[2], 3), stains.white)
    stained = od[od.mean(axis=2) > LEAST_OD / 2]
    if len(stained) < 1000:
        return "ihc"
    pink = np.maximum(stained[:, 1] - np.maximum(stained[:, 0], stained[:, 2]), 0.0).mean()
    return "he" if pink / stained.sum(axis=1).mean() > EOSIN else "ihc"


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)
