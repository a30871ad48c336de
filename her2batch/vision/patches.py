"""Patches of the paper's classifier: which are usable, and their contrast."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

WHITE, BLACK = 220, 30
MOST_WHITE, MOST_BLACK = 0.70, 0.20
CLIP, CELLS = 2.0, (8, 8)


def usable(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which patches are neither empty glass nor black: (n, h, w, 3) uint8 → (n,) bool.

    At most 70 % of px white (all channels over 220), at most 20 % black (all under 30).  Source: paper, 2.3.
    """
    white = (patches > WHITE).all(axis=3).mean(axis=(1, 2))
    black = (patches < BLACK).all(axis=3).mean(axis=(1, 2))
    return np.asarray((white <= MOST_WHITE) & (black <= MOST_BLACK), bool)


def clahe(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contrast-limited adaptive equalisation of lightness (L of Lab): (n, h, w, 3) uint8 → the same.  Source: paper."""
    equalise = cv2.createCLAHE(clipLimit=CLIP, tileGridSize=CELLS)
    out = np.empty_like(patches)
    for patch, place in zip(patches, out, strict=True):
        lab = cv2.cvtColor(patch, cv2.COLOR_RGB2LAB)
        lab[..., 0] = equalise.apply(np.ascontiguousarray(lab[..., 0]))
        place[:] = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return out
