"""What is laid over a slide, out of its tables: tiles with their figures, attention, patch classes, the outline.

Columns, not rows: a slide has up to fifty thousand tiles. Coordinates are level-0 px.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.vision.membrane import MEMBRANE_COLUMNS

DECIMALS = 4
"""Decimal places of a figure: a heatmap shows fewer."""

Columns = dict[str, list[Any]]


def tile_overlay(table: pa.Table, membrane: pa.Table | None) -> Columns:
    """Tiles with tissue, DAB, blur and, where they are, the membrane shares: name → one value a tile."""
    found: Columns = {name: table[name].to_pylist() for name in ("tile", "x", "y", "size")}
    found |= {name: _round_column(table[name]) for name in ("tissue", "dab", "blur")}
    if membrane is not None and membrane["tile"].equals(table["tile"]):
        found |= {name: _round_column(membrane[name]) for name in MEMBRANE_COLUMNS}
    return found


def attention_overlays(table: pa.Table, tiles: pa.Table) -> list[dict[str, Any]]:
    """For each head: its task, method, input, and x, y, size, attention a tile, of the slide's largest share: 0–1."""
    places = {name: tiles[name].to_numpy() for name in ("x", "y", "size")}
    keys = table.select(["task", "method", "input"]).to_pylist()
    found = []
    for key in {tuple(one.values()): one for one in keys}.values():
        own = table.filter(pa.array([one == key for one in keys], pa.bool_()))
        number, share = own["tile"].to_numpy(), own["attention"].to_numpy()
        columns: Columns = {name: values[number].tolist() for name, values in places.items()}
        columns["attention"] = np.round(share / max(float(share.max(initial=0)), 1e-12), DECIMALS).tolist()
        found.append({**key, **columns})
    return found


def patch_overlays(table: pa.Table) -> list[dict[str, Any]]:
    """For each resolution: x, y, size of its patches, and the likeliest class of each with its probability."""
    found = []
    for resolution in table["resolution"].unique().to_pylist():
        own = table.filter(pa.array([one == resolution for one in table["resolution"].to_pylist()], pa.bool_()))
        p = np.stack([own[f"p{k}"].to_numpy() for k in range(4)], axis=1)
        columns: Columns = {name: own[name].to_pylist() for name in ("x", "y", "size")}
        columns["class"] = p.argmax(axis=1).tolist()
        columns["p"] = np.round(p.max(axis=1).astype(np.float64), DECIMALS).tolist()
        found.append({"resolution": resolution, **columns})
    return found


def tissue_outline(table: pa.Table) -> list[list[tuple[int, int]]]:
    """Rings round the tiles, holes too: x, y corners in level-0 px. The mask itself is not kept in the tables."""
    if not len(table):
        return []
    x, y, size = (table[name].to_numpy().astype(np.float64) for name in ("x", "y", "size"))
    step = _grid_step(x, y, float(np.median(size)))
    columns, rows = np.round(x / step).astype(int), np.round(y / step).astype(int)
    mask = np.zeros((rows.max() + 1, columns.max() + 1), np.uint8)
    mask[rows, columns] = 1
    fine = np.kron(np.pad(mask, 1), np.ones((2, 2), np.uint8))  # so that a ring of one tile has an area
    rings, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [_ring_corners(ring[:, 0, :], step) for ring in rings]


def _grid_step(x: NDArray[np.float64], y: NDArray[np.float64], size: float) -> float:
    """Px between neighbouring tiles: within 1 px of their size, but no whole number as a rule."""
    gaps = np.concatenate([np.diff(np.unique(one)) for one in (x, y)])
    near = gaps[np.abs(gaps - size) <= 1]
    return float(near.mean()) if len(near) else size


def _ring_corners(ring: NDArray[np.int32], step: float) -> list[tuple[int, int]]:
    """Contours run through the middle of cells; in cells of half a tile, the rim is half a cell further out."""
    places = np.round((ring + 1) // 2 * step - step).astype(int)
    return [(int(x), int(y)) for x, y in places]


def _round_column(column: pa.ChunkedArray) -> list[float]:
    values: list[float] = np.round(column.to_numpy().astype(np.float64), DECIMALS).tolist()
    return values
