"""Optical density, separation of haematoxylin and DAB, and the stain properties of a slide."""

from __future__ import annotations

from collections.abc import Sequence
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
"""Optical density (mean of channels) from which a pixel counts as stained in the fit of the stain vectors. Macenko 2009
uses 0.15, which leaves hardly any pixels on pale slides."""

MIN_STAINED_PX = 1_000
"""Stained px, of every third row, that a fit needs. A slide with fewer is pale."""

PALE_SHARE, PALE_STAINED_OD = 0.05, 0.05
"""On a pale slide the darkest px, this share, count as stained, from this optical density. Where they are too few as
well, the published vectors are used; they take faint counterstain for DAB."""

SMOOTH_PX = 1.0
"""σ of the blur before the fit. It halves the noise of JPEG's subsampled chroma in the extreme directions: the fitted
haematoxylin of one laboratory differed by 15° between pale and dark slides without the blur, by 4° with it."""

TRUSTED_COSINE_H, TRUSTED_COSINE_DAB = (0.90, 0.97), (0.90, 0.99)
"""Cosine between fitted and published vector from which the fit counts at all, and from which it counts alone. A vector
further away is another dye, or dirt. A hard limit made the membrane shares of pale real cores depend on which tiles
were sampled."""

DAB_PX_SHARE = (0.01, 0.05)
"""Share of stained px with more DAB than haematoxylin from which the fitted DAB counts at all, and from which it counts
alone: on a slide without DAB, the fitted direction is noise. With this limit, and the 5th percentile for haematoxylin
instead of the 1st (which overshoots on subsampled JPEG colour), 95 of 96 synthetic slides are scored correctly on
either level of their pyramids; without, 95 and 90, with five of 28 HER2 0 slides scored as 1+."""

H_PERCENTILE, DAB_PERCENTILE = 5, 1
"""Percentiles of the stained pixels' directions that represent the stains; Macenko uses 1 for both."""

MIN_NUCLEUS_OD = 0.08
"""Haematoxylin density from which a px counts as nucleus."""

PEN_RESIDUAL_OD, PEN_RED_OD = 0.2, 0.75
"""Optical density of the residual, and of the red channel, beyond which a px may be pen. Real DAB and haematoxylin
reach 0.07 and 0.7 where the staining is usual; strong DAB goes far beyond, which is why brown is excluded."""

BROWN_RED_SHARE, BROWN_BLUE_SHARE = 0.3, 0.6
"""Least density of red, and of blue, as a share of the density of green, of brown and of brown over blue nuclei. DAB
has 0.47 and 1.37 (Ruifrok & Johnston 2001), haematoxylin 0.92 and 0.41; red pen has 0.1 of red, and green and blue
pen absorb more red than green."""

CLIPPED_GREEN_OD, CLIPPED_RED_OD = 1.8, 0.4
"""Density of green, and of red, from which any red is brown: contrasty scanners clip the green of dark brown to black,
so that its share of red is unknown. Red pen has 1.0 and 0.1, and 1.5 and 0.4 over brown tissue."""

BLACK_SPREAD = 0.3
"""Greatest difference between the densities of two channels, as a share of the largest, of black pen; over brown tissue
black pen has 0.27. Brown has 0.65, dark brown in a dark nucleus 0.27 as well, and is distinguished by its width."""

MIN_BLACK_UM = 20.0
"""Least width of black pen. Strokes are hundreds of µm wide; nuclei, and membranes that the scanner clipped to black,
are narrower."""

MIN_BLACK_COVER = 0.8
"""Least share of a square of MIN_BLACK_UM that is black in a stroke; the rest is dark brown that shows through."""

SHADOW_OD, SHADOW_UM, SHADOW_COVER, SHADOW_LENGTH_UM = 0.12, 10.0, 0.6, 60.0
"""A shadow, such as the rim of an air bubble: its least optical density (mean of channels), the edge of a square of
which it covers at least this share, and its least length. On synthetic slides it is found in the rims of 11 of 12
bubbles; without one nowhere on 40 laboratories and five real cores, and on 2 to 4 % of the tissue of a held-out
laboratory whose haematoxylin is grey."""

