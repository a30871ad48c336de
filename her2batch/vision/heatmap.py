"""Heatmaps of tile values as small images with one px per tile, to overlay on the slide; and the tiles' outline."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GridCells = NDArray[np.int64]

Image = NDArray[np.uint8]

MIN_OPACITY = 0.35
"""Opacity of a value of 0."""


def grid_cells(x: NDArray[np.int32], y: NDArray[np.int32], step: float) -> GridCells:
    """Return the column and row of each tile: (n,) and (n,) level-0 px → (n, 2). step: level-0 px between tiles."""
    return np.stack([np.floor(x / step + 0.5), np.floor(y / step + 0.5)], axis=1).astype(np.int64)


def heatmap_image(cells: GridCells, values: NDArray[np.floating], top: float) -> Image:
    """Return (n,) values, 0 … top, at (n, 2) cells as (rows, columns, 4) uint8 RGBA in viridis; clear without a tile.

    Opacity grows with the value, so that tissue remains visible where values are low.
    """
    level = np.clip(np.asarray(values, np.float64) / max(top, 1e-12), 0, 1)
    out = _raster(cells, viridis_rgb((255 * level).round().astype(np.uint8)))
    out[cells[:, 1], cells[:, 0], 3] = (255 * (MIN_OPACITY + (1 - MIN_OPACITY) * level)).round()
    return out


def class_image(cells: GridCells, classes: NDArray[np.integer], palette: Image) -> Image:
    """Return (n,) classes at (n, 2) cells as (rows, columns, 4) RGBA. palette: (k, 3) uint8 RGB, one per class."""
    return _raster(cells, palette[classes])


def viridis_rgb(levels: NDArray[np.uint8]) -> Image:
    """Return viridis colours: (n,) 0–255 → (n, 3) RGB. Lightness rises evenly, so the map is readable without hue."""
    coloured = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)
    return np.asarray(coloured.reshape(-1, 3)[:, ::-1], np.uint8)


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
