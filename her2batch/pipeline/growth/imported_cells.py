"""Import of cells that another program has detected, as an alternative source of a slide's cells and of its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError, StoreError
from her2batch.exchange.cells.qupath_cells import read_cells
from her2batch.exchange.incoming import slide_for_file
from her2batch.exchange.slide_names import files_in
from her2batch.files.locations import to_location
from her2batch.pipeline.cells.cell_stage import CELLS, marker_place
from her2batch.pipeline.cells.scoring import AREA_TABLE, both_rules, is_presumed
from her2batch.pipeline.predict import read_rule_table
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.store.tables.cells import cells_table
from her2batch.vision.tile_grid import rows_of_places

SUFFIXES: Final = (".geojson", ".json")

SOURCE: Final = "QuPath"

IMPORTED: Final = "cells-imported"
"""Flag of a slide whose cells another program has detected."""


@dataclass
class CellImportSummary:
    """Result of an import.

    slides: slide → number of its imported cells.  outside: slide → number of cells that lie in no tile and were left
    out.  failures: file → reason why it was refused.
    """

    slides: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: all files are imported; 2: none is; 3: some were refused."""
        return 0 if not self.failures else 3 if self.slides else 2


def find_cell_files(paths: Sequence[Path]) -> list[Path]:
    """Return the GeoJSON files among the given files and folders."""
    found: list[Path] = []
    for path in paths:
        found += files_in(path, SUFFIXES) if path.is_dir() else [path] if path.suffix.lower() in SUFFIXES else []
    return found


def import_cells(root: Path, files: Sequence[Path], names: Pseudonymizer) -> CellImportSummary:
    """Replace the cells of slides by those of QuPath, and score the slides by them.

    files: SLIDE.geojson or SLIDE.cells.geojson.  A file is imported as a whole, or refused with the reason.  The slide
    gets the flag `cells-imported`, and its table states the source.  Raises StoreError.
    """
    cohort, summary = Cohort(to_location(root)), CellImportSummary()
    cohort.check()
    with cohort.lock():
        rows = cohort.rows()
        for path in files:
            try:
                plain = path.with_name(path.name.replace(".cells.", "."))
                row = slide_for_file(plain, rows, names)
                table, outside = _cells_of_file(cohort, row, path)
            except InputError as error:
                summary.failures[str(path)] = str(error)
                continue
            rows[row["slide_id"]] = _commit(cohort, row, table)
            summary.slides[row["slide_id"]] = table.num_rows
            summary.outside |= {row["slide_id"]: outside} if outside else {}
        cohort.update_row_cache()
    return summary


def _cells_of_file(cohort: Cohort, row: Row, path: Path) -> tuple[pa.Table, int]:
    """The cells table of a slide from a file, and the number of cells that lie in no tile."""
    found = read_cells(path, row["mpp"])
    tiles = cohort.read("tiles", row["slide_id"])
    tile = tiles_of_points(tiles, found.columns["x"], found.columns["y"])
    inside = tile >= 0
    if not inside.any():
        what = "none of its cells lies in the tissue of the slide: they may be of another slide, or in other units"
        raise InputError(what, path, "export the cells from this slide itself, in px of its level 0")
    columns: dict[str, NDArray[Any]] = {name: values[inside] for name, values in found.columns.items()}
    columns["tile"] = tile[inside]
    order = np.lexsort((columns["x"], columns["y"], columns["tile"]))
    columns = {name: values[order] for name, values in columns.items()}
    columns["cell"] = np.arange(len(order))
    pieces = tiles["piece"].to_numpy() if "piece" in tiles.column_names else np.zeros(len(tiles), np.int16)
    columns["piece"] = pieces[columns["tile"]]
    provenance = CellProvenance(SOURCE, marker_place(row["stain"]), tumour_marked=True)
    return provenance.attach(cells_table(row["slide_id"], columns)), int((~inside).sum())


def tiles_of_points(tiles: pa.Table, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row of the tiles table in which each point lies, (n,); −1 in none.  x, y: level-0 px."""
    if not len(tiles):
        return np.full(len(x), -1)
    size = float(tiles["size"][0].as_py())
    corners = np.stack([tiles[name].to_numpy() for name in ("x", "y")], axis=1)
    gaps = np.diff(np.unique(corners[:, 0]))
    near = gaps[np.abs(gaps - size) <= 1]
    step = float(near.mean()) if len(near) else size

    places = np.floor(np.stack([x, y], axis=1) / step).astype(np.int64)
    return rows_of_places(np.round(corners / step).astype(np.int64), places)


def _commit(cohort: Cohort, row: Row, cells: pa.Table) -> Row:
    """Write the cells, the predictions and the row of a slide. Raises StoreError."""
    others = {**row, "flags": [flag for flag in row["flags"] or () if flag != IMPORTED]}
    row = {**row, "flags": [*others["flags"], IMPORTED]}

    def read(name: str) -> pa.Table:
        return cells if name == CELLS else cohort.read(name, row["slide_id"])

    by_area = None
    if AREA_TABLE in tables_of(row):
        by_area = read_rule_table(others, read, is_presumed(read(AREA_TABLE)))
    tables = {CELLS: cells, **both_rules(row, by_area, read)}
    try:
        return cohort.add_tables(row, tables)
    except OSError as error:
        what = f"the cohort cannot be written to ({error.strerror or error})"
        raise StoreError(what, cohort.root, "check the free disk space") from error
