"""The slide as one small image of all its tissue on its own background; and the JPEG coding of stored thumbnails."""

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
    """Scale the bounding box of all tissue into a square, centred: (edge, edge, 3) uint8.

    overview: (H, W, 3) uint8.  tissue: (h, w) bool over the same area, at any resolution; without tissue the whole
    overview is used.  background: RGB 0–255, the slide's own, which fills the square around the box.
    """
    top, bottom, left, right = _tissue_bounds(tissue)
    fy, fx = overview.shape[0] / tissue.shape[0], overview.shape[1] / tissue.shape[1]
    box = overview[math.floor(top * fy) : math.ceil(bottom * fy), math.floor(left * fx) : math.ceil(right * fx)]
    scale = edge / max(box.shape[:2])
    height, width = (max(1, round(side * scale)) for side in box.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out = np.empty((edge, edge, 3), np.uint8)
    out[:] = np.clip(np.round(background), 0, 255).astype(np.uint8)
    y, x = (edge - height) // 2, (edge - width) // 2
    out[y : y + height, x : x + width] = cv2.resize(box, (width, height), interpolation=interpolation)
    return out


JPEG_QUALITY = 85
"""Quality of stored thumbnails."""


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode an (H, W, 3) uint8 RGB image as the store keeps thumbnails."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return encoded.tobytes()


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to (H, W, 3) uint8 RGB. Raises ValueError when the data is not an image."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError("is not a JPEG image")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def crop_to_tissue(
    thumbnail: NDArray[np.uint8], tiles: NDArray[np.int32], width: int, height: int, edge: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the input of thumbnail networks, (edge, edge, 3) uint8, and its fill colour, (3,) uint8.

    thumbnail: the stored one, (H, W, 3).  tiles: (n, 3) int32 x, y, size in level-0 px, those on tissue.  width,
    height: of level 0.  The fill is the median of the area without tiles, or of the brightest tenth where tiles cover
    everything. Only stored data is used, so that training, ingest and score get the same pixels.
    """
    covered = _covered(thumbnail, tiles, width, height)
    background = thumbnail[~covered]
    if len(background) < 50:
        grey = thumbnail.mean(axis=2)
        background = thumbnail[grey >= np.percentile(grey, 90)]
    fill = np.median(background, axis=0).round().astype(np.uint8)
    return letterbox(thumbnail, covered, edge, fill), fill


def letterbox_frame(
    thumbnail: NDArray[np.uint8], tiles: NDArray[np.int32], width: int, height: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the place of the input of thumbnail networks in the slide, level-0 px.

    That is the left and top of the tissue's bounding box, its width and height, and the edge of the square in whose
    middle it lies. Arguments as of `crop_to_tissue`.
    """
    top, bottom, left, right = _tissue_bounds(_covered(thumbnail, tiles, width, height))
    scale = np.array([width / thumbnail.shape[1], height / thumbnail.shape[0]])
    size = np.array([right - left, bottom - top]) * scale
    return np.array([left, top]) * scale, size, float(size.max())


def _covered(thumbnail: NDArray[np.uint8], tiles: NDArray[np.int32], width: int, height: int) -> NDArray[np.bool_]:
    """Return the px of a thumbnail that tiles cover, (H, W)."""
    covered = np.zeros(thumbnail.shape[:2], np.bool_)
    fx, fy = thumbnail.shape[1] / width, thumbnail.shape[0] / height
    for x, y, size in tiles.tolist():
        covered[int(y * fy) : math.ceil((y + size) * fy), int(x * fx) : math.ceil((x + size) * fx)] = True
    return covered


def _tissue_bounds(tissue: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return first row, last row, first column, last column with tissue; the last ones exclusive."""
    rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
    if not len(rows):
        return 0, tissue.shape[0], 0, tissue.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
