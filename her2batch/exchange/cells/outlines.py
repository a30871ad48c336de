"""Outlines of the nuclei of a small area, drawn again from the pyramid of the slide.

The table of cells has no outlines: they would take ten times its size. They follow from the pixels and from the stains
and figures that are kept with the table. An outline belongs to the cell of the table whose centre it surrounds.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from her2batch.slides.slide import Box, Slide
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.vision.cells.density import coarse_scale
from her2batch.vision.cells.detection import CELL_MARGIN_UM, cell_contours

SAME_UM: Final = 2.0
"""Greatest distance between the centre of a cell in the table and that of its outline."""

CORNERS: Final = 16
"""Corners of a circle that stands for the outline of a nucleus."""


class CellOutlines(NamedTuple):
    """Outlines of cells. rows: (n,) of the given table.  corners: (n, k, 2) float64 x, y, level-0 px."""

    rows: NDArray[np.int64]
    corners: NDArray[np.float64]


def cell_outlines(slide: Slide, cells: pa.Table, provenance: CellProvenance, box: Box, mpp: float) -> CellOutlines:
    """Return the outlines of cells.

    slide: the pyramid.  cells: rows of the table cells inside the box, with x, y, area.  box: level-0 px.  mpp: of the
    cohort's tiles.  Cells whose outline is not found again, and imported cells, get a circle with their area.
    """
    corners = circles(cells, slide.info.mpp or 1.0)
    if provenance.stains is None or provenance.reference is None or not len(cells):
        return CellOutlines(np.arange(len(cells)), corners)
    assert slide.info.mpp is not None
    zoom = mpp / slide.info.mpp
    frame, left, top = _frame(slide, box, zoom, mpp)
    found, outlines = cell_contours(
        slide.region(frame, mpp), mpp, provenance.stains, provenance.reference, provenance.marker
    )
    shift, points = np.array([left, top]), np.stack([found.x, found.y], axis=1)
    own = np.stack([cells[name].to_numpy() for name in ("x", "y")], axis=1)
    if len(found):
        tree = cKDTree((points + shift + 0.5) * zoom)
        distance, nearest = tree.query(own, distance_upper_bound=SAME_UM / slide.info.mpp)
        near = np.isfinite(distance)
        corners[near] = (outlines[nearest[near]] + shift + 0.5) * zoom
    return CellOutlines(np.arange(len(cells)), corners)


def _frame(slide: Slide, box: Box, zoom: float, mpp: float) -> tuple[Box, int, int]:
    """The box with a margin, level-0 px, and its first px on the grid of the slide's tiles at `mpp`."""
    step = coarse_scale(mpp)
    margin = np.ceil(CELL_MARGIN_UM / mpp)
    left, top = (int(max(0, np.floor((first / zoom - margin) / step) * step)) for first in (box.x, box.y))
    right, bottom = (int(np.ceil(last / zoom + margin)) for last in (box.right, box.bottom))
    x, y = round(left * zoom), round(top * zoom)
    width = min(round((right - left) * zoom), slide.info.width - x)
    height = min(round((bottom - top) * zoom), slide.info.height - y)
    return Box(x, y, max(1, width), max(1, height)), left, top


def circles(cells: pa.Table, slide_mpp: float) -> NDArray[np.float64]:
    """Return circles with the areas of nuclei: (n, CORNERS, 2) x, y, level-0 px.  cells: with x, y, area."""
    area = cells["area"].to_numpy().astype(np.float64)
    return rings(_centres(cells), np.sqrt(area / np.pi) / slide_mpp)


def rings(centres: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return regular polygons with the area of circles: centres (n, 2), radius (n,) → (n, CORNERS, 2)."""
    angles = np.arange(CORNERS) * 2 * np.pi / CORNERS
    grow = np.sqrt(2 * np.pi / CORNERS / np.sin(2 * np.pi / CORNERS))  # a polygon is smaller than its circle
    unit = grow * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(centres[:, None, :] + radius[:, None, None] * unit)


def _centres(cells: pa.Table) -> NDArray[np.float64]:
    values: Any = np.stack([cells[name].to_numpy() for name in ("x", "y")], axis=1)
    return np.asarray(values, np.float64)
