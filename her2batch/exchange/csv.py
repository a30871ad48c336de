"""Export of tables as CSV for spreadsheets: UTF-8 with a header, RFC 4180. Tables are written one slide at a time.

Lists are joined with `;`, nulls are empty cells, numbers are the shortest text that reads back as the same value,
booleans are `true` and `false`. A text that a spreadsheet would execute as a formula is prefixed with a quote
(store.pseudonyms.escape_formula).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from her2batch.store.pseudonyms import escape_formula

LIST_SEPARATOR: Final = ";"
"""Separator between the values of a list."""

ROWS_PER_WRITE: Final = 2_000
"""Number of rows converted to text at a time: 20,000 embeddings of 1,024 values would take 2 GB as text."""

FILE_COLUMNS: Final = ("slide_id", "path", "bytes", "sha256")
"""Columns of files.csv: `files` in the slides table is a list of structs, and becomes a table of its own."""


def write_csv(path: Path, columns: Iterable[str], tables: Iterable[pa.Table]) -> None:
    """Write one CSV file with the rows of all tables, which must have these columns."""
    names = list(columns)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(names)
        for table in tables:
            for start in range(0, len(table), ROWS_PER_WRITE):
                writer.writerows(text_rows(table.select(names).slice(start, ROWS_PER_WRITE)))


def text_rows(table: pa.Table) -> Iterator[tuple[str | None, ...]]:
    """Yield the rows of a table as text."""
    return zip(*(text_column(column) for column in table.columns), strict=True)


def text_column(column: pa.ChunkedArray) -> list[str | None]:
    """Return a column as text; None is an empty cell."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list_column(column)
    if pa.types.is_string(kind):
        return [None if text is None else escape_formula(text) for text in column.to_pylist()]
    texts: list[str | None] = pc.cast(column, pa.string()).to_pylist()
    return texts


def files_table(row: Mapping[str, Any]) -> pa.Table:
    """Return the files of one row of the slides table, as a table."""
    return pa.Table.from_pylist(
        [{"slide_id": row["slide_id"], **file} for file in row["files"]],
        pa.schema([(name, pa.int64() if name == "bytes" else pa.string()) for name in FILE_COLUMNS]),
    )


def _list_column(column: pa.ChunkedArray) -> list[str | None]:
    """Return a column of lists as text. Each value is converted before the values are joined."""
    lists = column.combine_chunks()
    values = text_column(pa.chunked_array([lists.flatten()]))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_pylist()
    escape = escape_formula if pa.types.is_string(lists.type.value_type) else str
    texts: list[str | None] = []
    at = 0
    for length, valid in zip(lengths, lists.is_valid().to_pylist(), strict=True):
        joined = LIST_SEPARATOR.join(value or "" for value in values[at : at + length])
        texts.append(escape(joined) if valid else None)
        at += length
    return texts
