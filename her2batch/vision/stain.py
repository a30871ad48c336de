"""Light into stain: optical density, haematoxylin and DAB, and what is a slide's own about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]

HAEMATOXYLIN: Vector = (0.650, 0.704, 0.286)
DAB: Vector = (0.269, 0.568, 0.778)
"""Optical density of the two stains in R, G, B, unit length.  Source: Ruifrok & Johnston 2001."""

MIN_STAINED_OD = 0.12
"""Optical density (mean of channels) from which a pixel counts as stained when vectors are fitted (Macenko 2009: 0.15,
which leaves pale slides hardly a pixel)."""

MIN_STAINED_PX = 1_000
"""Stained px, of every third row, that a fit needs; with fewer the published vectors stay."""

SMOOTH_PX = 1.0
"""σ of the blur before the fit: halves the noise that JPEG's coarse chroma makes of the directions' extremes. Without
it the haematoxylin of one laboratory came out 15° apart on pale and dark slides, with it 4°."""

TRUSTED_COSINE_H, TRUSTED_COSINE_DAB = (0.90, 0.97), (0.90, 0.99)
"""Cosine between a fitted vector and the published one from which the fit counts a little, and alone. Further off it is
another dye, or dirt. A hard cut made the shares of pale real cores jump with the tiles that were drawn."""

DAB_PX_SHARE = (0.01, 0.05)
"""Share of stained px with more DAB than haematoxylin from which DAB is fitted a little, and alone: on a slide without,
the direction found is noise. With it, and the 5th percentile for haematoxylin in place of the 1st (which overshoots on
coarse JPEG colour), 95 of 96 synthetic slides are called right on either level of their pyramids; without, 95 and 90,
five of 28 HER2 0 slides being called 1+."""

H_PERCENTILE, DAB_PERCENTILE = 5, 1
"""Percentiles of the stained pixels' directions that stand for the stains; Macenko takes 1 for both."""

MIN_NUCLEUS_OD = 0.08
"""Haematoxylin density of the palest nuclei that are looked for."""

PEN_RESIDUAL_OD, PEN_RED_OD = 0.2, 0.75
"""Optical density: more that is neither stain, or more in red, is pen. Real DAB and haematoxylin reach 0.07 and 0.7."""

PEN_RIM_PX = 15
"""Px round ink, in all, that are left out of a fit: its frayed rim is paler and passes for stain."""

MIN_TISSUE_OD = 0.02
"""Optical density (mean of channels) from which a px of a tile is tissue."""

MIN_EOSIN_SHARE = 0.12
"""Share of the light taken by pink alone, from which a slide is H&E: haematoxylin and DAB give 0.00–0.04, H&E more."""


@dataclass(frozen=True)
class Stains:
    """A slide's own stain: plain values, so it compares, hashes and travels.

    white: R, G, B of its background, 0–255.  haematoxylin, dab: unit vectors.  nuclei: haematoxylin density that is
    typical of its nuclei, base 10; 0 when none were seen.  background: DAB density of its palest tissue.
    """

    white: Vector = (255.0, 255.0, 255.0)
    haematoxylin: Vector = HAEMATOXYLIN
    dab: Vector = DAB
    nuclei: float = 0.0
    background: float = 0.0


def optical_density(rgb: NDArray[np.uint8], white: Vector) -> NDArray[np.float32]:
    """Optical density of a brightfield image (Beer–Lambert), base 10, by a table of 256 values a channel.

    rgb: (H, W, 3) uint8.  white: the background, 0–255.  Returns (3, H, W) float32, the layout in which the stains are
    told apart fastest; 0 for background, a little below for anything brighter.  Source: Ruifrok & Johnston 2001.
    """
    out = np.empty((3, *rgb.shape[:2]), np.float32)
    for channel, table, place in zip(cv2.split(rgb), _density_tables(white), out, strict=True):
        cv2.LUT(channel, table, dst=place)
    return out


@lru_cache(maxsize=64)
def _density_tables(white: Vector) -> NDArray[np.float32]:
    levels = np.maximum(np.arange(256, dtype=np.float64), 1.0)
    return np.asarray(-np.log10(levels / np.asarray(white)[:, None]), np.float32).reshape(3, 1, 256)


class StainDensities(NamedTuple):
    """Density of each px, base 10, (H, W) float32: haematoxylin, DAB, what is neither, and the mean of R, G and B."""

    h: NDArray[np.float32]
    d: NDArray[np.float32]
    rest: NDArray[np.float32]
    grey: NDArray[np.float32]


def separate_stains(od: NDArray[np.float32], stains: Stains) -> StainDensities:
    """Colour deconvolution of optical density (3, H, W).

    What is neither stain lies along the direction orthogonal to both.  Source: Ruifrok & Johnston 2001.
    """
    return StainDensities(*(_unmixing_matrix(stains) @ od.reshape(3, -1)).reshape(4, *od.shape[1:]))


