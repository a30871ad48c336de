"""Pieces of tissue on the page of a slide: their outlines on its image, and a table of their roles and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from her2batch.store.cohort import Cohort
from her2batch.store.pieces.patient_tiles import patient_tiles_of
from her2batch.vision import heatmap

ROLE_WORDS = {"tissue": "patient's tissue", "control": "control", "excluded": "excluded"}
"""Role of a piece → its name for readers."""


def piece_outlines(
    pieces: pa.Table | None, tiles: pa.Table | None, cells: heatmap.GridCells, tile_px: float, scored: bool = True
) -> list[dict[str, Any]]:
    """Return the pieces of a slide as the page shows them; empty for a slide of one piece that counts.

    cells: (n, 2) column and row of each tile.  tile_px: level-0 px of a tile.  scored: False for a slide that cannot be
    scored, whose tissue then has no class either.  Each has the row of `pieces`, `words`
    (its role), `path` (outline of its tiles, in tiles) and `label_at` (x, y of its number, in tiles).
    """
    if pieces is None or tiles is None or "piece" not in tiles.column_names:
        return []
    rows = pieces.to_pylist()
    if len(rows) < 2 and all(row["role"] == "tissue" for row in rows):
        return []
    numbers = tiles["piece"].to_numpy()
    found = []
    for row in rows:
        own = cells[numbers == row["piece"]] if len(cells) else np.empty((0, 2), np.int64)
        words = "may be a control" if row["suspected"] else ROLE_WORDS[row["role"]]
        at = (row["x"] / tile_px, row["y"] / tile_px)
        failed = row["expected"] is not None and row["predicted"] not in (None, row["expected"])
        shown = {"words": words, "path": heatmap.outline_path(own), "label_at": at, "failed": failed}
        no_score = {} if scored or row["role"] != "tissue" else {"predicted": None, "score": None}
        found.append({**row, **shown, **no_score})
    return found


def without_controls(cohort: Cohort, row: Mapping[str, Any], table: pa.Table | None) -> pa.Table | None:
    """Return the rows of a slide's table of tiles that count towards its score. row: of the table slides."""
    if table is None or not row.get("control_mm2"):
        return table
    own = patient_tiles_of(cohort, row["slide_id"])
    return table if own is None else table.filter(pa.array(own))
