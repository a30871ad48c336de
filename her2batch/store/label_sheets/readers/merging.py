"""Rows of a label sheet with a column `reader`: the rows of one slide become one, with the readings of all readers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError
from her2batch.store.label_sheets.cells import counted, fold_text
from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS, consensus_labels, tied_columns
from her2batch.store.pseudonyms import Pseudonymizer

Row = dict[str, Any]

OWN: Final = ("line", "slide_id", "name", "level", "reader", "patient_unknown", *READ_COLUMNS)
"""Keys of a row that need not be the same in all rows of a slide."""


def merge_readers(path: Path, rows: Sequence[Row], unit: str) -> list[Row]:
    """Return one row for each slide: the consensus of its readers, and `readings`, the labels of each of them.

    A slide with one row keeps it; its readings are None unless the row names a reader.  Columns in which readers do not
    differ, such as patient and site, may be filled in once.  Raises InputError with the lines: rows of one slide
    without a reader, one reader twice, two patients, two values of another column.
    """
    spelling: dict[str, str] = {}  # a reader has one name, however it is written
    for row in (row for row in rows if row["reader"] is not None):
        row["reader"] = spelling.setdefault(fold_text(row["reader"]), row["reader"])
    files: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["name"] != row["slide_id"]:
            files[row["slide_id"]].add(row["name"])
    by_slide: dict[str, list[Row]] = defaultdict(list)
    for row in rows:  # two files whose names differ in the suffix are two slides
        by_slide[row["name"] if len(files[row["slide_id"]]) > 1 else row["slide_id"]].append(row)
    return [_merge(path, same, unit) for same in by_slide.values()]


def _merge(path: Path, same: Sequence[Row], unit: str) -> Row:
    first = same[0]
    if len(same) > 1:
        _check_readers(path, same, unit)
    readings = [{"reader": row["reader"], **{name: row[name] for name in READ_COLUMNS}} for row in same]
    row = {name: value for name, value in first.items() if name != "reader"}
    if first["reader"] is None:
        return {**row, "readings": None}
    for name in (name for name in row if name not in OWN):
        row[name] = _common_value(path, same, name, unit)
    row["patient_unknown"] = row["patient_id"] is None and any(other["patient_unknown"] for other in same)
    return {**row, **consensus_labels(readings), "readings": readings}


def _check_readers(path: Path, same: Sequence[Row], unit: str) -> None:
    """Refuse rows of one slide without a reader, and two rows of one reader. Messages do not name a reader."""
    seen: dict[str, Row] = {}
    for row in same:
        if row["reader"] is None:
            lines = f"{unit}s {', '.join(str(other['line']) for other in same)}"
            what = f"{lines} are of one slide, and {unit} {row['line']} has no reader"
            raise InputError(what, path, f"fill in the reader, or keep one {unit} per slide")
        other = seen.setdefault(row["reader"], row)
        if other is not row:
            texts = [
                f"{name} is {other[name] or 'empty'} and {row[name] or 'empty'}"
                for name in READ_COLUMNS
                if other[name] != row[name]
            ]
            conflict = f", and they differ: {'; '.join(texts)}" if texts else ""
            what = f"{unit}s {other['line']} and {row['line']} are of one slide and one reader{conflict}"
            raise InputError(what, path, f"keep one {unit} for each slide and reader")


def _common_value(path: Path, same: Sequence[Row], name: str, unit: str) -> Any:
    """Return the value of a column in which the rows of a slide must not differ. Raises InputError."""
    given = [row for row in same if row[name] is not None]
    different = [row for row in given if row[name] != given[0][name]]
    if different:
        lines = f"{unit}s {given[0]['line']} and {different[0]['line']}"
        texts = "" if name in ("patient_id", "site") else f": {given[0][name]} and {different[0][name]}"
        what = f"{lines} are of one slide, and they differ in {name.removeprefix('column ')}{texts}"
        raise InputError(what, path, f"readers may differ in {', '.join(READ_COLUMNS)} only")
    return given[0][name] if given else None


def reader_notes(rows: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """Return what a person should know of the readers of a sheet, in sentences that name no reader."""
    read = [row for row in rows if row["readings"]]
    if not read:
        return []
    readers = {reading["reader"] for row in read for reading in row["readings"]}
    if len(readers) == 1:
        return ["the column reader names one reader only: there is no agreement between readers to measure"]
    several = [row for row in read if len(row["readings"]) > 1]
    notes = [f"{counted(len(readers), 'reader')}; {counted(len(several), 'slide')} with labels of more than one"]
    for column in READ_COLUMNS:
        if tied := [str(row["line"]) for row in read if column in tied_columns(row["readings"])]:
            then = "the lower of the two middle classes counts" if column.startswith("her2") else "the value is missing"
            slides = counted(len(tied), "slide")
            notes.append(f"no majority of the readers for {column} of {slides} (first in {unit} {tied[0]}): {then}")
    return notes


def hide_readers(readings: Sequence[Row] | None, names: Pseudonymizer) -> list[Row] | None:
    """Return readings as the cohort stores them: with pseudonyms of the readers where it has pseudonyms."""
    if readings is None:
        return None
    return [{**reading, "reader": names.reader(reading["reader"])} for reading in readings]
