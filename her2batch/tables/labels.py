"""labels.csv: what the lab knows of each slide."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.tasks import IHC, STAINS

COLUMNS = ("slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain")
ALLOWED = {
    "her2": frozenset(IHC),
    "ish": frozenset("+-"),
    "er": frozenset("+-"),
    "pr": frozenset("+-"),
    "stain": frozenset(STAINS),
}
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


def read_labels(path: Path) -> pa.Table:
    """A labels CSV: slide_id, and any of patient_id, her2 (0 … 3+), ish, er, pr (+ or -), site, stain; gaps are null.

    Raises InputError naming the file, the line and the remedy for a missing column, an unknown value, a doubled slide.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            rows = [{k.strip(): (v or "").strip() or None for k, v in row.items() if k} for row in reader]
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "give a CSV file with a slide_id column") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"is no UTF-8 CSV ({error})", path, "save it as CSV (UTF-8)") from error
    if "slide_id" not in columns:
        raise InputError("has no column slide_id", path, f"its first line must name columns of {', '.join(COLUMNS)}")
    _check(path, rows)
    return pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], SCHEMA)


def _check(path: Path, rows: list[dict[str, str | None]]) -> None:
    for line, row in enumerate(rows, start=2):
        if row.get("slide_id") is None:
            raise InputError(f"line {line} has no slide_id", path, "fill it in or remove the line")
        for column, allowed in ALLOWED.items():
            value = row.get(column)
            if value is not None and value not in allowed:
                known = ", ".join(sorted(allowed))
                raise InputError(f"line {line}: {column} is {value!r}", path, f"use one of {known}, or leave it empty")
    doubled = [name for name, count in Counter(row["slide_id"] for row in rows).items() if count > 1]
    if doubled:
        raise InputError(f"{doubled[0]} stands in it more than once", path, "keep one line a slide")
