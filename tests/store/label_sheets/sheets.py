"""Label sheets for tests: the same rows in every form that programs write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openpyxl import Workbook

HEADER = ("slide_id", "patient_id", "her2", "ish")
ROWS = (("A", "001", "3+", ""), ("B", "002", "2+", "-"), ("C", "003", "2+", "+"), ("D", "004", "0", ""))


def write_text(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """A text file with a line for each row."""
    path.write_bytes("".join(delimiter.join(row) + "\r\n" for row in rows).encode(encoding))
    return path


def write_workbook(path: Path, rows: Sequence[Sequence[Any]], formats: dict[str, str] | None = None) -> Path:
    """A workbook with one sheet.  formats: cell, such as A2 → number format."""
    book = Workbook()
    for row in rows:
        book.active.append(list(row))
    for cell, form in (formats or {}).items():
        book.active[cell].number_format = form
    book.save(path)
    return path
