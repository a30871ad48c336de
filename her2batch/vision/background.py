"""Find the empty background of a slide's overview and express the overview as optical density over it."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]

MAX_BACKGROUND_STD = 0.0015
"""Local contrast (optical density, mean over 5 × 5 px) below which bright px may be background. Background has
0.0003–0.001, the smoothest 1 % of the palest real tissue 0.0018."""

USUAL_GREY = 220
"""Grey value of the brightest px below which a background may have more contrast: the darker, the further apart in
optical density are two grey values, which is all that a coarse JPEG leaves of a background that darkens towards the
corners. The slides of one synthetic laboratory had a tenth of their background, and some of another had none."""

MIN_BACKGROUND_GREY = 200
"""Darkest grey value of a background px on a slide that has px this bright."""

MIN_BACKGROUND_LIGHT = 0.85
"""Least light of a background px as a share of the slide's brightest px, on a scanner whose background is dark."""

MIN_BACKGROUND_SHARE = 0.005
"""Share of the overview that must look like background; with less, the slide counts as having none."""

BACKGROUND_TOLERANCE_OD = 0.012
"""Largest difference in optical density from the fitted background. Keeps pale smooth tissue (mucus, fat) out."""

MIN_SURFACE_CELLS = 6
"""Cells of a 4 × 4 grid that must hold background before its brightness is modelled as a surface."""

MAX_SURFACE_DEVIATION_OD = 0.05
"""Limit on the surface's distance from its median: a fit diverges where there is no background."""

SURFACE_SAMPLE_PX = 20_000
"""Number of px to which the surface is fitted."""


class FlattenedOverview(NamedTuple):
    """An overview as optical density over its own background.

    od: (H, W, 3) float32, base 10, 0 in the padding.  background, padding: (H, W) bool; background is empty when the
    slide has too little of it.
    """

    od: Map
    background: Mask
    padding: Mask


def flatten_background(rgb: NDArray[np.uint8]) -> FlattenedOverview:
    """Return the optical density of R, G, B over the local background of an overview (H, W, 3) uint8.

    Background is bright and smooth. Where it covers enough of the slide, its brightness is fitted as a second-order
    surface, which corrects uneven illumination; otherwise its median is used. Without any background (a core that
    fills its image), the brightest px of the overview stand in for it.
    """
    padding = _padding_mask(rgb)
    od = np.asarray(cv2.LUT(rgb, _DENSITY_OF_GREY), np.float32)
    grey = channel_mean(od)
    darkest = channel_min(rgb)
    glass = float(np.percentile(darkest[~padding], 99.5)) if not padding.all() else 255.0
    background = (darkest >= min(MIN_BACKGROUND_GREY, MIN_BACKGROUND_LIGHT * glass)) & ~padding
    if background.any():
        grey[padding] = np.median(grey[background])  # the step to the padding is not texture
    background &= cv2.blur(local_std(grey), (5, 5)) < MAX_BACKGROUND_STD * max(USUAL_GREY / max(glass, 1.0), 1.0)
    if background.mean() < MIN_BACKGROUND_SHARE:
        brightest = np.maximum(np.percentile(rgb.reshape(-1, 3), 99.5, axis=0), MIN_BACKGROUND_GREY)
        surface, background = np.log10(255 / brightest), np.zeros_like(background)
    else:
        surface, background = _fit_background(od, grey, background)
    flat = np.asarray(od - surface, np.float32)
    flat[padding] = 0
    return FlattenedOverview(flat, background, padding)


_DENSITY_OF_GREY = np.repeat(-np.log10(np.maximum(np.arange(256), 1) / 255), 3).astype(np.float32).reshape(1, 256, 3)


def _padding_mask(rgb: NDArray[np.uint8]) -> Mask:
    """Return the black and pure white areas that scanners put around and between the scanned regions."""
    black = (rgb[..., 0] < 8) & (rgb[..., 1] < 8) & (rgb[..., 2] < 8)
    return remove_small_parts(black, 0.01 * black.size) | (channel_min(rgb) >= 254)


