"""A figure of each tile as a small picture to lay over the slide: a px a tile, and the outline of all tiles."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GridCells = NDArray[np.int64]

Image = NDArray[np.uint8]

MIN_OPACITY = 0.35
"""How much a value of 0 covers."""


def grid_cells(x: NDArray[np.int32], y: NDArray[np.int32], step: float) -> GridCells:
    """Column and row of each tile on its grid: (n,) and (n,) level-0 px → (n, 2). step: level-0 px between tiles."""
    return np.stack([np.floor(x / step + 0.5), np.floor(y / step + 0.5)], axis=1).astype(np.int64)


def heatmap_image(where: GridCells, values: NDArray[np.floating], top: float) -> Image:
    """(n, 2) cells and (n,) values, 0 … top → (rows, columns, 4) uint8 RGBA in viridis; clear where no tile lies.

    Little covers little, so that tissue is seen where there is nothing to show.
    """
    level = np.clip(np.asarray(values, np.float64) / max(top, 1e-12), 0, 1)
    out = _raster(where, viridis_rgb((255 * level).round().astype(np.uint8)))
    out[where[:, 1], where[:, 0], 3] = (255 * (MIN_OPACITY + (1 - MIN_OPACITY) * level)).round()
    return out


def class_image(where: GridCells, kinds: NDArray[np.integer], palette: Image) -> Image:
    """(n, 2) cells and (n,) positions in a palette, (k, 3) uint8 RGB → (rows, columns, 4) uint8 RGBA."""
    return _raster(where, palette[kinds])


def viridis_rgb(levels: NDArray[np.uint8]) -> Image:
    """Viridis: (n,) 0–255 → (n, 3) RGB. Its lightness rises evenly, so that it is read without hues too."""
    coloured = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)
    return np.asarray(coloured.reshape(-1, 3)[:, ::-1], np.uint8)


def _raster(where: GridCells, rgb: Image) -> Image:
    columns, rows = where.max(axis=0, initial=0) + 1
    out = np.zeros((rows, columns, 4), np.uint8)
    out[where[:, 1], where[:, 0], :3] = rgb
    out[where[:, 1], where[:, 0], 3] = 255
    return out


def encode_png(picture: Image) -> bytes:
    """(h, w, 4) uint8 RGBA as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def outline_path(where: GridCells) -> str:
    """The rim of the union of cells as an SVG path, in cells: 'M3 4h2' is an edge of two cells. Empty without cells."""
    if not len(where):
        return ""
    inside = np.zeros(tuple(where.max(axis=0)[::-1] + 3), np.bool_)
    inside[where[:, 1] + 1, where[:, 0] + 1] = True
    rows, columns = inside.shape
    across = inside[1:] != inside[:-1]  # an edge above row r + 1
    down = inside[:, 1:] != inside[:, :-1]
    parts = [f"M{start - 1} {r}h{end - start}" for r in range(rows - 1) for start, end in _runs(across[r])]
    parts += [f"M{c} {start - 1}v{end - start}" for c in range(columns - 1) for start, end in _runs(down[:, c])]
    return "".join(parts)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Starts and ends, exclusive, of what is true in a row."""
    edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
