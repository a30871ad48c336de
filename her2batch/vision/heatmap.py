"""Heatmaps of tile values as small images with one px per tile, to overlay on the slide; and the tiles' outline."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GridCells = NDArray[np.int64]

Image = NDArray[np.uint8]

HEAT_COLOUR = (160, 0, 110)
"""Colour of heatmaps in reports and in the viewer, RGB: darker than stained tissue, and of another hue than it.

Only its opacity grows with the value, so that a smaller value is never darker.
"""

SHARE_SCALE_END = 0.5
"""Share of the cellular area at the end of the scale of a membrane heatmap, the same for every slide."""

DAB_SCALE_END = 1.0
"""Mean optical density of DAB at the end of the scale of its heatmap."""


def grid_cells(x: NDArray[np.int32], y: NDArray[np.int32], step: float) -> GridCells:
    """Return the column and row of each tile: (n,) and (n,) level-0 px → (n, 2). step: level-0 px between tiles."""
    return np.stack([np.floor(x / step + 0.5), np.floor(y / step + 0.5)], axis=1).astype(np.int64)


def heatmap_image(cells: GridCells, values: NDArray[np.floating], top: float) -> Image:
    """Return (n,) values, 0 … top, at (n, 2) cells as (rows, columns, 4) uint8 RGBA; clear at 0 and without a tile."""
    level = np.clip(np.asarray(values, np.float64) / max(top, 1e-12), 0, 1)
    out = _raster(cells, np.tile(np.array(HEAT_COLOUR, np.uint8), (len(cells), 1)))
    out[cells[:, 1], cells[:, 0], 3] = (255 * level).round()
    return out


def attention_scale_end(multiples: NDArray[np.floating]) -> float:
    """Return the end of the scale of an attention heatmap, as a multiple of uniform attention: 2 or more.

    multiples: (n,) attention of the tiles as multiples of uniform attention.  The 99th percentile, so that one tile
    does not hide the others.
    """
    return max(2.0, float(np.percentile(multiples, 99))) if len(multiples) else 2.0


def class_image(cells: GridCells, classes: NDArray[np.integer], palette: Image) -> Image:
    """Return (n,) classes at (n, 2) cells as (rows, columns, 4) RGBA. palette: (k, 3) uint8 RGB, one per class."""
    return _raster(cells, palette[classes])


def _raster(cells: GridCells, rgb: Image) -> Image:
    """Return (n, 3) RGB at (n, 2) cells as (rows, columns, 4) uint8 RGBA."""
    columns, rows = cells.max(axis=0, initial=0) + 1
    out = np.zeros((rows, columns, 4), np.uint8)
    out[cells[:, 1], cells[:, 0], :3] = rgb
    out[cells[:, 1], cells[:, 0], 3] = 255
    return out


def encode_png(image: Image) -> bytes:
    """Return an (h, w, 4) uint8 RGBA image as PNG bytes."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def outline_path(cells: GridCells) -> str:
    """Return the outline of the cells' union as an SVG path; empty without cells. 'M3 4h2' is an edge of two cells."""
    if not len(cells):
        return ""
    inside = np.zeros(tuple(cells.max(axis=0)[::-1] + 3), np.bool_)
    inside[cells[:, 1] + 1, cells[:, 0] + 1] = True
    rows, columns = inside.shape
    across = inside[1:] != inside[:-1]  # an edge above row r + 1
    down = inside[:, 1:] != inside[:, :-1]
    parts = [f"M{start - 1} {r}h{end - start}" for r in range(rows - 1) for start, end in _runs(across[r])]
    parts += [f"M{c} {start - 1}v{end - start}" for c in range(columns - 1) for start, end in _runs(down[:, c])]
    return "".join(parts)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return start and end (exclusive) of each run of true values."""
    edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
