"""Cells of a slide on its page: shares of tumour cells, the steps of the guideline, and outlines on example tiles."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.exchange.cells.outlines import cell_outlines
from her2batch.files.parquet import read_where
from her2batch.models.guideline.cell_rule import cell_steps
from her2batch.models.guideline.steps import StepShares
from her2batch.reports.figures import CLASS_COLOURS, PALETTE
from her2batch.slides.slide import Box, Slide
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.tasks import CELL_RULE, HER2_TASKS, IHC_SCORES
from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD

FINEST_MPP: Final = 0.2
"""µm/px of example tiles of finer slides."""

OTHER_CELL: Final = (111, 111, 111)
"""Colour of cells that are not of the tumour, R, G, B; the same as on the web page."""

MEMBRANE_NAMES: Final = (
    "no membrane staining",
    "faint or incomplete",
    "weak to moderate, complete",
    "intense, complete",
)
NUCLEAR_NAMES: Final = ("negative", "weak", "moderate", "strong")
"""What the categories of a cell mean, by where the marker lies."""

CLASS_MARKS: Final[dict[str, int | None]] = {"her2": 10, "er": 1, "pr": 1, "ki67": None}
"""Marker → percent of tumour cells at which a class begins: of intense, complete membranes for 3+ (ASCO/CAP 2018), of
positive nuclei for ER and PR (ASCO/CAP 2020)."""


def cell_evidence(predictions: Iterable[Row]) -> dict[str, Any]:
    """Return the values of the template `evidence.html` that concern cells. predictions: all of the slide.

    cell_shares: (score, name, percent) of each category, the strongest first; empty without cells, and for a slide that
    cannot be scored, whose cells have no category.  cell_steps: of the guideline, for a HER2 slide that can be scored.
    cell_prediction: None without cells.  cell_mark: percent at which the class of the marker changes, see CLASS_MARKS.
    """
    found = next((one for one in predictions if one["bundle"] == CELL_RULE and one.get("percent")), None)
    if found is None or found["predicted"] is None:
        return {"cell_prediction": found, "cell_shares": [], "cell_steps": (), "cell_mark": None}
    percent, is_her2 = found["percent"], found["task"] in HER2_TASKS
    names = MEMBRANE_NAMES if is_her2 else NUCLEAR_NAMES
    shares = [(IHC_SCORES[k], names[k], percent[k]) for k in (3, 2, 1, 0)]
    steps: tuple[Any, ...] = ()
    if is_her2:
        none, _, complete, intense = (value / 100 for value in percent)
        steps = cell_steps(StepShares(1 - none, complete + intense, intense))
    mark = CLASS_MARKS["her2" if is_her2 else found["task"]]
    return {"cell_prediction": found, "cell_shares": shares, "cell_steps": steps, "cell_mark": mark}


class OutlinedTiles:
    """Example tiles of a slide with the outlines of its cells, in the colours of their categories."""

    def __init__(self, cohort: Cohort, row: Row, slide: Slide, scored: bool = True) -> None:
        """slide: its pyramid.  scored: whether its cells have categories; all outlines are grey otherwise."""
        self._cohort, self._row, self._slide, self._scored = cohort, row, slide, scored

    @cached_property
    def _mpp(self) -> float:
        return self._cohort.plan().mpp

    @cached_property
    def _table(self) -> Path | None:
        return self._cohort.table("cells", self._row["slide_id"]) if "cells" in tables_of(self._row) else None

    def image(self, box: Box) -> NDArray[np.uint8]:
        """Return a part of the slide, level-0 px, as (H, W, 3) uint8 RGB. Cells that can't be read are left out."""
        mpp = max(self._row["mpp"], FINEST_MPP)
        image = self._slide.region(box, mpp)
        try:
            cells = self._cells(box)
        except (OSError, pa.ArrowException):
            return image
        if cells is None or not cells.num_rows:
            return image
        found = cell_outlines(self._slide, cells, CellProvenance.of(cells), box, self._mpp)
        corners = (found.corners - [box.x, box.y]) * (self._row["mpp"] / mpp)
        coloured = (cells["tumour"].to_numpy() >= TUMOUR_LIKELIHOOD) & self._scored
        return draw_outlines(image, corners, cells["category"].to_numpy(), coloured)

    def _cells(self, box: Box) -> pa.Table | None:
        if self._table is None:
            return None
        ranges = {"x": (box.x, box.right), "y": (box.y, box.bottom)}
        table = read_where(self._table, ["x", "y", "area", "category", "tumour"], ranges)
        x, y = (table[name].to_numpy() for name in ("x", "y"))
        return table.filter(pa.array((x >= box.x) & (x < box.right) & (y >= box.y) & (y < box.bottom)))


def draw_outlines(
    image: NDArray[np.uint8], corners: NDArray[np.float64], category: NDArray[np.uint8], tumour: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return an image with closed outlines, (n, k, 2) px, white-rimmed, in the colour of each cell's category."""
    drawn = np.ascontiguousarray(image).copy()
    rings = [np.round(ring * 8).astype(np.int32) for ring in corners]
    cv2.polylines(drawn, rings, True, (255, 255, 255), 3, cv2.LINE_AA, 3)
    for k, score in enumerate(IHC_SCORES):
        colour = PALETTE[CLASS_COLOURS[score]][0]
        own = [ring for ring, one, counts in zip(rings, category, tumour, strict=True) if counts and one == k]
        cv2.polylines(drawn, own, True, tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 2, cv2.LINE_AA, 3)
    others = [ring for ring, counts in zip(rings, tumour, strict=True) if not counts]
    cv2.polylines(drawn, others, True, OTHER_CELL, 2, cv2.LINE_AA, 3)
    return drawn
