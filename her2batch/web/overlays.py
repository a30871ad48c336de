"""Overlays of a slide, from its tables: values of its tiles, attention, patch classes, saliency, and the tissue
outline.

Overlays are columns, not rows, because a slide has up to 50,000 tiles. Coordinates are level-0 px.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.vision.heatmap import attention_scale_end
from her2batch.vision.membrane import MEMBRANE_COLUMNS

DECIMALS = 4
"""Decimal places of the values, more than a heatmap shows."""

Columns = dict[str, list[Any]]

Layers = list[dict[str, Any]]


def tile_overlay(table: pa.Table, membrane: pa.Table | None) -> Columns:
    """Return the columns of the tiles: tissue, DAB, blur and, where available, the membrane shares."""
    overlay: Columns = {name: table[name].to_pylist() for name in ("tile", "x", "y", "size")}
    overlay |= {name: _round_column(table[name]) for name in ("tissue", "dab", "blur")}
    if membrane is not None and membrane["tile"].equals(table["tile"]):
        overlay |= {name: _round_column(membrane[name]) for name in MEMBRANE_COLUMNS}
    return overlay


def attention_overlays(table: pa.Table, tiles: pa.Table) -> list[dict[str, Any]]:
    """Return the attention of each MIL head: task, method, input, scale_end, and the columns x, y, size, attention.

    Attention is relative to the largest of the slide, 0–1.  multiple: the largest as a multiple of uniform attention.
    scale_end: end of the colour scale, as such a multiple; the same as in the report.
    """
    positions = {name: tiles[name].to_numpy() for name in ("x", "y", "size")}
    head_of_row = table.select(["task", "method", "input"]).to_pylist()
    overlays = []
    for head in {tuple(row.values()): row for row in head_of_row}.values():
        own = table.filter(pa.array([row == head for row in head_of_row], pa.bool_()))
        tile, share = own["tile"].to_numpy(), own["attention"].to_numpy()
        columns: Columns = {name: values[tile].tolist() for name, values in positions.items()}
        columns["attention"] = np.round(share / max(float(share.max(initial=0)), 1e-12), DECIMALS).tolist()
        multiples = share.astype(np.float64) * len(share)
        scale = {"multiple": float(multiples.max(initial=0)), "scale_end": attention_scale_end(multiples)}
        overlays.append({**head, **scale, **columns})
    return overlays


def patch_overlays(table: pa.Table) -> list[dict[str, Any]]:
    """Return the patches of each resolution: the columns x, y, size, most probable class and its probability."""
    overlays = []
    for resolution in table["resolution"].unique().to_pylist():
        own = table.filter(pa.array([row == resolution for row in table["resolution"].to_pylist()], pa.bool_()))
        p = np.stack([own[f"p{k}"].to_numpy() for k in range(4)], axis=1)
        columns: Columns = {name: own[name].to_pylist() for name in ("x", "y", "size")}
        columns["class"] = p.argmax(axis=1).tolist()
        columns["p"] = np.round(p.max(axis=1).astype(np.float64), DECIMALS).tolist()
        overlays.append({"resolution": resolution, **columns})
    return overlays


def saliency_overlays(table: pa.Table) -> list[dict[str, Any]]:
    """Return the saliency map of each thumbnail network: task, method, input, and columns x, y, size and saliency."""
    head_of_row = table.select(["task", "method", "input"]).to_pylist()
    overlays = []
    for head in {tuple(row.values()): row for row in head_of_row}.values():
        own = table.filter(pa.array([row == head for row in head_of_row], pa.bool_()))
        columns: Columns = {name: own[name].to_pylist() for name in ("x", "y", "size")}
        overlays.append({**head, **columns, "saliency": _round_column(own["saliency"])})
    return overlays


def tissue_outline(table: pa.Table) -> list[list[tuple[int, int]]]:
    """Return the outline of all tiles as rings, holes included: [x, y] corners. The tables contain no tissue mask."""
    if not len(table):
        return []
    x, y, size = (table[name].to_numpy().astype(np.float64) for name in ("x", "y", "size"))
    step = _grid_step(x, y, float(np.median(size)))
    columns, rows = np.round(x / step).astype(int), np.round(y / step).astype(int)
    mask = np.zeros((rows.max() + 1, columns.max() + 1), np.uint8)
    mask[rows, columns] = 1
    fine = np.kron(np.pad(mask, 1), np.ones((2, 2), np.uint8))  # a ring of one tile then has an area
    rings, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [_ring_corners(ring[:, 0, :], step) for ring in rings]


def piece_overlays(pieces: pa.Table, tiles: pa.Table) -> list[dict[str, Any]]:
    """Return the pieces of tissue: number, x, y (level-0 px), role, expected and own class, and the rings of its tiles.

    suspected: the piece counts, but may be a control.
    """
    names = ("piece", "x", "y", "role", "suspected", "expected", "predicted", "score")
    numbers = tiles["piece"]
    return [
        {**{name: row[name] for name in names}, "rings": tissue_outline(tiles.filter(pc.equal(numbers, row["piece"])))}
        for row in pieces.to_pylist()
    ]


def _grid_step(x: NDArray[np.float64], y: NDArray[np.float64], size: float) -> float:
    """Return the distance of neighbouring tiles: within 1 px of their size, but usually not an integer."""
    gaps = np.concatenate([np.diff(np.unique(values)) for values in (x, y)])
    near = gaps[np.abs(gaps - size) <= 1]
    return float(near.mean()) if len(near) else size


def _ring_corners(ring: NDArray[np.int32], step: float) -> list[tuple[int, int]]:
    """Return the corners of a ring. Contours run through centres of half-tile cells; the edge is half a cell out."""
    corners = np.round((ring + 1) // 2 * step - step).astype(int)
    return [(int(x), int(y)) for x, y in corners]


def _round_column(column: pa.ChunkedArray) -> list[float]:
    values: list[float] = np.round(column.to_numpy().astype(np.float64), DECIMALS).tolist()
    return values
