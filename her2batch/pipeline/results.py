"""A slide's row and tables: from what the stages gave, and what of them changes with the labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.models.bundle import Bundle
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.cells.cell_stage import CELLS, marker_place
from her2batch.pipeline.cells.scoring import AREA_TABLE, both_rules, is_presumed
from her2batch.pipeline.cells.scoring import TABLE as CELLS_TABLE
from her2batch.pipeline.inventory import InventoryUpdater
from her2batch.pipeline.pieces.piece_results import (
    control_flags,
    control_mm2,
    rescore_pieces,
    score_pieces,
    with_control_failed,
)
from her2batch.pipeline.predict import predict_slide, read_rule_table
from her2batch.pipeline.slide_state import SlideState
from her2batch.slides.discover import DiscoveredSlides
from her2batch.slides.slide import SlideInfo
from her2batch.store import schemas
from her2batch.store.audit import files_match_row
from her2batch.store.cohort import Cohort, Draft, Row, tables_of
from her2batch.store.label_sheets.book import LABEL_COLUMNS, LabelBook
from her2batch.store.label_sheets.cells import is_unknown_patient
from her2batch.store.label_sheets.stored import write_labels

DONE: Row = {"status": "done", "error_code": None, "error": None}

BLANK_LIMIT = 0.01
"""Share of a slide's tissue tiles that may be blank; beyond, the slide fails."""

MISSING_LIMIT = 0.1
"""Share of the tissue that may have no image; beyond, the slide fails. Classes depend on shares of 10 % of the tumour
(ASCO/CAP 2018/2023), so that a larger part that nobody sees could change any class."""


def file_columns(info: SlideInfo) -> Row:
    """The columns of `slides` that the slide file determines."""
    return {
        "format": info.format,
        "reader": info.reader,
        "width": info.width,
        "height": info.height,
        "level_downsamples": list(info.level_downsamples),
        "mpp": info.mpp,
        "mpp_source": info.mpp_source,
        "objective": info.objective,
    }


def check_missing(info: SlideInfo, used: NDArray[np.bool_], lost: NDArray[np.bool_], missing: int, tiles: int) -> None:
    """Refuse a slide if too much of the tissue that is used has no image. Raises SlideError `blank-tiles`."""
    share = lost.sum() / max(1, used.sum())
    if share > MISSING_LIMIT:
        what = f"{share:.0%} of its tissue has no image: parts of {missing} of {tiles} tiles are missing from the file"
        raise SlideError("blank-tiles", info.path, what)


def result_columns(state: SlideState, path: Path) -> Row:
    """The columns of `slides` that the stages determine.

    path: the slide file, for the error.  The scores of the pieces are kept in the state, as flags of the slide follow
    from them.  Raises SlideError `blank-tiles`.
    """
    n, tissue = len(state.tissue_tiles.grids["tiles"].tiles), state.tissue_tiles.tissue
    blank = int(state.measurements.column("blank").sum())
    if blank > BLANK_LIMIT * n:
        raise SlideError("blank-tiles", path, f"{blank} of {n} tiles inside its tissue hold no image")
    quality = state.quality.with_tiles(*(state.measurements.in_tile_order(name, n) for name in ("blur", "ink")))
    missing = state.tissue_tiles.missing
    notes = [*state.notes, *(["missing-tiles"] if missing else [])]
    no_tissue = n == 0 and "no-tissue" not in quality.flags
    stain, pieces, mm2 = state.stain or state.stain_fit.marker, state.tissue_tiles.pieces, state.overview.mpp**2 / 1e6
    scored = score_pieces(pieces, state.measurements, stain)
    state.put("piece_results", scored)
    further = [*(["no-tissue"] if no_tissue else []), *_region_flags(state), *control_flags(pieces, scored)]
    return {
        "tissue_mm2": float(tissue.mask.sum()) * state.overview.mpp**2 / 1e6,
        "tissue_method": tissue.method,
        "tissue_disagreement": tissue.disagreement,
        "n_tiles": n,
        "region_mm2": state.tissue_tiles.region_mm2,
        "control_mm2": control_mm2(pieces, mm2),
        "flags": [*notes, *quality.flags, *further],
        "blur": quality.blur,
        "pen": quality.pen,
        "saturated": quality.saturated,
        "background": quality.background,
        "blank_tiles": blank + missing,
        "stain": stain,
        **DONE,
    }


def _region_flags(state: SlideState) -> list[str]:
    """`regions` where the tiles are restricted to regions, `no-regions` where they should be and the slide has none."""
    if state.regions is None:
        return []
    return ["no-regions" if state.regions.is_empty else "regions"]


def write_files(draft: Draft, state: SlideState) -> None:
    """Write the slide's tables and its thumbnail to the draft. Raises OSError when the disk refuses."""
    for name, table in state.tables.items():
        draft.write(name, table)
    draft.thumbnail().write_bytes(state.overview.jpeg)


# -- labels ----------------------------------------------------------------------------------------------------


def settle_labels(
    labels: LabelBook, updater: InventoryUpdater, found: DiscoveredSlides | None, bundle: Bundle | None
) -> list[str]:
    """Match labels to slides, store them, and give finished slides theirs; returns the ids of those that changed.

    found: the slides of the scan folder; None in a run that watches it, which goes on without labels that are not
    clear.  Raises InputError for a label of the sheet that could mean two slides, before anything is stored.
    """
    if found is not None:
        updater.register(found)
        labels.check()
    if labels.is_empty:
        return []
    write_labels(updater.cohort, labels.stored_rows())
    changed = apply_labels(updater.cohort, labels, bundle)
    if changed or updater.cohort.damaged_slides():
        updater.reload_rows()
    return changed


