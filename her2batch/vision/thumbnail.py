"""The whole tissue of a slide as one small square picture."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def letterbox(
    overview: NDArray[np.uint8], tissue: NDArray[np.bool_], edge: int, background: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The bounding box of all tissue, shrunk into a square on the slide's own background: (edge, edge, 3) uint8.

    overview: (H, W, 3) uint8.  tissue: (H, W) bool; without any, the whole overview is taken.
    """
    rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
    box = overview[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else overview
    scale = edge / max(box.shape[:2])
    height, width = (max(1, round(side * scale)) for side in box.shape[:2])
    small = cv2.resize(box, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    out = np.empty((edge, edge, 3), np.uint8)
    out[:] = np.round(background).astype(np.uint8)
    top, left = (edge - height) // 2, (edge - width) // 2
    out[top : top + height, left : left + width] = small
    return out
