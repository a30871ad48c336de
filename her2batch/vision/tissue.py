"""Tissue segmentation on an overview of about 8 µm/px, for pale IHC as well as for dark H&E."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from her2batch.vision.background import (
    FlattenedOverview,
    Map,
    Mask,
    channel_mean,
    channel_min,
    cut_off_tissue,
    flatten_background,
    local_std,
    missing_in_tissue,
    remove_small_parts,
)

MIN_TISSUE_MM2 = 0.05
"""Smaller pieces are dirt."""

MAX_HOLE_MM2 = 0.02
"""Smaller holes belong to the tissue around them."""

MIN_PEN_MM2 = 0.01
"""Smaller pen marks are dark nests of nuclei, or dirt."""

BLUR_PX = 1.5
"""σ of the Gaussian blur before the threshold."""

MIN_THRESHOLD_OD, MAX_THRESHOLD_OD = 0.010, 0.060
"""Range of optical density for Otsu's threshold: less is noise of the background, more is always tissue."""

NOISE_SIGMAS = 6.0
"""Otsu's threshold is at most this many σ of the background above its median. Otherwise dark tumour, which dominates
the histogram of a 3+ slide, pushes the pale stroma beside it into the background (Dice 0.70 on such a synthetic slide,
0.97 with this limit)."""

MIN_SHARP_SHARE = 0.7
"""Share of the threshold that a px must reach with hardly any blur: blur spreads dark tissue into the background."""

TEXTURE_WEIGHT = 0.35
"""Weight of local contrast relative to density: pale tissue differs from background mainly in structure."""

MIN_TEXTURE_OD = 0.002
"""Least blurred local contrast (optical density) that the second segmentation accepts as tissue."""

MAX_TISSUE_SHARE = 0.98
"""A mask that covers more of the slide than this contains no background."""

MAX_DISAGREEMENT = 0.5
"""1 − Dice of the two segmentations above which the tissue is their union, and the slide is flagged."""

MIN_PASS_DEPTH = 0.5
"""Watershed basins are merged when the pass between them is at least this share of the shallower basin's depth."""


@dataclass(frozen=True)
class Tissue:
    """The tissue of an overview.

    mask: (H, W) bool.  pen: (H, W) bool, pen marks, excluded from the tissue.  method: the segmentation that was used,
    "density", "texture" or "union".  disagreement: 1 − Dice of the two segmentations.
    """

    mask: Mask
    pen: Mask
    method: str
    disagreement: float


def segment_tissue(rgb: NDArray[np.uint8], mpp: float) -> Tissue:
    """Segment the tissue of a slide's overview: (H, W, 3) uint8 at `mpp` µm/px.

    The first segmentation uses contrast stretch, Gaussian blur, Otsu and watershed (paper, 2.3) on density, colour and
    texture. A second one, by texture alone, replaces it where the first finds no tissue, or no background although
    there is some. Where the two disagree, a pale piece may have been taken for background, and the tissue is their
    union; such slides are flagged.
    """
    pen = find_pen_marks(rgb, mpp)
    flat = flatten_background(rgb)
    # pen is removed after the pieces are separated: a stroke over tissue must not cut off the tissue beyond it
    first = _clean_mask((_segment_by_density(flat) | pen) & ~flat.padding, mpp) & ~pen
    texture = (_segment_by_texture(flat) | pen) & ~flat.padding
    disagreement = _disagreement(
        first, _clean_mask(texture, mpp, label_components) & ~pen
    )  # takes a third of the watershed's time
    implausible = not first.any() or (first.mean() > MAX_TISSUE_SHARE and bool(flat.background.any()))
    if not implausible and disagreement <= MAX_DISAGREEMENT:
        return Tissue(first, pen, "density", disagreement)
    second = _clean_mask(texture, mpp) & ~pen
    if not second.any() or second.mean() >= MAX_TISSUE_SHARE:
        return Tissue(first, pen, "density", disagreement)
    if implausible:
        return Tissue(second, pen, "texture", disagreement)
    return Tissue(first | second, pen, "union", disagreement)


class IncompleteTissue(NamedTuple):
    """The tissue of a slide that lacks parts of its image.

    tissue: without the parts that have no image.  missing: (H, W) bool, px of tissue that have no image.  cut: (H, W)
    bool, px beside the tissue that have no image either, in which it went on.
    """

    tissue: Tissue
    missing: Mask
    cut: Mask


