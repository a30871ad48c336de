"""The stage that measures cells: on blocks of tiles with a margin, and the table of a slide's cells.

A cell belongs to the tile in which the centre of its nucleus lies, and to the block of this tile. A nucleus at the
border of two blocks is seen in both; where the two differ by so much that both own it, one of them is dropped.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from her2batch.exchange.regions import SlideRegions
from her2batch.pipeline.cells.block_image import BlockImage
from her2batch.pipeline.cells.scoring import NUCLEAR_STAINS
from her2batch.pipeline.slide_state import SlideState, StageContext, Tables, TileColumns, Work
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.store.tables.cells import cells_table
from her2batch.vision.cells.detection import Cells, Marker, detect_cells
from her2batch.vision.tile_grid import rows_of_places

CELLS: Final = "cells"
"""Name of the table."""

SAME_CELL_UM: Final = 3.0
"""Distance of two nuclei of different blocks up to which they are one: half of the diameter of a small nucleus."""

FIGURES: Final = tuple(field.name for field in fields(Cells) if field.name not in ("x", "y"))
"""Columns that are measured, besides the position."""


def marker_place(stain: str | None) -> Marker:
    """Where the DAB of a slide of this stain lies: `nuclear` or `membrane`."""
    return "nuclear" if stain in NUCLEAR_STAINS else "membrane"


def is_needed(context: StageContext) -> bool:
    """Whether an ingest with these settings measures cells."""
    return context.plan.cells == "all"


def detect(_: StageContext) -> Work:
    """Make the work of the stage: the cells of a block."""

    def work(image: BlockImage, state: SlideState, mpp: float) -> TileColumns:
        fit = state.stain_fit
        assert fit.cells is not None
        place = marker_place(state.stain)
        cells = detect_cells(image.pixels, mpp, fit.stains, fit.cells, place, image.excluded)
        tiles = state.tissue_tiles.grids["tiles"].tiles
        return own_cells(cells, image, tiles)

    return work


def own_cells(cells: Cells, image: BlockImage, tiles: NDArray[np.int32]) -> TileColumns:
    """The cells of a block whose centres lie in its tiles, by rows of the grid of tiles.

    tiles: (n, 3) x, y, size of all tiles, level-0 px.  Columns: x and y on the grid of the slide, px; block: the first
    tile of the block; rim: distance to the border of the tile, px.
    """
    x = cells.x.astype(np.float64) + image.left + 0.5
    y = cells.y.astype(np.float64) + image.top + 0.5
    step = float(tiles[image.tiles, 2].mean())
    corners = np.round(tiles[image.tiles, :2] / step).astype(np.int64)
    places = np.floor(np.stack([x, y], axis=1) / image.edge).astype(np.int64)
    found = rows_of_places(corners, places)
    own = found >= 0
    chosen = cells.select(own)
    x, y = x[own], y[own]
    inside = [np.minimum(values % image.edge, image.edge - values % image.edge) for values in (x, y)]
    values: dict[str, NDArray[Any]] = {name: getattr(chosen, name) for name in FIGURES}
    values |= {"x": x, "y": y, "rim": np.minimum(*inside)}
    values["block"] = np.full(len(x), image.tiles[0], np.int64)
    return TileColumns(image.tiles[found[own]], values)


def tables(context: StageContext, state: SlideState) -> Tables:
    """The cells table of a slide, from all of its blocks."""
    plan, found = context.plan, state.get("cells")
    columns = {name: found.column(name) for name in (*FIGURES, "x", "y", "rim", "block")}
    columns["tile"] = found.tiles
    columns = _without_doubles(columns, SAME_CELL_UM / plan.mpp)
    scale = plan.mpp / state.row["mpp"]  # level-0 px per px of the grid
    columns["x"], columns["y"] = (np.round(4 * columns[name] * scale) / 4 for name in ("x", "y"))
    order = np.lexsort((columns["x"], columns["y"], columns["tile"]))
    columns = {name: values[order] for name, values in columns.items()}
    columns["cell"] = np.arange(len(order))
    columns["piece"] = state.tables["tiles"]["piece"].to_numpy()[columns["tile"].astype(np.int64)]
    columns["tumour"] = override_likelihood(columns["tumour"], columns["x"], columns["y"], state.regions)
    fit = state.stain_fit
    marked = state.regions is not None and state.regions.included is not None
    place = marker_place(state.stain)
    provenance = CellProvenance("her2batch", place, fit.marker, fit.stains, fit.cells, marked)
    return {CELLS: provenance.attach(cells_table(state.slide_id, columns))}


def _without_doubles(columns: dict[str, NDArray[Any]], reach: float) -> dict[str, NDArray[Any]]:
    """Drop cells that a cell of another block repeats. reach: distance up to which two cells are one, px.

    Of two such cells the one of the earlier block stays. Only cells near the border of their tile can be repeated.
    """
    near = np.flatnonzero(columns["rim"] <= reach)
    points = np.stack([columns["x"][near], columns["y"][near]], axis=1)
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray") if len(near) else np.empty((0, 2), np.int64)
    blocks = columns["block"][near][pairs]
    pairs, blocks = pairs[blocks[:, 0] != blocks[:, 1]], blocks[blocks[:, 0] != blocks[:, 1]]
    later = pairs[np.arange(len(pairs)), blocks.argmax(axis=1)]
    keep = np.ones(len(columns["x"]), bool)
    keep[near[later]] = False
    return {name: values[keep] for name, values in columns.items()}


def override_likelihood(
    tumour: NDArray[Any], x: NDArray[Any], y: NDArray[Any], regions: SlideRegions | None
) -> NDArray[Any]:
    """The likelihood that cells are of the tumour, as regions of a person decide: 1 inside, 0 outside and in excluded.

    x, y: level-0 px.  Without regions of the tumour only those that are excluded count.
    """
    if regions is None or regions.is_empty:
        return tumour
    decided = tumour
    if regions.included is not None:
        decided = shapely.contains_xy(regions.included, x, y).astype(tumour.dtype)
    if regions.excluded is not None:
        decided = np.where(shapely.contains_xy(regions.excluded, x, y), 0, decided)
    return decided
