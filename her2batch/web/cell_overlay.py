"""Cells of a slide for the viewer: those in view, read from the part of their table in which they can lie.

The table is sorted by tile, so that a view is in few of its row groups. Where a view has more cells than a screen can
show, one of 2, 4, 8, … is sent; which ones does not change while the view moves.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.exchange.cells.outlines import cell_outlines
from her2batch.files.parquet import read_where
from her2batch.slides.slide import Box, Slide
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.store.tables.cells import CELL_COLUMNS

MAX_CELLS: Final = 20_000
"""Cells that are sent at once: 0.5 MB as JSON, and more than a screen can show apart."""

MAX_OUTLINED_MM2: Final = 2.0
"""Largest area whose outlines are drawn again at once: a screen at 10 times magnification."""

POINTS: Final = ("cell", "x", "y", "category", "tumour")
"""Columns of every cell in view."""

FIGURES: Final = tuple(column.name for column in CELL_COLUMNS if column.name != "slide_id")
"""Columns of one cell."""

SPREAD: Final = 2654435761
"""Odd factor of a multiplicative hash of 32 bits (Knuth, The Art of Computer Programming, vol. 3, 6.4)."""

Columns = dict[str, list[Any]]


def cells_in_view(path: Path, box: tuple[float, float, float, float], limit: int = MAX_CELLS) -> dict[str, Any]:
    """Return the cells in a box: `cells`, their number; `one_of`, of how many one is sent; and columns.

    path: of the table cells.  box: x, y, width, height, level-0 px.  Columns: cell, x, y, radius_um (of a circle with
    the area of the nucleus, µm), category, tumour.
    """
    x, y, width, height = box
    table = read_where(path, [*POINTS, "area"], {"x": (x, x + width), "y": (y, y + height)})
    columns = {name: table[name].to_numpy() for name in table.column_names}
    across, down = columns["x"], columns["y"]
    inside = (across >= x) & (across < x + width) & (down >= y) & (down < y + height)
    count = int(np.count_nonzero(inside))
    one_of = 2 ** max(0, math.ceil(math.log2(max(count, 1) / limit)))
    if one_of > 1:
        inside &= thinned(columns["cell"], one_of)
    chosen = {name: values[inside] for name, values in columns.items()}
    return {
        "cells": count,
        "one_of": one_of,
        "cell": chosen["cell"].tolist(),
        "x": np.round(chosen["x"]).astype(np.int64).tolist(),
        "y": np.round(chosen["y"]).astype(np.int64).tolist(),
        "radius_um": _rounded(np.sqrt(chosen["area"] / np.pi), 1),
        "category": chosen["category"].tolist(),
        "tumour": _rounded(chosen["tumour"], 2),
    }


def outlines_in_view(path: Path, pyramid: Slide, box: Box, mpp: float) -> dict[str, list[Any]]:
    """Return the outlines of the cells in a box: `cell`, and `outline`, a flat list of x, y, … for each (level-0 px).

    mpp: of the cohort's tiles.  Raises ValueError when the box is larger than MAX_OUTLINED_MM2.
    """
    slide_mpp = pyramid.info.mpp or 1.0
    if box.width * box.height * slide_mpp**2 > MAX_OUTLINED_MM2 * 1e6:
        raise ValueError(f"outlines are drawn in boxes of up to {MAX_OUTLINED_MM2} mm²")
    ranges = {"x": (box.x, box.right), "y": (box.y, box.bottom)}
    table = read_where(path, ["cell", "x", "y", "area"], ranges)
    x, y = (table[name].to_numpy() for name in ("x", "y"))
    table = table.filter(pa.array((x >= box.x) & (x < box.right) & (y >= box.y) & (y < box.bottom)))
    corners = cell_outlines(pyramid, table, CellProvenance.of(table), box, mpp).corners
    flat = np.round(corners.reshape(len(corners), -1)).astype(np.int64)
    return {"cell": table["cell"].to_pylist(), "outline": flat.tolist()}


def thinned(cells: NDArray[np.int32], one_of: int) -> NDArray[np.bool_]:
    """Return which cells are shown if one of `one_of` is, a power of 2: those of a larger number are among them."""
    hashed = (cells.astype(np.uint64) * np.uint64(SPREAD)) & np.uint64(2**32 - 1)
    return np.asarray(hashed < np.uint64(2**32 // one_of))


def one_cell(path: Path, cell: int) -> dict[str, Any] | None:
    """Return the figures of a cell by its number; None if there is none."""
    table = read_where(path, list(FIGURES), {"cell": (cell, cell)})
    place = np.flatnonzero(table["cell"].to_numpy() == cell)
    return table.slice(int(place[0]), 1).to_pylist()[0] if len(place) else None


def _rounded(values: NDArray[Any], digits: int) -> list[float]:
    rounded: list[float] = np.round(values.astype(np.float64), digits).tolist()
    return rounded
