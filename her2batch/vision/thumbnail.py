"""The slide as one small picture: all its tissue, on its own background."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray


def letterbox(
    overview: NDArray[np.uint8],
    tissue: NDArray[np.bool_],
    edge: int,
    background: Sequence[float] | NDArray[np.floating],
) -> NDArray[np.uint8]:
    """The box round all tissue, as large as it fits in a square, centred: (edge, edge, 3) uint8.

    overview: (H, W, 3) uint8.  tissue: (h, w) bool over the same ground, at any size; without any, the whole overview
    is taken.  background: RGB 0–255, the slide's own, round the box.
    """
    top, bottom, left, right = _bounds(tissue)
    fy, fx = overview.shape[0] / tissue.shape[0], overview.shape[1] / tissue.shape[1]
    box = overview[math.floor(top * fy) : math.ceil(bottom * fy), math.floor(left * fx) : math.ceil(right * fx)]
    scale = edge / max(box.shape[:2])
    height, width = (max(1, round(side * scale)) for side in box.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out = np.empty((edge, edge, 3), np.uint8)
    out[:] = np.clip(np.round(background), 0, 255).astype(np.uint8)
    y, x = (edge - height) // 2, (edge - width) // 2
    out[y : y + height, x : x + width] = cv2.resize(box, (width, height), interpolation=how)
    return out


def _bounds(tissue: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """First and last row and column with tissue, the last ones exclusive."""
    rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
    if not len(rows):
        return 0, tissue.shape[0], 0, tissue.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
