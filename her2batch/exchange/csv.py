"""The cohort's tables as CSV for spreadsheets: UTF-8, a header, RFC 4180; a slide's rows at a time, nothing is held.

Lists are joined with `;`, nulls are empty, numbers the shortest text that reads back as the same value, truth values
true and false. A text that a spreadsheet would run as a formula gets a quote in front (tables.privacy.neutral).
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
"""Between the values of a list."""

ROWS_PER_WRITE: Final = 2_000
"""Rows that are texts at a time: 20,000 embeddings of 1,024 values would be 2 GB of them."""

FILE_COLUMNS: Final = ("slide_id", "path", "bytes", "sha256")
"""Columns of `files`, which the slides table keeps as a list of structs: here a table of its own."""


def write_csv(path: Path, columns: Iterable[str], tables: Iterable[pa.Table]) -> None:
    """One CSV file of tables that have these columns."""
    names = list(columns)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(names)
        for table in tables:
            for start in range(0, len(table), ROWS_PER_WRITE):
                writer.writerows(text_rows(table.select(names).slice(start, ROWS_PER_WRITE)))


def text_rows(table: pa.Table) -> Iterator[tuple[str | None, ...]]:
    """A table's rows as texts."""
    return zip(*(text_column(column) for column in table.columns), strict=True)


def text_column(column: pa.ChunkedArray) -> list[str | None]:
    """A column as texts; None is an empty cell."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list_column(column)
    if pa.types.is_string(kind):
        return [None if one is None else escape_formula(one) for one in column.to_pylist()]
    texts: list[str | None] = pc.cast(column, pa.string()).to_pylist()
    return texts


def files_table(row: Mapping[str, Any]) -> pa.Table:
    """The files of one row of `slides`, as a table."""
    return pa.Table.from_pylist(
        [{"slide_id": row["slide_id"], **file} for file in row["files"]],
        pa.schema([(name, pa.int64() if name == "bytes" else pa.string()) for name in FILE_COLUMNS]),
    )


def _list_column(column: pa.ChunkedArray) -> list[str | None]:
    """A column of lists; each value is a text of its own before they are joined."""
    whole = column.combine_chunks()
    flat = text_column(pa.chunked_array([whole.flatten()]))
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_pylist()
    guard = escape_formula if pa.types.is_string(whole.type.value_type) else str
    found: list[str | None] = []
    at = 0
    for length, valid in zip(lengths, whole.is_valid().to_pylist(), strict=True):
        found.append(guard(LIST_SEPARATOR.join(one or "" for one in flat[at : at + length])) if valid else None)
        at += length
    return found