def segment_incomplete(rgb: NDArray[np.uint8], mpp: float, missing: Mask, filled: Mask) -> IncompleteTissue:
    """Segment the tissue of an overview (H, W, 3) uint8 in which some px have no image of their own.

    rgb: px without image have the colour of the nearest px with one.  missing: (H, W) bool, those px.  filled: those of
    them in tiles that are filled with black or white.  Px without image outside tissue are background.
    """
    tissue = segment_tissue(rgb, mpp)
    lost = missing_in_tissue(tissue.mask, missing, filled)
    outside = missing & ~lost
    cut = cut_off_tissue(tissue.mask, outside & ~filled)
    if (tissue.mask & outside).any():  # tissue at the rim of such an area was continued into it
        empty = ~tissue.mask & ~missing & (channel_min(rgb) > 0)
        glass = np.median(rgb[empty], axis=0) if empty.any() else np.full(3, 255.0)
        again = segment_tissue(np.where(outside[..., None], glass.astype(np.uint8), rgb), mpp)
        tissue = replace(again, mask=again.mask & ~outside)
        lost &= tissue.mask
    return IncompleteTissue(replace(tissue, mask=tissue.mask & ~lost), lost, cut)


def _segment_by_density(flat: FlattenedOverview) -> Mask:
    """Return the mask of density, colour and texture, blurred and thresholded by Otsu within bounds."""
    density = channel_mean(flat.od)
    r, g, b = cv2.split(flat.od)
    colour = cv2.max(cv2.max(r, g), b) - cv2.min(cv2.min(r, g), b)  # stain is coloured, dust and shadow are not
    stained = np.maximum(density, 0) + 0.5 * colour
    blurred = cv2.GaussianBlur(_replicate_rim(stained + TEXTURE_WEIGHT * local_std(density)), (0, 0), BLUR_PX)
    sharp = cv2.GaussianBlur(stained, (0, 0), 0.7)
    threshold = MIN_THRESHOLD_OD
    if flat.background.any():
        middle = float(np.median(blurred[flat.background]))
        noise = 1.4826 * float(np.median(np.abs(blurred[flat.background] - middle)))
        threshold = max(MIN_THRESHOLD_OD, min(_otsu_threshold(blurred[~flat.padding]), middle + NOISE_SIGMAS * noise))
    return np.asarray((blurred > threshold) & (sharp > MIN_SHARP_SHARE * threshold), bool)


def _replicate_rim(signal: Map) -> Map:
    """Replace the outermost px by their neighbours: they are averaged with the padding of the slide's last chunks."""
    if min(signal.shape) <= 4:
        return signal
    return np.asarray(cv2.copyMakeBorder(signal[1:-1, 1:-1], 1, 1, 1, 1, cv2.BORDER_REPLICATE), np.float32)


def _otsu_threshold(signal: Map) -> float:
    """Return Otsu's threshold of the stretched signal, within MIN_THRESHOLD_OD and MAX_THRESHOLD_OD."""
    if not signal.size:
        return MAX_THRESHOLD_OD
    top = max(float(np.percentile(signal, 99)), MAX_THRESHOLD_OD)
    stretched = (np.sqrt(np.clip(signal / top, 0, 1)) * 255).astype(np.uint8)  # the root raises pale values
    level, _ = cv2.threshold(stretched.reshape(1, -1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip((level / 255) ** 2 * top, MIN_THRESHOLD_OD, MAX_THRESHOLD_OD))


def _segment_by_texture(flat: FlattenedOverview) -> Mask:
    """Return the mask of local contrast alone, by Otsu on its logarithm."""
    texture = cv2.GaussianBlur(_replicate_rim(local_std(channel_mean(flat.od))), (0, 0), 2 * BLUR_PX)
    scaled = np.clip((np.log10(np.maximum(texture, 1e-4)) + 4) * 60, 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.asarray(texture > max(10 ** (level / 60 - 4), MIN_TEXTURE_OD), bool)


def find_pen_marks(rgb: NDArray[np.uint8], mpp: float) -> Mask:
    """Return the pen marks of an overview (H, W, 3) uint8 as a mask (H, W) bool.

    Pen has saturated hues that haematoxylin, eosin and DAB lack, or a black that tissue does not reach.
    """
    hue, saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))
    green = (hue > 35) & (hue < 95) & (saturation > 70)
    blue = (hue >= 95) & (hue < 125) & (saturation > 165)
    red = ((hue > 174) | (hue < 4)) & (saturation > 180) & (value > 110)
    black = (value < 55) & (saturation < 90) & (value >= 8)
    pen = remove_small_parts(green | blue | red | black, MIN_PEN_MM2 * 1e6 / mpp**2)
    return np.asarray(cv2.dilate(pen.astype(np.uint8), np.ones((5, 5), np.uint8)), bool) if pen.any() else pen


def _clean_mask(mask: Mask, mpp: float, label_parts: Callable[[Mask], NDArray[np.int32]] | None = None) -> Mask:
    """Close the mask, fill holes, label its parts (by watershed by default), and remove parts that are too small."""
    if not mask.any():
        return mask
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
    px = 1e6 / mpp**2
    labels = (label_parts or label_pieces)(_fill_holes(closed, MAX_HOLE_MM2 * px))
    keep = np.bincount(labels.ravel()) >= MIN_TISSUE_MM2 * px
    keep[0] = False
    return np.asarray(keep[labels], bool)