PEN_RIM_PX = 15
"""Edge of the square by which pen is dilated before a fit: its frayed rim is paler and resembles stain."""

MIN_TISSUE_OD = 0.02
"""Optical density (mean of channels) from which a px of a tile is tissue."""

MIN_EOSIN_SHARE = 0.12
"""Share of pink in the absorbed light from which a slide is H&E: haematoxylin and DAB give 0.00–0.04, H&E more."""


@dataclass(frozen=True)
class Stains:
    """Stain properties of a slide, as plain values that can be compared, hashed and pickled.

    white: R, G, B of its background, 0–255.  haematoxylin, dab: unit vectors.  nuclei: typical haematoxylin density of
    its nuclei, base 10; 0 when none were found.  background: DAB density of its palest tissue.
    """

    white: Vector = (255.0, 255.0, 255.0)
    haematoxylin: Vector = HAEMATOXYLIN
    dab: Vector = DAB
    nuclei: float = 0.0
    background: float = 0.0


def optical_density(rgb: NDArray[np.uint8], white: Vector) -> NDArray[np.float32]:
    """Return the optical density of a brightfield image (Beer–Lambert), base 10, by a table of 256 values per channel.

    rgb: (H, W, 3) uint8.  white: the background, 0–255.  Returns (3, H, W) float32, the fastest layout for stain
    separation; 0 for background, slightly negative for brighter px.  Source: Ruifrok & Johnston 2001.
    """
    return density_of_channels(cv2.split(rgb), white)


def density_of_channels(channels: Sequence[NDArray[np.uint8]], white: Vector) -> NDArray[np.float32]:
    """Return the optical density of an image whose R, G and B are three arrays, (H, W) uint8 each; see above."""
    out = np.empty((3, *channels[0].shape), np.float32)
    for channel, table, density in zip(channels, density_tables(white), out, strict=True):
        cv2.LUT(channel, table, dst=density)
    return out


@lru_cache(maxsize=64)
def density_tables(white: Vector) -> NDArray[np.float32]:
    """Return the optical density of each grey value in each channel: (3, 1, 256)."""
    levels = np.maximum(np.arange(256, dtype=np.float64), 1.0)
    return np.asarray(-np.log10(levels / np.asarray(white)[:, None]), np.float32).reshape(3, 1, 256)


class StainDensities(NamedTuple):
    """Density of each px, base 10, (H, W) float32 each.

    h: haematoxylin.  d: DAB.  residual: absorption by neither stain.  mean: mean density of R, G and B.
    """

    h: NDArray[np.float32]
    d: NDArray[np.float32]
    residual: NDArray[np.float32]
    mean: NDArray[np.float32]


def separate_stains(od: NDArray[np.float32], stains: Stains) -> StainDensities:
    """Separate the stains of an optical density (3, H, W) by colour deconvolution.

    The residual lies along the direction orthogonal to both stains.  Source: Ruifrok & Johnston 2001.
    """
    return StainDensities(*(unmixing_matrix(stains) @ od.reshape(3, -1)).reshape(4, *od.shape[1:]))


