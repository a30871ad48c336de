"""Patches for the patch classifier: which are worth classifying, and their contrast."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

WHITE, MOST_WHITE = 220, 0.7
BLACK, MOST_BLACK = 30, 0.2
"""Grey values beyond which a px counts as white or black in all channels, and the share of a patch that may be so."""

CLIP, CELLS = 2.0, (8, 8)


def usable(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Patches with enough to see: (n, h, w, 3) uint8 → (n,) bool.

    Dropped: more than 70 % white px (all channels over 220) or 20 % black ones (all under 30).  Source: paper, 2.3.
    """
    white = (patches.min(axis=3) > WHITE).mean(axis=(1, 2))
    black = (patches.max(axis=3) < BLACK).mean(axis=(1, 2))
    return np.asarray((white <= MOST_WHITE) & (black <= MOST_BLACK), np.bool_)


def clahe(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contrast-limited equalisation of lightness (L of Lab): (n, h, w, 3) uint8 RGB → the same shape, new.

    Source: Zuiderveld 1994; clip limit 2.0 on 8 × 8 cells as in the paper, 2.3.
    """
    equalise = cv2.createCLAHE(CLIP, CELLS)
    out = np.empty_like(patches)
    for patch, place in zip(patches, out, strict=True):
        lab = cv2.cvtColor(patch, cv2.COLOR_RGB2LAB)
        lab[..., 0] = equalise.apply(np.ascontiguousarray(lab[..., 0]))
        cv2.cvtColor(lab, cv2.COLOR_LAB2RGB, dst=place)
    return out
