"""Reading of a label sheet: from a file to one row of understood values for each slide or patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.store.label_sheets import headers
from her2batch.store.label_sheets.cells import Grid, quote
from her2batch.store.label_sheets.rows import LabelRow, RowReader
from her2batch.store.label_sheets.text_file import read_text_grids
from her2batch.store.label_sheets.workbook import is_workbook, read_workbook_grids

MAX_BYTES = 200_000_000
"""Size of a file that is read as a label sheet."""

TABLE_MAGIC: Final = {
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a compressed file",
    b"{\\rtf": "a text of Word",
}
"""First bytes of files that people give by mistake → what they are."""


@dataclass(frozen=True)
class LabelSheet:
    """What was understood of a label sheet.

    form: kind of file, in words.  header: its columns.  line: of the header.  unit: `line` or `row`.  rows: one for
    each labelled slide or patient.  notes: what a person should know, in sentences.
    """

    path: Path
    form: str
    header: headers.Header
    line: int
    unit: str
    rows: list[LabelRow]
    notes: list[str] = field(default_factory=list)


def read_label_sheet(path: Path, columns: Mapping[str, str] | None = None, further: Sequence[str] = ()) -> LabelSheet:
    """Read a label sheet: CSV, XLSX, or a public clinical table.

    columns: our name → header, for headers with other names.  further: columns that tasks of the user's own read, as
    text.  Raises InputError with the place in the file and the remedy: for files of other formats, missing and doubled
    columns, values that are not understood or could mean two things, and two lines of one slide.
    """
    wanted = {headers.header_name(name): header for name, header in (columns or {}).items()}
    data = _read_bytes(path)
    notes: list[str] = []
    grid, header = _grid_with_header(path, data, wanted, notes)
    _check_clinical(path, header)
    positions = headers.further_positions(path, grid, header, further)
    rows = RowReader(path, grid, header, notes, positions).rows()
    line = grid.rows[header.at].line
    form = grid.form if header.form is None else f"{grid.form}: {header.form.name}"
    if line > 1 and header.form is None:
        notes.append(f"the header is {grid.unit} {line}; what stands above it is not read")
    notes += headers.unused_notes(header)
    return LabelSheet(path, form, header, line, grid.unit, rows, notes)


def read_given_sheet(path: Path | None, columns: Mapping[str, str]) -> LabelSheet | None:
    """Read a label sheet if one was given. Raises InputError as `read_label_sheet` does."""
    return read_label_sheet(path, columns) if path is not None else None


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            what = f"has {path.stat().st_size / 1e6:,.0f} MB, too many for a label sheet"
            raise InputError(what, path, "give a CSV file with one line for each slide")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "give a CSV file with a slide_id column") from error
    for magic, kind in TABLE_MAGIC.items():
        if data.startswith(magic):
            raise InputError(f"is {kind}, not a label sheet", path, "save the labels as CSV or XLSX")
    if data.lstrip()[:200].lower().startswith((b"<html", b"<!doctype", b"<?xml", b"<table")):
        raise InputError("is a web page or XML, not a label sheet", path, "open it in Excel and save it as CSV or XLSX")
    return data


def _grid_with_header(
    path: Path, data: bytes, wanted: Mapping[str, str], notes: list[str]
) -> tuple[Grid, headers.Header]:
    """Return the rows of a file and their header: the delimiter or the sheet of a workbook is the one that has one."""
    if is_workbook(data):
        return _sheet_with_header(path, read_workbook_grids(path, data), wanted, notes)
    grids = read_text_grids(path, data)
    found = [(grid, header) for grid in grids if (header := headers.find_header(path, grid, wanted)) is not None]
    if not found:
        raise headers.no_header_error(path, max(grids, key=_first_width), wanted)
    return max(found, key=lambda pair: (len(pair[1].columns), len(pair[1].ignored)))


def _first_width(grid: Grid) -> int:
    return next((len(row.cells) for row in grid.rows if not row.is_blank), 0)


def _sheet_with_header(
    path: Path, sheets: Sequence[tuple[str, bool, Grid]], wanted: Mapping[str, str], notes: list[str]
) -> tuple[Grid, headers.Header]:
    """Return the one visible sheet with labels. Raises InputError where there is none, or more than one."""
    visible = [(name, grid) for name, shown, grid in sheets if shown and grid.rows]
    found = [(name, grid, _header_if_any(path, grid, wanted)) for name, grid in visible]
    with_header = [(name, grid, header) for name, grid, header in found if header is not None]
    if len(with_header) > 1:
        names = ", ".join(quote(name) for name, _, _ in with_header)
        raise InputError(
            f"has labels in {len(with_header)} sheets: {names}", path, "keep one of them, or save it as CSV"
        )
    if not with_header:
        hidden = [name for name, shown, grid in sheets if not shown and _header_if_any(path, grid, wanted)]
        if hidden:
            what = f"has labels only in the hidden sheet {quote(hidden[0])}"
            raise InputError(what, path, "unhide it in Excel, or save it as CSV")
        empty = Grid((), "XLSX", "row")
        for _, grid in visible[:1]:
            headers.find_header(path, grid, wanted)
        raise headers.no_header_error(path, visible[0][1] if visible else empty, wanted)
    name, grid, _ = with_header[0]
    if len(sheets) > 1:
        notes.append(f"the labels are those of the sheet {quote(name)}")
    header = headers.find_header(path, grid, wanted)
    assert header is not None
    return grid, header


def _header_if_any(path: Path, grid: Grid, wanted: Mapping[str, str]) -> headers.Header | None:
    """Return the header of a sheet of a workbook; a sheet that lacks a wanted column is another table."""
    slides_only = {name: text for name, text in wanted.items() if name == "slide_id"}
    try:
        return headers.find_header(path, grid, slides_only)
    except InputError:
        return headers.Header(0, {}, {}, ())  # its error is raised when it is the only one


def _check_clinical(path: Path, header: headers.Header) -> None:
    """Raise InputError for a clinical table without labels."""
    form = header.form
    if form is None or form.has_labels or set(header.columns) - {"slide_id", "patient_id"}:
        return
    remedy = "give TCGA's clinical_patient table (biotab), or cBioPortal's data_clinical_patient.txt of brca_tcga"
    if form.molecular:
        raise InputError("lists molecular tests, one a row, and no IHC scores", path, remedy)
    if form.has_status:
        raise InputError("has the status of HER2, which is no score, and no column of scores", path, remedy)
    raise InputError(f"is a {form.name} without columns of HER2, ER or PR", path, remedy)
