"""Label sheets in text files: CSV with comma, semicolon or tab, in the encodings that spreadsheets write."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.store.label_sheets.cells import Cell, Grid, SheetRow, clean_text

DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}

BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
"""Byte order marks, the longer ones of the same beginning first."""

UTF8_SEQUENCE = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
"""A character of several bytes in UTF-8. As Windows-1252 it would be a run such as 'Ã¤', which nobody writes."""

SEPARATOR_LINE = re.compile(r"sep=(.)\r?(?:\n|$)", re.IGNORECASE)
"""First line by which Excel is told the delimiter."""

SAVE_AS_CSV = "save it as CSV (UTF-8) or XLSX"


def read_text_grids(path: Path, data: bytes) -> list[Grid]:
    """Read a text file with each delimiter that could be its own; the caller takes the one whose header it knows.

    A line break inside quotes belongs to its cell, and a row's line is the one on which it begins.  Raises InputError
    for bytes that are text in none of the encodings, and for quotes that fit no delimiter.
    """
    text, encoding = _decode(path, data)
    if "\0" in text:
        raise InputError("is not a CSV file: it contains NUL", path, SAVE_AS_CSV)
    skipped, delimiters = 0, list(DELIMITERS)
    if stated := SEPARATOR_LINE.match(text):
        text, skipped, delimiters = text[stated.end() :], 1, [stated[1]]
    grids, errors = [], []
    for delimiter in delimiters:
        try:
            rows = tuple(_rows(text, delimiter, skipped))
        except csv.Error as error:
            errors.append(error)
            continue
        name = DELIMITERS.get(delimiter, repr(delimiter))
        grids.append(Grid(rows, f"CSV, {name}, {encoding}"))
    if not grids:
        raise InputError(f"is not a CSV file ({errors[0]})", path, SAVE_AS_CSV) from errors[0]
    return grids


def _rows(text: str, delimiter: str, skipped: int) -> Iterator[SheetRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1 + skipped
    for cells in reader:
        yield SheetRow(line, tuple(Cell(clean_text(cell)) for cell in cells))
        line = reader.line_num + 1 + skipped


def _decode(path: Path, data: bytes) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding."""
    for mark, codec, name in BOMS:
        if data.startswith(mark):
            return _decode_as(path, data, codec, name), name
    if (unmarked := _unmarked_utf16(data)) is not None:
        return _decode_as(path, data, unmarked, "UTF-16"), "UTF-16"
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if UTF8_SEQUENCE.search(data):
            what = f"line {line} is not UTF-8, but other lines are: two encodings are mixed"
            raise InputError(what, path, SAVE_AS_CSV) from error
    try:
        return data.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"line {line} is neither UTF-8 nor Windows-1252"
        raise InputError(what, path, SAVE_AS_CSV) from error


def _decode_as(path: Path, data: bytes, codec: str, name: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        raise InputError(f"is not a CSV file in {name} ({error.reason})", path, SAVE_AS_CSV) from error


def _unmarked_utf16(data: bytes) -> str | None:
    """Return the codec of UTF-16 without a byte order mark: every second byte of Latin text is zero."""
    head = data[: min(len(data), 200) // 2 * 2]
    even, odd = head[0::2], head[1::2]
    if not head or not any(head):
        return None
    if odd.count(0) > 0.8 * len(odd) and 0 not in even:
        return "utf-16-le"
    return "utf-16-be" if even.count(0) > 0.8 * len(even) and 0 not in odd else None