def unmix(od: NDArray[np.float32], stains: Stains) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the haematoxylin and DAB density of each pixel: (3, H, W) → two (H, W) float32."""
    h, d = (unmixing_matrix(stains)[:2] @ od.reshape(3, -1)).reshape(2, *od.shape[1:])
    return h, d


@lru_cache(maxsize=64)
def unmixing_matrix(stains: Stains) -> NDArray[np.float32]:
    """Return the matrix (4, 3) that maps R, G, B density to the four fields of StainDensities."""
    h, d = _unit_vector(np.asarray(stains.haematoxylin)), _unit_vector(np.asarray(stains.dab))
    inverse = np.linalg.inv(np.stack([h, d, _unit_vector(np.cross(h, d))]))
    return np.ascontiguousarray(np.vstack([inverse.T, np.full((1, 3), 1 / 3)]), dtype=np.float32)


def pen_mask(od: NDArray[np.float32], residual: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Return the px where pen absorbs the light: (3, H, W) optical density and its residual (H, W) → (H, W) bool.

    Green, blue and red pen leave a large residual; blue and black pen absorb more red than usual staining does. Brown
    is not pen, however dark it is, nor is black or purple that is as narrow as membranes and nuclei.  mpp: µm/px.
    """
    pen = (residual > PEN_RESIDUAL_OD) | (residual < -PEN_RESIDUAL_OD) | (od[0] > PEN_RED_OD)
    place = np.flatnonzero(pen)
    if not len(place):
        return np.asarray(pen, bool)
    red, green, blue = (channel.reshape(-1)[place] for channel in od)
    largest = np.maximum(np.maximum(red, green), blue)
    spread = largest - np.minimum(np.minimum(red, green), blue)
    neutral = spread <= BLACK_SPREAD * largest
    brown = (red >= BROWN_RED_SHARE * green) | ((green >= CLIPPED_GREEN_OD) & (red >= CLIPPED_RED_OD))
    brown &= (red < green) & (blue >= BROWN_BLUE_SHARE * green)
    purple = (red >= BROWN_RED_SHARE * green) & (red < green) & ~brown
    edge = 2 * round(MIN_BLACK_UM / mpp / 2) + 1
    narrow = neutral | purple
    dark = np.zeros(pen.shape, np.uint8)
    dark.reshape(-1)[place] = narrow
    count = cv2.boxFilter(dark, cv2.CV_32F, (edge, edge), normalize=False)
    stroke = (count >= MIN_BLACK_COVER * edge * edge).view(np.uint8)
    wide = cv2.dilate(stroke, np.ones((edge, edge), np.uint8)).reshape(-1)[place] > 0
    pen.reshape(-1)[place] = wide | (~narrow & ~brown)
    return np.asarray(pen, bool)