def unmix(od: NDArray[np.float32], stains: Stains) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Haematoxylin and DAB density of each pixel: (3, H, W) → two (H, W) float32."""
    layers = separate_stains(od, stains)
    return layers.h, layers.d


@lru_cache(maxsize=64)
def _unmixing_matrix(stains: Stains) -> NDArray[np.float32]:
    """(4, 3): rows h, d, rest, grey."""
    h, d = _unit_vector(np.asarray(stains.haematoxylin)), _unit_vector(np.asarray(stains.dab))
    inverse = np.linalg.inv(np.stack([h, d, _unit_vector(np.cross(h, d))]))
    return np.ascontiguousarray(np.vstack([inverse.T, np.full((1, 3), 1 / 3)]), dtype=np.float32)


def pen_mask(od: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where pen, not stain, takes the light: (3, H, W) optical density and its `rest` → (H, W) bool.

    Green, blue and red pen leave much that is neither stain; black takes more red than the two stains ever do. On five
    real cores 1 px in 100,000 has either, and that is dirt.
    """
    return np.asarray((rest > PEN_RESIDUAL_OD) | (rest < -PEN_RESIDUAL_OD) | (od[0] > PEN_RED_OD), bool)


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


def fit_stain_vectors(sample: NDArray[np.uint8], white: Vector) -> Stains:
    """A slide's stain vectors, nuclear density and DAB background from some of its tiles: (n, t, t, 3) uint8.

    The vectors are the extremes of the stained pixels' directions in their main plane (Macenko et al. 2009), drawn to
    the published ones as far as they are off them or the slide lacks the stain: HER2 0 has no DAB.
    """
    if not len(sample):
        return Stains(white)
    od = np.concatenate([_smooth(optical_density(tile, white)) for tile in sample], axis=1)
    first = separate_stains(od, Stains(white))
    rim = np.ones((PEN_RIM_PX, PEN_RIM_PX), np.uint8)
    clean = cv2.dilate(pen_mask(od, first.rest).view(np.uint8), rim) == 0
    stained = od[:, ::3][:, (clean & (first.grey > MIN_STAINED_OD))[::3]].T
    h_vector, dab_vector = _macenko_vectors(stained) if len(stained) >= MIN_STAINED_PX else (HAEMATOXYLIN, DAB)
    h, d, _, grey = separate_stains(od, Stains(white, h_vector, dab_vector))
    nuclear = h[clean & (h > MIN_NUCLEUS_OD)]
    nuclei = float(np.percentile(nuclear, 75)) if len(nuclear) > h.size / 1000 else 0.0
    tissue = d[clean & (grey > MIN_TISSUE_OD)]
    background = max(float(np.percentile(tissue, 10)), 0.0) if len(tissue) else 0.0
    return Stains(white, h_vector, dab_vector, nuclei, background)


def _smooth(od: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([cv2.GaussianBlur(channel, (0, 0), SMOOTH_PX) for channel in od])


def _macenko_vectors(stained: NDArray[np.float32]) -> tuple[Vector, Vector]:
    """Haematoxylin and DAB directions of stained pixels (n, 3)."""
    _, axes = np.linalg.eigh(np.cov(stained.astype(np.float64).T))
    plane = axes[:, :0:-1]
    plane = plane * np.where(plane[:1] < 0, -1.0, 1.0)
    angles = np.arctan2(stained @ plane[:, 1], stained @ plane[:, 0])

    def ends(percent: float) -> list[NDArray[np.float64]]:
        """The two directions that this share of the pixels lies beyond, the more blue-absorbing (DAB) last."""
        found = (plane @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(angles, [percent, 100 - percent]))
        return sorted((_unit_vector(np.maximum(one, 0.0)) for one in found), key=lambda one: float(one[2] - one[0]))

    h, d, *_ = separate_stains(stained.T[:, None], Stains())
    enough = _ramp(float((d > h).mean()), DAB_PX_SHARE)
    return _shrink_to_published(ends(H_PERCENTILE)[0], HAEMATOXYLIN, TRUSTED_COSINE_H, 1.0), _shrink_to_published(
        ends(DAB_PERCENTILE)[1], DAB, TRUSTED_COSINE_DAB, enough
    )


def _shrink_to_published(
    found: NDArray[np.float64], published: Vector, trust: tuple[float, float], enough: float
) -> Vector:
    """Between the published vector and the one found: the nearer they are, the more the latter counts."""
    prior = _unit_vector(np.asarray(published))
    weight = enough * _ramp(float(found @ prior), trust)
    if weight == 0:
        return published
    r, g, b = _unit_vector(weight * found + (1 - weight) * prior).tolist()
    return r, g, b


def _ramp(value: float, ends: tuple[float, float]) -> float:
    """0 below the first, 1 above the second, straight between."""
    return float(np.clip((value - ends[0]) / (ends[1] - ends[0]), 0, 1))


def guess_stain(sample: NDArray[np.uint8], stains: Stains) -> str:
    """'he' when a slide's colour is eosin's pink, 'ihc' otherwise: a HER2 0 slide is haematoxylin alone.

    sample: (n, t, t, 3) uint8.  Pink takes green light and hardly any red or blue; haematoxylin takes as much red as
    green, DAB more blue than green.
    """
    if not len(sample):
        return "ihc"
    od = optical_density(sample.reshape(-1, sample.shape[2], 3), stains.white)
    red, green, blue = od[:, od.mean(axis=0) > MIN_STAINED_OD / 2]
    if len(red) < 1000:
        return "ihc"
    pink = np.maximum(green - np.maximum(red, blue), 0.0).mean()
    return "he" if pink / (red + green + blue).mean() > MIN_EOSIN_SHARE else "ihc"


def _unit_vector(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)
