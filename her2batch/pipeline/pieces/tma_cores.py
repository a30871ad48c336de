"""Cores of tissue microarrays: the pieces of a slide on the grid of its map, each core with its own score."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from her2batch.assessment import MICROARRAY
from her2batch.exchange.controls.tma_map import ArrayMap
from her2batch.pipeline.pieces.piece_results import score_tiles
from her2batch.store.cohort import Cohort, Row, tables_of, write_row
from her2batch.store.pieces.cores_table import read_cores, write_cores
from her2batch.vision.membrane import MEMBRANE_COLUMNS
from her2batch.vision.pieces.array_grid import fit_array_grid


class CoreNotes(NamedTuple):
    """What became of the cores of a cohort.  notes: sentences on slides whose grid is not certain."""

    found: int
    missing: int
    notes: tuple[str, ...]


def update_cores(cohort: Cohort, given: ArrayMap | None) -> CoreNotes | None:
    """Place the pieces of every finished slide of a map on its grid, and write the table of the cores.

    A slide of the map has the flag `microarray` in its row from then on, until a map does not name it. Without a map
    only slides that were processed again get back their flag. A slide with a damaged table is left out, with a note.
    """
    if given is None:
        _flag_arrays(cohort, {core["slide_id"] for core in read_cores(cohort)}, keep=True)
        return None
    rows: list[dict[str, Any]] = []
    notes = []
    for slide_id, row in sorted(cohort.rows().items()):
        wanted = given.of_slide(slide_id)
        if not wanted or row["status"] != "done" or "pieces" not in tables_of(row):
            continue
        try:
            tables = {name: cohort.read(name, slide_id) for name in ("pieces", "tiles", "membrane")}
        except (OSError, pa.ArrowInvalid):
            notes.append(f"{slide_id}: its tables can't be read; run her2batch verify")
            continue
        cores, is_ambiguous, beside = slide_cores(row, wanted, tables)
        rows += cores
        if is_ambiguous:
            notes.append(
                f"{slide_id}: an outer row or column of the array is missing, so that its cores may be shifted"
            )
        if beside:
            notes.append(f"{slide_id}: {beside} pieces of tissue are at no place of the map")
    write_cores(cohort, rows)
    _flag_arrays(cohort, {slide_id for slide_id in cohort.rows() if given.of_slide(slide_id)}, keep=False)
    missing = sum(core["status"] == "missing" for core in rows)
    return CoreNotes(len(rows) - missing, missing, tuple(notes))


def _flag_arrays(cohort: Cohort, arrays: Collection[str], keep: bool) -> None:
    """Give slides the flag of a microarray. keep: the others may keep it."""
    if keep and not arrays:
        return
    for slide_id, row in cohort.rows().items():
        flags, is_array = list(row["flags"] or ()), slide_id in arrays
        has_flag = MICROARRAY in flags
        if row["status"] != "done" or has_flag == is_array or (keep and has_flag):
            continue
        flags = [*flags, MICROARRAY] if is_array else [flag for flag in flags if flag != MICROARRAY]
        write_row(cohort, {**row, "flags": flags})
    cohort.update_row_cache()


def slide_cores(
    row: Row, wanted: Mapping[tuple[int, int], str], tables: Mapping[str, pa.Table]
) -> tuple[list[dict[str, Any]], bool, int]:
    """Return the cores of one slide, whether their places are ambiguous, and the number of pieces at no place.

    wanted: (row, column) → case.  tables: pieces, tiles and membrane of the slide.
    """
    pieces = [piece for piece in tables["pieces"].to_pylist() if piece["role"] == "tissue"]
    centres = np.array([(p["x"] + p["width"] / 2, p["y"] + p["height"] / 2) for p in pieces], float).reshape(-1, 2)
    grid = fit_array_grid(centres, np.array([piece["area_mm2"] for piece in pieces], float), wanted)
    cores = []
    for place, case in sorted(wanted.items()):
        own = [k for k, cell in enumerate(grid.cells) if cell == place]
        values = _score_core(row, [pieces[k]["piece"] for k in own], tables)
        centre = centres[own].mean(axis=0).round().astype(int).tolist() if own else [None, None]
        names = {"slide_id": row["slide_id"], "row": place[0], "column": place[1], "case": case}
        status = "missing" if not own else "found" if values["predicted"] is not None else "not-scored"
        cores.append({**names, "status": status, "n_pieces": len(own), "x": centre[0], "y": centre[1], **values})
    return cores, grid.is_ambiguous, sum(cell is None for cell in grid.cells)


def _score_core(row: Row, numbers: Sequence[int], tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return the class and the score of a core by the membrane rule on the tiles of its pieces."""
    own = np.isin(tables["tiles"]["piece"].to_numpy(), numbers)
    shares = {name: tables["membrane"][name].to_numpy() for name in MEMBRANE_COLUMNS}
    return {"n_tiles": int(own.sum()), **score_tiles(shares, own, row["stain"])._asdict()}