def apply_labels(cohort: Cohort, labels: Mapping[str, Row], bundle: Bundle | None = None) -> list[str]:
    """Give committed slides the patients, stains and sub-scores of the labels; returns the slides that changed.

    A slide then has the bytes that processing it with these labels gives. Only its row and its predictions are written:
    the slide file and its pyramid are not read. Empty labels, and slides without labels, change nothing.
    Where the stain of a slide changes, its predictions by `bundle` are made again; those by other bundles are deleted,
    and `score` makes them. Cells that were measured for a marker whose DAB lies elsewhere are deleted, and the slide is
    put on the list of damaged slides, as is a slide whose tables can't be read: an ingest processes them again.
    Raises OSError when a write fails. Call it under the lock only.
    """
    current = cohort.rows(("slide_id", *LABEL_COLUMNS))
    changed, damaged = [], set()
    predictor: BundlePredictor | None = None
    for slide_id in sorted(current.keys() & labels.keys()):
        label = labels[slide_id]
        try:
            if _has_labels(cohort, current[slide_id], label):
                continue
            if bundle is not None and predictor is None:
                predictor = BundlePredictor(bundle)
            row: Row = cohort.read("slides", slide_id).to_pylist()[0]
            new = {**row, **_labelled(row, label)}
            tables, removed = _relabelled_tables(cohort, row, new, label, predictor)
            if CELLS in removed:  # measured for another marker: an ingest measures them again
                damaged.add(slide_id)
        except (OSError, pa.ArrowException):
            damaged.add(slide_id)
            continue
        cohort.add_tables(new, tables, removed)
        changed.append(slide_id)
    if damaged:
        cohort.write_damaged_slides(cohort.damaged_slides() | damaged)
    return changed


def _labelled(row: Row, label: Row) -> Row:
    """The columns of a slide's row that its label decides. A label without a patient or stain leaves them as they are.

    A patient who is stated to be unknown replaces only a word for a missing value: earlier versions took `NA` for one.
    """
    patient = label.get("patient_id") or row["patient_id"]
    if label.get("patient_unknown") and patient is not None and is_unknown_patient(patient):
        patient = None
    detail = label.get("her2_detail") if label.get("her2") is not None else row.get("her2_detail")
    return {"patient_id": patient, "stain": label.get("stain") or row["stain"], "her2_detail": detail}


def _has_labels(cohort: Cohort, row: Row, label: Row) -> bool:
    """Whether a slide has what its label states already. row: slide_id and LABEL_COLUMNS."""
    if any(row[name] != value for name, value in _labelled(row, label).items()):
        return False
    if label.get("stain") != "ihc":
        return True
    # `ihc` is also what the colours suggest: whether the labels state it shows in the predictions of the rule
    presumed = is_presumed(cohort.read(AREA_TABLE, row["slide_id"]))
    files = cohort.read("slides", row["slide_id"]).column("files")[0].as_py()
    files = [file for file in files if file["path"].startswith(f"tables/{AREA_TABLE}/")]
    return not presumed and files_match_row(cohort, {"files": files})


def _relabelled_tables(
    cohort: Cohort, row: Row, new: Row, label: Row, predictor: BundlePredictor | None
) -> tuple[dict[str, pa.Table], list[str]]:
    """A slide's tables that change with its labels, by name, and the names of those to delete.

    row, new: the slide's row before and after; new gets the flags that its controls raise with the new stain.
    predictor: None: every bundle is another one.
    """
    tables: dict[str, pa.Table] = {}
    restained, names = new["stain"] != row["stain"], tables_of(row)

    def read(name: str) -> pa.Table:
        return tables[name] if name in tables else cohort.read(name, row["slide_id"])

    if restained and "pieces" in names:
        tables["pieces"] = rescore_pieces(read("pieces"), read("tiles"), read("membrane"), new["stain"])
        new["flags"] = with_control_failed(new["flags"], tables["pieces"])
    cells_stay = marker_place(new["stain"]) == marker_place(row["stain"])
    for name in sorted(names, key=lambda name: (name != AREA_TABLE, name != CELLS_TABLE)):
        kind, _, source = name.partition("/")
        if name == AREA_TABLE and label.get("stain") is not None:
            tables[name] = read_rule_table(new, read, presumed=False)
        elif name == CELLS_TABLE and cells_stay and label.get("stain") is not None:
            tables |= both_rules(new, tables.get(AREA_TABLE), read)
        elif kind == "predictions" and restained:
            if predictor is not None and source == predictor.bundle.id:
                tables |= predict_slide(predictor, new, read)
        elif "patient_id" in schemas.table_schema(name).names:
            rows = [{**values, "patient_id": new["patient_id"]} for values in read(name).to_pylist()]
            tables[name] = pa.Table.from_pylist(rows, schemas.table_schema(name))
    stale = [name for name in names if restained and name.partition("/")[0] in ("predictions", "attention")]
    if CELLS in names and not cells_stay:
        stale.append(CELLS)
    return tables, [name for name in stale if name not in tables]
