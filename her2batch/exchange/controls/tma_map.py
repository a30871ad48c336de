"""The map of a tissue microarray: a CSV file with the columns row, column, case and, for several arrays, slide.

Rows may be numbers or letters (A is 1). A line without a slide holds for every slide of the scan folder.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from her2batch.errors import InputError

COLUMNS: Final = ("row", "column", "case")

REMEDY: Final = "docs/controls.md has an example of a map"


class MappedCore(NamedTuple):
    """A core of the map. row, column: from 1.  slide: id of its slide, in which * stands for any characters."""

    row: int
    column: int
    case: str
    slide: str = "*"


class ArrayMap(NamedTuple):
    """The cores of a map."""

    cores: tuple[MappedCore, ...]

    def of_slide(self, slide_id: str) -> Mapping[tuple[int, int], str]:
        """Return (row, column) → case of a slide; empty for a slide that is no array of the map."""
        own = (core for core in self.cores if fnmatchcase(slide_id.casefold(), core.slide.casefold()))
        return {(core.row, core.column): core.case for core in own}


def read_array_map(path: Path) -> ArrayMap:
    """Read a map. Raises InputError with the line and the column that cannot be used."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the map cannot be read ({error})", path, "give a CSV file in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    header = [name.strip().casefold() for name in next(reader, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        what = f"the map has no column {', '.join(missing)}"
        raise InputError(what, path, f"its first line names row, column, case and slide; {REMEDY}")
    cores: dict[tuple[str, int, int], int] = {}
    found = []
    for line, values in enumerate(reader, start=2):
        if not any(value.strip() for value in values):
            continue
        core = _read_core(path, line, dict(zip(header, (value.strip() for value in values), strict=False)))
        key = core.slide.casefold(), core.row, core.column
        if key in cores:
            what = f"line {line}: row {core.row}, column {core.column} is in line {cores[key]} too"
            raise InputError(what, path, "name each place of a slide once")
        cores[key] = line
        found.append(core)
    if not found:
        raise InputError("the map has no cores", path, REMEDY)
    return ArrayMap(tuple(found))


def _read_core(path: Path, line: int, values: Mapping[str, str]) -> MappedCore:
    """Read one line. Raises InputError."""
    row, column = (_number(path, line, name, values.get(name, "")) for name in ("row", "column"))
    case = values.get("case", "")
    if not case:
        raise InputError(f"line {line}: the core has no case", path, "name its case, or leave the line out")
    return MappedCore(row, column, case, values.get("slide") or "*")


def _number(path: Path, line: int, name: str, text: str) -> int:
    """Return a row or column: a number from 1, or a letter."""
    if re.fullmatch(r"[1-9]\d{0,2}", text):
        return int(text)
    if re.fullmatch(r"[A-Za-z]", text):
        return ord(text.upper()) - ord("A") + 1
    raise InputError(f"line {line}, {name}: {text!r} is no place", path, "use numbers from 1, or letters from A")
