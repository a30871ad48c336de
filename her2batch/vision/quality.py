"""How far a scan can be trusted: figures and flags from its overview, and the sharpness of single tiles."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.tissue import FULL, Tissue

CLIPPED = (2, 253)
"""Grey values that stand for 'no less, no more could be recorded'."""

PEN_SHARE = 0.002
SATURATED_SHARE = 0.05
UNEVEN = 12.0
DARK_GLASS = 190.0
DISAGREES = 0.5
BLURRED_SHARE = 0.3

SHARP = 0.35
"""`sharpness` below which an overview's tissue is out of focus: in focus it is 0.5–1.5, blurred by 3 px 0.1–0.25."""


@dataclass(frozen=True)
class Quality:
    """blur: share of tissue out of focus at the overview's scale.  pen: share of the slide under ink.  saturated: share
    of tissue px with a clipped channel.  background: grey of the glass, 0–255.  flags: what to look at.
    """  # fmt: skip

    blur: float
    pen: float
    saturated: float
    background: float
    flags: tuple[str, ...]


def judge(rgb: NDArray[np.uint8], tissue: Tissue) -> Quality:
    """Figures and flags of a slide: overview (H, W, 3) uint8 at about 8 µm/px, and its tissue."""
    mask = tissue.mask
    glass = ~mask & ~tissue.pen & (rgb.max(axis=2) > CLIPPED[0])
    grey = rgb.mean(axis=2)
    clipped = ((rgb <= CLIPPED[0]) | (rgb >= CLIPPED[1])).any(axis=2)
    saturated = float(clipped[mask].mean()) if mask.any() else 0.0
    background = float(np.median(grey[glass])) if glass.any() else 255.0
    blur = _blurred_share(rgb, mask)
    pen = float(tissue.pen.mean())
    findings = {
        "no-tissue": not mask.any(),
        "pen": pen > PEN_SHARE,
        "overexposed": saturated > SATURATED_SHARE,
        "blurred": blur > BLURRED_SHARE,
        "no-background": mask.mean() > FULL,
        "uneven-background": bool(glass.any()) and _unevenness(grey, glass) > UNEVEN,
        "dark-background": background < DARK_GLASS,
        "tissue-methods-disagree": tissue.disagreement > DISAGREES,
    }
    return Quality(blur, pen, saturated, background, tuple(name for name, found in findings.items() if found))


def _unevenness(grey: NDArray[np.float64], glass: NDArray[np.bool_]) -> float:
    """Spread of the glass's brightness over a 4 × 4 grid of the slide: the range of the cells' medians."""
    medians = []
    for rows, seen in zip(np.array_split(grey, 4), np.array_split(glass, 4), strict=True):
        for cell, there in zip(np.array_split(rows, 4, axis=1), np.array_split(seen, 4, axis=1), strict=True):
            if there.sum() >= 50:
                medians.append(float(np.median(cell[there])))
    return max(medians) - min(medians) if len(medians) > 1 else 0.0


def _blurred_share(rgb: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Share of tissue in whose neighbourhood the picture has structure but no fine structure."""
    if not mask.any():
        return 0.0
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (15, 15))
    mean = cv2.blur(grey, (15, 15))
    spread = np.sqrt(np.maximum(cv2.blur(grey * grey, (15, 15)) - mean * mean, 0))
    structured = mask & (spread > 3)
    return float((fine[structured] / spread[structured] < SHARP).mean()) if structured.any() else 0.0


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Fine structure against all structure of a tile: (h, w) uint8 → mean |Laplacian| / standard deviation.

    A ratio, so that pale and dark stains compare; 0 for an empty tile.  In focus 0.5–1.5 at 0.5 µm/px.
    """
    spread = float(cv2.meanStdDev(grey)[1][0, 0])
    if spread < 1.0:
        return 0.0
    return float(cv2.norm(cv2.Laplacian(grey, cv2.CV_16S), cv2.NORM_L1)) / grey.size / spread
