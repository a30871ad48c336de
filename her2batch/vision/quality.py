"""How far a scan can be trusted: figures and flags from its overview, and from the blur of its tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.tissue import MAX_TISSUE_SHARE, Tissue

CLIPPED_GREY = (2, 253)
"""Grey values that stand for 'no less, no more could be recorded'."""

MAX_PEN_SHARE = 0.002
"""Share of the slide under ink that is worth a flag."""

MAX_SATURATED_SHARE = 0.05
"""Share of tissue px with a clipped channel from which a scan is overexposed: holes in tissue stay below."""

MAX_UNEVENNESS = 12.0
"""Grey values between the brightest and the darkest part of the glass."""

MIN_BACKGROUND_GREY = 190.0
MAX_DISAGREEMENT = 0.5

MAX_BLURRED_SHARE = 0.3
"""Share of tissue out of focus from which a slide is flagged."""

BLURRED_TILE = 0.80
"""`blur` of a tile from which it is out of focus. In focus 0.44–0.71 (1st to 99th percentile of five real cores, three
H&E slides and synthetic ones); the same blurred by σ = 0.75 µm 0.65–0.82, by 1.6 µm 0.83–0.89, by 3 µm 0.84–0.91."""

MIN_SHARPNESS = 0.35
"""Fine structure over all structure below which a place of the overview is out of focus: in focus 0.5–1.5; blurred by
σ = 12 µm, 50–90 % of the tissue lies below. Less than that an overview can't show."""


@dataclass(frozen=True)
class Quality:
    """blur: share of tissue out of focus.  pen: share of the slide under ink.  saturated: share of tissue px with a
    clipped channel.  background: grey of the glass, 0–255.  flags: what to look at.
    """  # fmt: skip

    blur: float
    pen: float
    saturated: float
    background: float
    flags: tuple[str, ...]

    def with_tiles(self, blur: NDArray[np.float32]) -> Quality:
        """The same with the focus that its tiles show, (n,) figures of `blur`: far finer than an overview's."""
        if not len(blur):
            return self
        share = max(self.blur, float((blur > BLURRED_TILE).mean()))
        flags = [name for name in self.flags if name != "blurred"]
        return replace(self, blur=share, flags=(*flags, *(["blurred"] if share > MAX_BLURRED_SHARE else [])))


def assess_quality(rgb: NDArray[np.uint8], tissue: Tissue) -> Quality:
    """Figures and flags of a slide: overview (H, W, 3) uint8 at about 8 µm/px, and its tissue."""
    mask = tissue.mask
    glass = ~mask & ~tissue.pen & (rgb.max(axis=2) > CLIPPED_GREY[0])
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    clipped = np.asarray(((rgb <= CLIPPED_GREY[0]) | (rgb >= CLIPPED_GREY[1])).any(axis=2))
    saturated = float(clipped[mask].mean()) if mask.any() else 0.0
    background = float(np.median(grey[glass])) if glass.any() else 255.0
    blurred = _blurred_share(rgb, mask)
    pen = float(tissue.pen.mean())
    findings = {
        "no-tissue": not mask.any(),
        "pen": pen > MAX_PEN_SHARE,
        "overexposed": saturated > MAX_SATURATED_SHARE,
        "blurred": blurred > MAX_BLURRED_SHARE,
        "no-background": mask.mean() > MAX_TISSUE_SHARE,
        "uneven-background": bool(glass.any()) and _unevenness(grey, glass) > MAX_UNEVENNESS,
        "dark-background": background < MIN_BACKGROUND_GREY,
        "tissue-methods-disagree": tissue.disagreement > MAX_DISAGREEMENT,
    }
    return Quality(blurred, pen, saturated, background, tuple(name for name, found in findings.items() if found))


def _unevenness(grey: NDArray[np.uint8], glass: NDArray[np.bool_]) -> float:
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
    return float((fine[structured] / spread[structured] < MIN_SHARPNESS).mean()) if structured.any() else 0.0


def blur_ratio(fine: float, coarse: float) -> float:
    """Share of coarse structure in all there is: 0–1, larger is blurrier; 0 where there is nothing fine at all (glass).

    fine, coarse: mean difference of optical density between 1 and 2 µm, and between 4 and 8 µm. As a ratio of densities
    it hardly depends on how darkly a slide is stained; defocus takes the fine structure first.
    """
    return coarse / (fine + coarse) if fine > 1e-6 else 0.0
