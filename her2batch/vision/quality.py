"""Quality control of a scan: measures and flags from its overview and from the blur of its tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.tissue import MAX_DISAGREEMENT, MAX_TISSUE_SHARE, Tissue

CLIPPED_GREY = (2, 253)
"""Grey values at and beyond which a channel counts as clipped."""

MAX_PEN_SHARE = 0.002
"""Share of the slide under pen from which it is flagged."""

MAX_PEN_TILE_SHARE = 0.05
"""Share of the tissue's tiles that is excluded as pen from which a slide is flagged: thin or pale strokes, which the
overview does not show, and staining that resembles pen."""

MAX_SATURATED_SHARE = 0.05
"""Share of tissue px with a clipped channel from which a scan is overexposed; holes in tissue stay below it."""

MAX_UNEVENNESS = 12.0
"""Difference in grey value between the brightest and the darkest part of the background from which it is uneven."""

MIN_BACKGROUND_GREY = 190.0
"""Grey value of the background below which it is flagged as dark."""

MAX_BLURRED_SHARE = 0.3
"""Share of tissue out of focus from which a slide is flagged."""

BLURRED_TILE = 0.80
"""`blur` of a tile from which it is out of focus. In focus: 0.44–0.71 (1st to 99th percentile of five real cores, three
H&E slides and synthetic ones). The same tiles blurred by σ = 0.75 µm: 0.65–0.82, by 1.6 µm: 0.83–0.89, by 3 µm:
0.84–0.91."""

MIN_SHARPNESS = 0.35
"""Ratio of fine structure to all structure below which a px of the overview is out of focus. In focus: 0.5–1.5. Blurred
by σ = 12 µm, 50–90 % of the tissue lies below it. An overview cannot show weaker blur."""


@dataclass(frozen=True)
class Quality:
    """Quality measures of a slide.

    blur: share of tissue out of focus.  pen: share of the slide under pen, or of the
    area of its tiles where that is larger.  saturated: share of tissue px with a
    clipped channel.  background: grey value of the background, 0–255.  flags: names of the problems found.
    """

    blur: float
    pen: float
    saturated: float
    background: float
    flags: tuple[str, ...]

    def with_tiles(self, blur: NDArray[np.float32], ink: NDArray[np.float32]) -> Quality:
        """Return a copy that includes the tiles' `blur` and `ink`, (n,) each: tiles show more than the overview."""
        if not len(blur):
            return self
        blurred, pen = (
            max(self.blur, float((blur > BLURRED_TILE).mean())),
            max(self.pen, float(ink.mean())),
        )
        found = {"pen": pen > MAX_PEN_TILE_SHARE, "blurred": blurred > MAX_BLURRED_SHARE}
        flags = [name for name in self.flags if name != "blurred"]
        flags += [name for name, present in found.items() if present and name not in flags]
        return replace(self, blur=blurred, pen=pen, flags=tuple(flags))


def assess_quality(rgb: NDArray[np.uint8], tissue: Tissue, missing: NDArray[np.bool_] | None = None) -> Quality:
    """Measure and flag the quality of a slide from its overview, (H, W, 3) uint8 at about 8 µm/px, and its tissue.

    missing: (H, W) bool, px without image, which are neither tissue nor background; None for a complete slide.
    """
    mask = tissue.mask
    scanned = np.ones_like(mask) if missing is None else ~missing
    empty = scanned & ~mask & ~tissue.pen & (rgb.max(axis=2) > CLIPPED_GREY[0])
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    clipped = np.asarray(((rgb <= CLIPPED_GREY[0]) | (rgb >= CLIPPED_GREY[1])).any(axis=2))
    saturated = float(clipped[mask].mean()) if mask.any() else 0.0
    background = float(np.median(grey[empty])) if empty.any() else 255.0
    blurred = _blurred_share(rgb, mask)
    pen = float(tissue.pen.mean())
    problems = {
        "no-tissue": not mask.any(),
        "pen": pen > MAX_PEN_SHARE,
        "overexposed": saturated > MAX_SATURATED_SHARE,
        "blurred": blurred > MAX_BLURRED_SHARE,
        "no-background": mask[scanned].mean() > MAX_TISSUE_SHARE,
        "uneven-background": bool(empty.any()) and _unevenness(grey, empty) > MAX_UNEVENNESS,
        "dark-background": background < MIN_BACKGROUND_GREY,
        "tissue-methods-disagree": tissue.disagreement > MAX_DISAGREEMENT,
    }
    return Quality(blurred, pen, saturated, background, tuple(name for name, present in problems.items() if present))


def _unevenness(grey: NDArray[np.uint8], background: NDArray[np.bool_]) -> float:
    """Return the range of the background's median grey value over a 4 × 4 grid of the slide."""
    medians = []
    for grey_rows, mask_rows in zip(np.array_split(grey, 4), np.array_split(background, 4), strict=True):
        cells = zip(np.array_split(grey_rows, 4, axis=1), np.array_split(mask_rows, 4, axis=1), strict=True)
        medians += [float(np.median(cell[mask])) for cell, mask in cells if mask.sum() >= 50]
    return max(medians) - min(medians) if len(medians) > 1 else 0.0


def _blurred_share(rgb: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Return the share of tissue whose neighbourhood has coarse structure but no fine structure."""
    if not mask.any():
        return 0.0
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (15, 15))
    mean = cv2.blur(grey, (15, 15))
    local_std = np.sqrt(np.maximum(cv2.blur(grey * grey, (15, 15)) - mean * mean, 0))
    structured = mask & (local_std > 3)
    return float((fine[structured] / local_std[structured] < MIN_SHARPNESS).mean()) if structured.any() else 0.0


def blur_ratio(fine: float, coarse: float) -> float:
    """Return the share of coarse structure in all structure: 0–1, larger is blurrier; 0 on background.

    fine, coarse: mean difference of optical density between 1 and 2 µm, and between 4 and 8 µm. As a ratio of densities
    the value hardly depends on staining intensity; defocus removes the fine structure first.
    """
    return coarse / (fine + coarse) if fine > 1e-6 else 0.0
