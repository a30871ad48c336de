"""Label sheets in workbooks: XLSX through openpyxl, with the traps that spreadsheets set.

Excel keeps `001` as the number 1 with the format `000`, makes dates of `2-3` and rounds numbers of more than 15 digits;
other programs store a formula without its value. Each is mended where the file says what was
typed, and otherwise noted at the cell, so that a column that is read names the cell.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import date, datetime, time, timedelta
from io import BytesIO
from itertools import repeat, zip_longest
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError
from her2batch.store.label_sheets.cells import Cell, Grid, SheetRow, clean_text

MAX_UNPACKED = 500_000_000
"""Bytes of all parts of a workbook when unpacked. A label sheet of 100,000 rows has 50 MB."""

MAX_CELLS, MAX_ROWS = 20_000_000, 1_048_576
"""Cells of a sheet, with the empty ones before the last of a row, and rows: what a hostile file may claim."""

SAFE_DIGITS = 10**15
"""Excel stores 15 digits of a number and replaces the others by zeros."""

FORMULA = re.compile(rb"<(?:\w+:)?f[ >/]")
"""Formula of a cell in the XML of a sheet."""

OLE_MAGIC: Final = bytes.fromhex("d0cf11e0a1b11ae1")
ZIP_MAGIC: Final = b"PK\x03\x04"

XLSX_REMEDY = "save it as .xlsx (Excel workbook) or as CSV"
"""Remedy for other formats of spreadsheets."""


def is_workbook(data: bytes) -> bool:
    """Whether a file begins like a spreadsheet of any kind, or like another packed file."""
    return data.startswith((ZIP_MAGIC, OLE_MAGIC))


def read_workbook_grids(path: Path, data: bytes) -> list[tuple[str, bool, Grid]]:
    """Return the sheets of a workbook: name, whether it is visible, and its rows.

    Raises InputError for encrypted, old and foreign formats, for damaged files, and for files that unpack to more than
    MAX_UNPACKED bytes.
    """
    _check_format(path, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts that are not read, such as drawings
            return _grids(data)
    except InputError as error:
        raise InputError(error.message, path, error.remedy) from error
    except Exception as error:  # openpyxl lets errors of XML, ZIP and its own parsers through
        what = f"is damaged: it can't be read as XLSX ({type(error).__name__})"
        raise InputError(what, path, f"open it in a spreadsheet program and {XLSX_REMEDY}") from error


def _grids(data: bytes) -> list[tuple[str, bool, Grid]]:
    """Read the sheets once with the stored values; and with the formulas too, if there are any."""
    from openpyxl import load_workbook

    values = load_workbook(BytesIO(data), read_only=True, data_only=True)
    formulas = load_workbook(BytesIO(data), read_only=True) if _has_formulas(data) else None
    with closing(values), closing(formulas) if formulas is not None else nullcontext():
        grids = []
        for sheet in values.worksheets:
            rows = tuple(_rows(sheet, formulas[sheet.title] if formulas is not None else None))
            grids.append((sheet.title, sheet.sheet_state == "visible", Grid(rows, "XLSX", "row")))
        return grids


def _has_formulas(data: bytes) -> bool:
    """Whether any sheet has a formula. Reading a sheet a second time takes as long as the first time."""
    with zipfile.ZipFile(BytesIO(data)) as packed:
        sheets = [name for name in packed.namelist() if name.startswith("xl/worksheets/") and name.endswith(".xml")]
        return any(FORMULA.search(packed.read(name)) for name in sheets)


def _check_format(path: Path, data: bytes) -> None:
    if data.startswith(OLE_MAGIC):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise InputError("is protected by a password", path, "save it without the password")
        raise InputError("is a workbook of Excel 97 (.xls), which is not read", path, XLSX_REMEDY)
    try:
        with zipfile.ZipFile(BytesIO(data)) as packed:
            names = {info.filename: info.file_size for info in packed.infolist()}
            kind = packed.read("mimetype")[:100].decode("latin-1") if 0 < names.get("mimetype", 0) < 1000 else ""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"is damaged: it can't be unpacked ({error})", path, "copy it again") from error
    if "opendocument" in kind:
        raise InputError("is an OpenDocument spreadsheet (.ods), which is not read", path, XLSX_REMEDY)
    if "xl/workbook.bin" in names:
        raise InputError("is a binary workbook (.xlsb), which is not read", path, XLSX_REMEDY)
    if "xl/workbook.xml" not in names:
        raise InputError("is a packed file, but no workbook of Excel", path, XLSX_REMEDY)
    if sum(names.values()) > MAX_UNPACKED:
        what = f"unpacks to {sum(names.values()) / 1e6:,.0f} MB, more than a label sheet can have"
        raise InputError(what, path, "save the sheet with the labels as CSV")


def _rows(values: Any, formulas: Any | None) -> Iterator[SheetRow]:
    """Yield the rows of a sheet that hold anything. Both readers stream the same rows."""
    for sheet in (values, formulas):
        if sheet is not None:
            sheet.reset_dimensions()  # a wrong stated size would cut rows off, or invent a million
    sources = formulas.iter_rows() if formulas is not None else repeat(())
    n_cells = 0
    for number, (cells, with_formulas) in enumerate(zip(values.iter_rows(), sources, strict=False), start=1):
        n_cells += len(cells)
        if n_cells > MAX_CELLS or number > MAX_ROWS:
            raise InputError("has more cells than a label sheet can have", None, "save the labels as CSV")
        pairs = zip_longest(cells, with_formulas[: len(cells)])
        row = SheetRow(number, tuple(_cell(cell, source) for cell, source in pairs))
        if not row.is_blank:
            yield row


def _cell(cell: Any, source: Any) -> Cell:
    """Return a cell of a workbook.  cell: with the stored value.  source: with the formula; None if there are none."""
    value = cell.value
    if value is None:
        if (
            source is not None and source.data_type == "f" and cell.data_type != "str"
        ):  # `str`: its stored value is the empty text
            return Cell("", "is a formula whose value is not stored: open the file in Excel and save it")
        return Cell()
    if isinstance(value, bool):
        return Cell(str(value).upper())
    if isinstance(value, datetime | date | time | timedelta):
        what = "is a date: Excel makes dates of entries such as 2-3; give the column the format Text and type it again"
        return Cell(str(value).removesuffix(" 00:00:00"), what)
    if isinstance(value, int | float):
        return _number_cell(value, str(getattr(cell, "number_format", "") or ""))
    return Cell(clean_text(str(value)))


def _number_cell(value: float, form: str) -> Cell:
    """Return a number as it is shown: with the leading zeros of a format such as 000, and as a percentage."""
    shown = form.split(";")[0]
    if "%" in shown:
        return Cell(f"{round(value * 100, 6):g}%", number=True)
    if float(value).is_integer():
        if abs(value) >= SAFE_DIGITS:
            what = "is a number of more than 15 digits, of which Excel keeps 15; give the column the format Text"
            return Cell(str(int(value)), what, number=True)
        digits = str(abs(int(value)))
        if re.fullmatch(r'(?:0|"[^"]*"|\\.|[-/ ])+', shown) and "0" in shown:
            return Cell(_filled(digits, shown), number=True)
        return Cell(f"{'-' if value < 0 else ''}{digits}", number=True)
    return Cell(repr(value), number=True)


def _filled(digits: str, form: str) -> str:
    """Return digits in a format of zeros and literal text, such as 000 or \"P\"0000, from the right."""
    parts = re.findall(r'"[^"]*"|\\.|.', form)
    places = parts.count("0")
    padded = digits.rjust(places, "0")
    extra, rest = padded[: len(padded) - places], padded[len(padded) - places :]
    shown, at = [], 0
    for part in parts:
        if part == "0":
            shown.append(extra + rest[at] if at == 0 else rest[at])
            at += 1
        else:
            shown.append(part.strip('"').removeprefix("\\"))
    return "".join(shown)