def shadow_mask(od: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Return the px that absorb all colours alike in long, dense lines or areas: (3, H, W) → (H, W) bool.

    od: optical density.  mpp: µm/px.
    """
    red, green, blue = od
    largest, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    grey = cv2.compare(least, cv2.multiply(largest, 1 - BLACK_SPREAD), cv2.CMP_GE)
    total = cv2.add(cv2.add(red, green), blue)
    grey = cv2.bitwise_and(grey, cv2.compare(total, 3 * SHADOW_OD, cv2.CMP_GE))
    edge = 2 * round(SHADOW_UM / mpp / 2) + 1
    dense = cv2.compare(cv2.boxFilter(grey, -1, (edge, edge)), 255 * SHADOW_COVER, cv2.CMP_GE)
    if not cv2.countNonZero(dense):
        return np.zeros(od.shape[1:], bool)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(dense)
    long = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) * mpp >= SHADOW_LENGTH_UM
    long[0] = False
    return np.asarray(long[labels], bool)


def white_point(overview: NDArray[np.uint8], background: NDArray[np.bool_]) -> Vector:
    """Return R, G, B of the empty background: the median of its brighter half.

    overview: (H, W, 3) uint8.  background: (H, W) bool.  With hardly any background (a core that fills its image), the
    brightest px of the image are used, or 200 where that is brighter.
    """
    pixels = overview[background]
    pixels = pixels[pixels.min(axis=1) > 0] if len(pixels) else pixels  # black padding is not background
    if len(pixels) >= max(50, overview.shape[0] * overview.shape[1] // 200):
        grey = pixels.mean(axis=1)
        white = np.median(pixels[grey >= np.median(grey)], axis=0)
    else:
        white = np.maximum(np.percentile(overview.reshape(-1, 3), 99.5, axis=0), 200.0)
    r, g, b = np.maximum(white, 1.0).tolist()
    return r, g, b


def fit_stain_vectors(sample: NDArray[np.uint8], white: Vector, mpp: float) -> Stains:
    """Fit a slide's stain vectors, nuclear density and DAB background to some of its tiles: (n, t, t, 3) uint8 at mpp.

    The vectors are the extremes of the stained pixels' directions in their main plane (Macenko et al. 2009). They are
    shrunk towards the published vectors the further they are from them, or the less of the stain the slide has: HER2 0
    has no DAB.
    """
    if not len(sample):
        return Stains(white)
    od = np.concatenate([_smooth(optical_density(tile, white)) for tile in sample], axis=1)
    published = separate_stains(od, Stains(white))
    rim = np.ones((PEN_RIM_PX, PEN_RIM_PX), np.uint8)
    clean = cv2.dilate(pen_mask(od, published.residual, mpp).view(np.uint8), rim) == 0
    stained = od[:, ::3][:, _stained(published.mean[::3], clean[::3])].T
    h_vector, dab_vector = _macenko_vectors(stained) if len(stained) >= MIN_STAINED_PX else (HAEMATOXYLIN, DAB)
    h, d, _, mean = separate_stains(od, Stains(white, h_vector, dab_vector))
    nuclear = h[clean & (h > MIN_NUCLEUS_OD)]
    nuclei = float(np.percentile(nuclear, 75)) if len(nuclear) > h.size / 1000 else 0.0
    tissue = d[clean & (mean > MIN_TISSUE_OD)]
    background = max(float(np.percentile(tissue, 10)), 0.0) if len(tissue) else 0.0
    return Stains(white, h_vector, dab_vector, nuclei, background)


def _stained(density: NDArray[np.float32], clean: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which px count as stained. density: mean of R, G, B.  clean: px without pen."""
    stained = clean & (density > MIN_STAINED_OD)
    if np.count_nonzero(stained) >= MIN_STAINED_PX:
        return stained
    darkest = np.quantile(np.where(clean, density, 0.0), 1 - PALE_SHARE, method="lower")
    return clean & (density > max(float(darkest), PALE_STAINED_OD))


def _smooth(od: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (3, H, W) optical density, blurred by SMOOTH_PX."""
    return np.stack([cv2.GaussianBlur(channel, (0, 0), SMOOTH_PX) for channel in od])


def _macenko_vectors(stained: NDArray[np.float32]) -> tuple[Vector, Vector]:
    """Return the haematoxylin and DAB directions of stained pixels (n, 3)."""
    _, axes = np.linalg.eigh(np.cov(stained.astype(np.float64).T))
    plane = axes[:, :0:-1]
    plane = plane * np.where(plane[:1] < 0, -1.0, 1.0)
    angles = np.arctan2(stained @ plane[:, 1], stained @ plane[:, 0])

    def extremes(percent: float) -> list[NDArray[np.float64]]:
        """Return the directions at this percentile from either end, the one that absorbs more blue (DAB) last."""
        ends = (plane @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(angles, [percent, 100 - percent]))
        return sorted((_unit_vector(np.maximum(end, 0.0)) for end in ends), key=lambda end: float(end[2] - end[0]))

    h, d, *_ = separate_stains(stained.T[:, None], Stains())
    dab_weight = _ramp(float((d > h).mean()), DAB_PX_SHARE)
    haematoxylin = _shrink_to_published(extremes(H_PERCENTILE)[0], HAEMATOXYLIN, TRUSTED_COSINE_H, 1.0)
    return haematoxylin, _shrink_to_published(extremes(DAB_PERCENTILE)[1], DAB, TRUSTED_COSINE_DAB, dab_weight)


def _shrink_to_published(
    fitted: NDArray[np.float64], published: Vector, trusted_cosine: tuple[float, float], stain_weight: float
) -> Vector:
    """Return a vector between the published and the fitted one: the closer they are, the more the fitted one counts."""
    prior = _unit_vector(np.asarray(published))
    weight = stain_weight * _ramp(float(fitted @ prior), trusted_cosine)
    if weight == 0:
        return published
    r, g, b = _unit_vector(weight * fitted + (1 - weight) * prior).tolist()
    return r, g, b


def _ramp(value: float, ends: tuple[float, float]) -> float:
    """Return 0 below the first end, 1 above the second, and a linear value between."""
    return float(np.clip((value - ends[0]) / (ends[1] - ends[0]), 0, 1))


def guess_stain(sample: NDArray[np.uint8], stains: Stains) -> str:
    """Return 'he' for a slide with the pink of eosin, otherwise 'ihc': a HER2 0 slide shows haematoxylin alone.

    sample: (n, t, t, 3) uint8.  Pink absorbs green light and hardly any red or blue; haematoxylin absorbs as much red
    as green, DAB more blue than green.
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