def _fit_background(od: Map, grey: Map, candidates: Mask) -> tuple[Map, Mask]:
    """Return the density of the background itself, (H, W, 3) or (3,), and the px (H, W) that agree with it.

    The fit starts from the brightest candidates and is repeated five times with the px that agree with it.
    """
    h, w = candidates.shape
    ys, xs = np.nonzero(candidates)
    step = -(-len(ys) // SURFACE_SAMPLE_PX)
    ys, xs = ys[::step], xs[::step]
    terms = _quadratic_terms(xs / max(w - 1, 1), ys / max(h - 1, 1))
    samples = od[ys, xs]
    middle = np.percentile(samples[grey[ys, xs] <= np.percentile(grey[ys, xs], 10)], 50, axis=0)
    factors = np.zeros((terms.shape[1], 3))
    factors[0] = middle
    for _ in range(5):
        inliers = np.abs((samples - terms @ factors).mean(axis=1)) < BACKGROUND_TOLERANCE_OD
        if not inliers.any():
            break
        n_cells = _count_covered_cells(xs[inliers] / w, ys[inliers] / h)
        n_terms = terms.shape[1] if n_cells >= MIN_SURFACE_CELLS else 1
        factors[:] = 0
        factors[:n_terms] = np.linalg.lstsq(terms[inliers][:, :n_terms], samples[inliers], rcond=None)[0]
        middle = np.median(samples[inliers], axis=0)
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j].astype(np.float32)
    surface = (
        _quadratic_terms(x, y) @ factors.astype(np.float32) if factors[1:].any() else factors[0].astype(np.float32)
    )
    surface = np.clip(surface, middle - MAX_SURFACE_DEVIATION_OD, middle + MAX_SURFACE_DEVIATION_OD).astype(np.float32)
    level = channel_mean(surface) if surface.ndim == 3 else surface.mean()
    return surface, candidates & (np.abs(grey - level) < BACKGROUND_TOLERANCE_OD)


