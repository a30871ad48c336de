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
    top, bottom, left, right = _tissue_bounds(tissue)
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


JPEG_QUALITY = 85


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 RGB as the store keeps it."""
    coded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return coded.tobytes()


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises ValueError when it is no picture."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("is no JPEG picture")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def crop_to_tissue(
    picture: NDArray[np.uint8], tiles: NDArray[np.int32], width: int, height: int, edge: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What thumbnail networks see of a slide: (edge, edge, 3) uint8, and the colour that fills it, (3,) uint8.

    picture: the stored one, (H, W, 3).  tiles: (n, 3) int32 x, y, size, level-0 px: those on tissue.  width, height:
    of level 0.  The fill is the median of what no tile covers, or of the brightest tenth where tiles cover all.
    Made from the store alone, so that training, ingest and score see the same pixels.
    """
    covered = np.zeros(picture.shape[:2], np.bool_)
    fx, fy = picture.shape[1] / width, picture.shape[0] / height
    for x, y, size in tiles.tolist():
        covered[int(y * fy) : math.ceil((y + size) * fy), int(x * fx) : math.ceil((x + size) * fx)] = True
    glass = picture[~covered]
    if len(glass) < 50:
        grey = picture.mean(axis=2)
        glass = picture[grey >= np.percentile(grey, 90)]
    fill = np.median(glass, axis=0).round().astype(np.uint8)
    return letterbox(picture, covered, edge, fill), fill


def _tissue_bounds(tissue: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """First and last row and column with tissue, the last ones exclusive."""
    rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
    if not len(rows):
        return 0, tissue.shape[0], 0, tissue.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
