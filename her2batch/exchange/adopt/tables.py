"""Tables that public sets come with: CSV in any delimiter and encoding, and XLSX, by the names of their columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.store.label_sheets.cells import Grid, is_missing
from her2batch.store.label_sheets.text_file import read_text_grids
from her2batch.store.label_sheets.workbook import is_workbook, read_workbook_grids

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".xlsx")

MAX_BYTES: Final = 64_000_000
"""Largest table that is read."""


def read_table(path: Path, columns: Mapping[str, tuple[str, ...]], required: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a table: our name of a column → text, "" where it is missing, with `line`.

    columns: our name → headers that it may have, in small letters and digits only.  Raises InputError when the file is
    no table, or lacks a required column.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "check its access rights") from error
    grids = [grid for *_, grid in read_workbook_grids(path, data)] if is_workbook(data) else read_text_grids(path, data)
    for grid in grids:
        if (rows := _rows(grid, columns, required)) is not None:
            return rows
    known = "; ".join(f"{name}: {', '.join(columns[name])}" for name in required)
    raise InputError(f"has no header with the columns {', '.join(required)}", path, f"headers that are known: {known}")


def _rows(grid: Grid, columns: Mapping[str, tuple[str, ...]], required: tuple[str, ...]) -> list[dict[str, str]] | None:
    """Return the rows below the header of a grid; None where it has none."""
    for at, row in enumerate(grid.rows[:20]):
        headers = [re.sub(r"[^a-z0-9]", "", cell.text.lower()) for cell in row.cells]
        places = {
            name: next(headers.index(header) for header in known if header in headers)
            for name, known in columns.items()
            if set(known) & set(headers)
        }
        if places.keys() >= set(required):
            found = []
            for line in grid.rows[at + 1 :]:
                texts = {name: line.cell(k).text for name, k in places.items()}
                if not line.is_blank:
                    values = {name: "" if is_missing(text) else text for name, text in texts.items()}
                    found.append({name: values.get(name, "") for name in columns} | {"line": str(line.line)})
            return found
    return None