def _quadratic_terms(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the terms of a second-order surface at positions x, y (0–1): (…, 6)."""
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _count_covered_cells(x: NDArray[np.floating], y: NDArray[np.floating]) -> int:
    """Count the cells of a 4 × 4 grid that hold at least 2 % of the positions x, y (0–1)."""
    counts = np.histogram2d(x, y, bins=4, range=((0, 1), (0, 1)))[0]
    return int((counts > 0.02 * counts.sum()).sum())


def channel_mean(image: Map) -> Map:
    """Return the mean of three channels: (H, W, 3) → (H, W) float32."""
    return np.asarray(cv2.transform(image, np.full((1, 3), 1 / 3, np.float32)), np.float32)


def channel_min(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the minimum of three channels: (H, W, 3) → (H, W) uint8."""
    r, g, b = cv2.split(rgb)
    return np.asarray(cv2.min(cv2.min(r, g), b), np.uint8)


def local_std(density: Map) -> Map:
    """Return the local standard deviation over 3 × 3 px: (H, W) float32."""
    local_mean = cv2.blur(density, (3, 3))
    return np.asarray(np.sqrt(np.maximum(cv2.blur(density * density, (3, 3)) - local_mean * local_mean, 0)), np.float32)


def remove_small_parts(mask: Mask, px: float) -> Mask:
    """Remove connected components of fewer than `px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= px
    keep[0] = False
    return np.asarray(keep[labels], bool)


# -- areas without image -----------------------------------------------------------------------------------------

BLACK_GREY, WHITE_GREY = 2, 254
"""Grey values at and beyond which a px may belong to a tile that is filled with black or white."""

MAX_WHITE_RIM = 0.1
"""Share of the px around a white tile that may be white: more continue the white of an overexposed background."""

MAX_PART_SHARE = 0.01
"""Share of the overview from which black or white areas at its edge are padding around the scanned regions."""

MIN_CUT_SHARE = 0.25
"""Share of the edge of the tissue along which it goes on into areas without image, from which it was cut off. Below it,
how far the tissue goes on cannot be told: a row of tiles at the edge of the slide may hold the last 50 px of it."""

MIN_TISSUE_RIM = 0.5
"""Share of the px around an area without image that must be tissue if the area lies in tissue."""


def touched_pixels(mask: Mask, extent: tuple[float, float], size: tuple[float, float], shape: tuple[int, int]) -> Mask:
    """Return the px of an overview, (H, W) = `shape`, that touch a cell of a mask (h, w).

    extent, size: height and width that the mask and the overview cover, in one unit, from one corner.
    """
    ranges = []
    for cells, covered, length, px in zip(mask.shape, extent, size, shape, strict=True):
        edges = np.arange(px + 1) * (length / px * cells / covered)
        first = np.clip(np.floor(edges[:-1] + 1e-6), 0, cells - 1).astype(int)
        ranges.append((first, np.clip(np.ceil(edges[1:] - 1e-6), first + 1, cells).astype(int)))
    return _box_sums(mask, *ranges) > 0


def filled_tiles(rgb: NDArray[np.uint8], tile: tuple[float, float]) -> Mask:
    """Return the px of the tiles that are filled with black or white in place of an image: (H, W) bool.

    rgb: overview (H, W, 3) uint8.  tile: height and width of a tile of level 0, in px of the overview.  Large
    black areas at the edge are padding, and no such tiles; nor are tiles in the white of an overexposed background.
    """
    black = rgb.max(axis=2) <= BLACK_GREY
    parts = _label_parts(black)
    black &= ~_is_padding(parts)[parts]
    white = channel_min(rgb) >= WHITE_GREY
    found = np.zeros(black.shape, bool)
    for colour in (black, white):
        if colour.any():
            filled = _whole_tiles(colour, tile)
            labels = _label_parts(filled)
            around = _rim_shares(labels, colour)
            found |= filled & (around <= MAX_WHITE_RIM)[labels]
    return found


def _whole_tiles(mask: Mask, tile: tuple[float, float]) -> Mask:
    """Return the px of the tiles all of whose px are in a mask (H, W); tiles below 2 × 2 px are none."""
    if min(tile) < 2:
        return np.zeros_like(mask)
    ranges = []
    for length, edge in zip(mask.shape, tile, strict=True):
        starts = np.arange(max(1, round(length / edge + 0.499))) * edge
        first = np.ceil(starts - 1e-6).astype(int)
        last = np.minimum(np.floor(starts + edge + 1e-6).astype(int), length)
        ranges.append((np.minimum(first, length), np.maximum(last, first.clip(0, length))))
    (y0, y1), (x0, x1) = ranges
    whole = _box_sums(mask, *ranges) == (y1 - y0)[:, None] * (x1 - x0)
    whole &= ((y1 - y0) >= 2)[:, None] & ((x1 - x0) >= 2)
    extent = len(y0) * tile[0], len(x0) * tile[1]
    return touched_pixels(whole, extent, mask.shape, mask.shape) if whole.any() else np.zeros(mask.shape, bool)


def fill_missing(rgb: NDArray[np.uint8], missing: Mask) -> NDArray[np.uint8]:
    """Return an overview (H, W, 3) uint8 whose px without image have the colour of the nearest px with one."""
    if not missing.any() or missing.all():
        return rgb
    _, labels = cv2.distanceTransformWithLabels(
        missing.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colours[labels[~missing]] = rgb[~missing]
    return np.where(missing[..., None], colours[labels], rgb)


def missing_in_tissue(tissue: Mask, missing: Mask, filled: Mask) -> Mask:
    """Return the px of tissue that have no image: (H, W) bool.

    tissue: segmented where the px without image have the colours of their neighbours.  missing: px without image.
    filled: those of them that belong to filled tiles; large areas of these at the edge are padding.  An area without
    image lies in tissue if most px around it are tissue. Elsewhere scanners leave out tiles because there is none.
    """
    labels = _label_parts(missing)
    inside = _rim_shares(labels, tissue) >= MIN_TISSUE_RIM
    inside &= ~(_is_padding(labels) & (np.bincount(labels[filled], minlength=len(inside)) > 0))
    inside[0] = False
    return np.asarray(tissue & inside[labels], bool)


def cut_off_tissue(tissue: Mask, outside: Mask) -> Mask:
    """Return the px in which tissue goes on that areas without image cut off at its edge: (H, W) bool.

    tissue: segmented where the px without image have the colours of their neighbours.  outside: px without image that
    `missing_in_tissue` does not count, because most px around them are glass.  Scanners leave out tiles that hold no
    tissue, so that its edge is not theirs. If the tissue goes straight into them along more than MIN_CUT_SHARE of its
    edge, it was cut.
    """
    core = cv2.erode(tissue.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # without what only touches an area
    rim = core & ~outside & (cv2.dilate(outside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    seen = (tissue & ~outside).astype(np.uint8)
    edge = (seen > 0) & (cv2.erode(seen, np.ones((3, 3), np.uint8)) == 0)
    if rim.sum() <= MIN_CUT_SHARE * edge.sum():
        return np.zeros_like(tissue)
    labels = _label_parts(outside)
    cut = np.zeros(int(labels.max()) + 1, bool)
    cut[np.unique(cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8))[rim].astype(np.int32))] = True
    cut[0] = False
    return np.asarray(tissue & outside & cut[labels], bool)


def _label_parts(mask: Mask) -> NDArray[np.int32]:
    """Number the parts of a mask that share edges: (H, W) bool → (H, W) int32, 0 outside."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1], np.int32)


def _is_padding(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which parts are large and reach the edge of the overview, as padding does: (parts + 1,) bool."""
    sizes = np.bincount(labels.ravel())
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    at_edge = np.bincount(edges, minlength=len(sizes)) > 0
    return np.asarray((sizes >= MAX_PART_SHARE * labels.size) & at_edge, bool)


def _rim_shares(labels: NDArray[np.int32], mask: Mask) -> NDArray[np.float64]:
    """Return the share of the px around each part that are in a mask: (parts + 1,), 0 for a part without such px."""
    spread = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
    rim = (labels == 0) & (spread > 0)
    count = int(labels.max()) + 1
    total = np.bincount(spread[rim], minlength=count)
    inside = np.bincount(spread[rim & mask], minlength=count)
    return np.asarray(inside / np.maximum(total, 1), np.float64)


Range = tuple[NDArray[np.int_], NDArray[np.int_]]
"""First px, and the px after the last, of each cell along an axis."""


def _box_sums(mask: Mask, rows: Range, columns: Range) -> NDArray[np.int32]:
    """Return the number of true px in each cell of a grid: (rows, columns)."""
    sums = cv2.integral(np.ascontiguousarray(mask).view(np.uint8))
    (y0, y1), (x0, x1) = rows, columns
    return np.asarray(sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)])
