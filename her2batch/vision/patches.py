"""Patches for the patch classifier: selection by content, contrast, and class labels from annotations."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

WHITE_GREY, MAX_WHITE_SHARE = 220, 0.7
BLACK_GREY, MAX_BLACK_SHARE = 30, 0.2
"""Grey value beyond which a px is white or black (in all channels), and the share of a patch that may be so."""

CLAHE_CLIP_LIMIT, CLAHE_GRID = 2.0, (8, 8)
"""Clip limit and grid of the contrast-limited equalization (paper, 2.3)."""

MIN_ANNOTATED_SHARE = 0.05
"""Share of a patch that an annotation must cover to give the patch its class (paper, 2.3)."""


def usable_patches(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which patches have enough content: (n, h, w, 3) uint8 → (n,) bool.

    A patch is excluded with more than 70 % white px (all channels over 220) or more than 20 % black px (all under 30).
    Source: paper, 2.3.
    """
    white = (patches.min(axis=3) > WHITE_GREY).mean(axis=(1, 2))
    black = (patches.max(axis=3) < BLACK_GREY).mean(axis=(1, 2))
    return np.asarray((white <= MAX_WHITE_SHARE) & (black <= MAX_BLACK_SHARE), np.bool_)


def apply_clahe(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Equalize the lightness (L of Lab) of patches with limited contrast: (n, h, w, 3) uint8 RGB → a new array.

    Source: Zuiderveld 1994; clip limit 2.0 on 8 × 8 cells as in the paper, 2.3.
    """
    equalizer = cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_GRID)
    out = np.empty_like(patches)
    for patch, equalized in zip(patches, out, strict=True):
        lab = cv2.cvtColor(patch, cv2.COLOR_RGB2LAB)
        lab[..., 0] = equalizer.apply(np.ascontiguousarray(lab[..., 0]))
        cv2.cvtColor(lab, cv2.COLOR_LAB2RGB, dst=equalized)
    return out


def label_patches(
    shapes: Sequence[tuple[int, BaseGeometry]], tiles: NDArray[np.int32], min_share: float = MIN_ANNOTATED_SHARE
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the class of each patch, (n,) int8, −1 for none; and the share of it that the class covers, (n,) float32.

    shapes: (class, area in level-0 px).  tiles: (n, 3) x, y, size in level-0 px. Areas of one class are united first. A
    patch gets the class that covers most of it, if that is at least `min_share` of it; of two equal shares, the higher
    class.  Source: paper, 2.3.
    """
    x, y, size = (tiles[:, k].astype(np.float64) for k in range(3))
    boxes = shapely.box(x, y, x + size, y + size)
    labels, shares = np.full(len(tiles), -1, np.int8), np.zeros(len(tiles), np.float32)
    tree = shapely.STRtree(boxes)
    for k in sorted({label for label, _ in shapes}):
        united = shapely.union_all([area for label, area in shapes if label == k])
        covered = np.zeros(len(tiles))
        for part in shapely.get_parts(united):  # part by part: patches intersect few of many regions
            near = tree.query(part, predicate="intersects")
            shapely.prepare(part)
            covered[near] += shapely.area(shapely.intersection(boxes[near], part))
        share = (covered / np.maximum(size * size, 1)).astype(np.float32)
        better = (share >= min_share) & (share >= shares)
        labels[better], shares[better] = k, share[better]
    return labels, shares