def _fill_holes(mask: Mask, px: float) -> Mask:
    """Fill holes of fewer than `px` pixels. An area that reaches the slide's edge is not a hole."""
    empty = np.pad((~mask).astype(np.uint8), 1, constant_values=1)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(empty, connectivity=8)
    hole = stats[:, cv2.CC_STAT_AREA] < px
    hole[labels[0, 0]] = False
    return np.asarray(mask | hole[labels][1:-1, 1:-1], bool)


def label_components(mask: Mask) -> NDArray[np.int32]:
    """Number the connected components of a mask: (H, W) bool → (H, W) int32, 0 outside."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1], np.int32)


def label_pieces(mask: Mask) -> NDArray[np.int32]:
    """Number the pieces of tissue: (H, W) bool → (H, W) int32, 0 outside.

    The watershed of the distance to the edge separates pieces that only touch, and dirt connected by a thin bridge.
    Basins with a wide pass between them are one piece.
    """
    if mask.all():
        return np.ones(mask.shape, np.int32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    peaks = (cv2.dilate(distance, np.ones((7, 7), np.uint8)) == distance) & mask
    count, markers = cv2.connectedComponents(peaks.astype(np.uint8), connectivity=8)
    depth = np.zeros(count, np.float32)
    depth[markers] = distance  # a peak is flat
    basins = watershed(-distance, markers, mask=mask)  # type: ignore[no-untyped-call]
    return np.asarray(_merge_basins(depth, *_basin_passes(basins, distance))[basins], np.int32)


def _basin_passes(basins: NDArray[np.int32], height: Map) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the pairs of touching basins, (n, 2), and the greatest height on their border, (n,), highest first."""
    a = np.concatenate([basins[:, :-1].ravel(), basins[:-1].ravel()]).astype(np.int64)
    b = np.concatenate([basins[:, 1:].ravel(), basins[1:].ravel()]).astype(np.int64)
    low = np.concatenate(
        [np.minimum(height[:, :-1], height[:, 1:]).ravel(), np.minimum(height[:-1], height[1:]).ravel()]
    )
    border = (a != b) & (a > 0) & (b > 0)
    pair = np.sort(np.stack([a[border], b[border]], axis=1), axis=1)
    pairs, which = np.unique(pair, axis=0, return_inverse=True)
    highest = np.zeros(len(pairs), np.float32)
    np.maximum.at(highest, which.ravel(), low[border])
    order = np.argsort(-highest, kind="stable")
    return pairs[order], highest[order]


def _merge_basins(depth: Map, pairs: NDArray[np.int64], heights: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the piece number of each basin. Basins with a wide pass are merged, the widest pass first.

    A thin bridge is thereby merged with the piece it starts from, and no longer connects that piece to the next one.
    """
    parent = list(range(len(depth)))
    deepest = depth.tolist()

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    for (a, b), height in zip(pairs.tolist(), heights.tolist(), strict=True):
        first, second = sorted((root(a), root(b)))
        if first != second and height >= MIN_PASS_DEPTH * min(deepest[first], deepest[second]):
            parent[second] = first
            deepest[first] = max(deepest[first], deepest[second])
    return np.unique([root(k) for k in range(len(depth))], return_inverse=True)[1].astype(np.int32)


def _disagreement(a: Mask, b: Mask) -> float:
    """Return 1 − Dice of two masks; 0 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 - 2.0 * int((a & b).sum()) / total if total else 0.0


def tile_fractions(
    mask: NDArray[np.bool_] | NDArray[np.float64], width: float, height: float, tiles: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return the share of each tile that is tissue: (n,) float32. Area outside the slide counts as no tissue.

    mask: (h, w) over the whole slide, bool or the tissue share of each px.  width, height: of level 0, px.  tiles:
    (n, 3) int32 x, y, size in level-0 px. Areas are exact: a tile that covers part of a mask px gets that part.
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
    return np.asarray(np.clip(area / np.maximum(size * size * fx * fy, 1e-12), 0, 1), np.float32)


def _integral(sums: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of the mask left of x and above y, interpolated bilinearly between its grid points."""
    h, w = sums.shape[0] - 1, sums.shape[1] - 1
    x, y = np.clip(x, 0, w), np.clip(y, 0, h)
    x0, y0 = np.minimum(x.astype(int), w - 1), np.minimum(y.astype(int), h - 1)
    u, v = x - x0, y - y0
    top = sums[y0, x0] * (1 - u) + sums[y0, x0 + 1] * u
    bottom = sums[y0 + 1, x0] * (1 - u) + sums[y0 + 1, x0 + 1] * u
    return np.asarray(top * (1 - v) + bottom * v, np.float64)
