"""Tables that public sets come with: CSV in any delimiter and encoding, and XLSX, by the names of their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.store.label_sheets.cells import Grid, is_missing
from her2batch.store.label_sheets.headers import find_columns
from her2batch.store.label_sheets.text_file import read_text_grids
from her2batch.store.label_sheets.workbook import is_workbook, read_workbook_grids

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".xlsx")

MAX_BYTES: Final = 64_000_000
"""Largest table that is read."""


def read_table(path: Path, columns: Mapping[str, tuple[str, ...]], required: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a table: our name of a column → text, "" where it is missing, with `line`.

    columns: our name → headers that it may have, as `header_key` gives them.  Raises InputError when the file is
    no table, or lacks a required column.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "check its access rights") from error
    grids = [grid for *_, grid in read_workbook_grids(path, data)] if is_workbook(data) else read_text_grids(path, data)
    for grid in grids:
        if (header := find_columns(path, grid, columns, required)) is not None:
            return _rows(grid, *header, columns)
    known = "; ".join(f"{name}: {', '.join(columns[name])}" for name in required)
    raise InputError(f"has no header with the columns {', '.join(required)}", path, f"headers that are known: {known}")


def _rows(grid: Grid, at: int, places: Mapping[str, int], names: Iterable[str]) -> list[dict[str, str]]:
    """Return the rows below the header of a grid. at: position of the header.  places: name → position of a column."""
    found = []
    for line in grid.rows[at + 1 :]:
        if not line.is_blank:
            texts = {name: line.cell(k).text for name, k in places.items()}
            values = {name: "" if is_missing(text) else text for name, text in texts.items()}
            found.append({name: values.get(name, "") for name in names} | {"line": str(line.line)})
    return found
