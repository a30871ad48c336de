"""Headers of label sheets: which column holds what, by its name in any case, or as `--column NAME=HEADER` says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.store.label_sheets.cells import Grid, SheetRow, fold_text, header_key, quote
from her2batch.store.label_sheets.clinical_tables import ClinicalForm, recognise_clinical_table

SHEET_COLUMNS: Final = ("slide_id", "patient_id", "her2", "her2_detail", "ish", "er", "pr", "site", "stain", "reader")
"""Columns that a label sheet may have, by the names that are used here."""

NO_RESULT: Final = r"(?!.*(?:%|percent|prozent|ratio|quotient|cep-?17|cop(?:y|ies)))"
"""Beginning of a pattern that excludes headers of shares, ratios and numbers of copies."""

GUESSES: Final = {
    "ish": re.compile(rf"{NO_RESULT}.*(?:\b[cfsd]?ish\b|amplif)"),
    "her2": re.compile(rf"{NO_RESULT}.*(?:her-?\s?2|erbb-?2|\bih[ck]\b)"),
    "er": re.compile(r"\ber\b|o?estrogen"),
    "pr": re.compile(r"\bpg?r\b|progest"),
    "patient_id": re.compile(r"patient|pa[cz]ient|\bcase|subject|\bfall\b|\bmrn\b"),
    "slide_id": re.compile(
        r"slide|file|image|\bscan|\bwsi\b|name|präparat|schnitt|objektträger|datei|\bbild|\blame\b|fichier|archivo|"
        r"imagen|portaobjetos|vetrino|preparato"
    ),
}
"""Our name → words in other headers that may mean it. They are suggested and never used unasked."""

MAX_TITLE_ROWS = 50
"""Rows that may stand above the header."""


@dataclass(frozen=True)
class Header:
    """The header of a sheet.

    at: position of its row in the grid.  columns: our name → position of the column.  names: our name → the header as
    it is written.  ignored: headers that are not used.  form: the public table that it belongs to, if it does.
    """

    at: int
    columns: Mapping[str, int]
    names: Mapping[str, str]
    ignored: tuple[str, ...]
    form: ClinicalForm | None = None


def parse_column_options(texts: Iterable[str]) -> dict[str, str]:
    """Return our name → header from texts NAME=HEADER. Raises InputError for other texts and unknown names."""
    columns: dict[str, str] = {}
    for text in texts:
        name, equals, header = text.partition("=")
        name, header = header_name(name), header.strip()
        if not equals or not header:
            raise InputError(f"--column {text!r} is not NAME=HEADER", None, "for example --column slide_id=Filename")
        if name in columns:
            raise InputError(f"--column gives {name} twice", None, "keep one of them")
        columns[name] = header
    return columns


def header_name(text: str) -> str:
    """Return our name of a column from that of an option or a setting. Raises InputError for unknown ones."""
    known = {header_key(name): name for name in SHEET_COLUMNS}
    name = known.get(header_key(text))
    if name is None:
        raise InputError(f"labels have no column {text.strip()!r}", None, f"known: {', '.join(SHEET_COLUMNS)}")
    return name


def find_header(path: Path, grid: Grid, wanted: Mapping[str, str]) -> Header | None:
    """Return the header of a sheet: the first row that has a column of slides; None without such a row.

    wanted: our name → header, as --column says.  Raises InputError for a column that is there twice, and for a wanted
    one that is not.
    """
    comments = 0
    for at, row in enumerate(grid.rows[:MAX_TITLE_ROWS]):
        if row.cells and row.cells[0].text.startswith("#"):
            comments += 1
            continue
        texts = [cell.text for cell in row.cells]
        form = recognise_clinical_table(texts, comments > 0)
        keys = [header_key(text) for text in texts]
        slides = wanted.get("slide_id")
        if form is None and header_key(slides if slides is not None else "slide_id") not in keys:
            continue
        return _map_columns(path, at, row, grid.unit, wanted, form)
    return None


def find_columns(
    path: Path, grid: Grid, known: Mapping[str, Sequence[str]], required: Collection[str]
) -> tuple[int, dict[str, int]] | None:
    """Return where the header of another kind of sheet is, and name → position of its column; None without a header.

    known: name → headers that it may have, as `header_key` gives them.  required: names that a header has; the first
    row with all of them is it.  Raises InputError for a column that is there twice: it could be either.
    """
    for at, row in enumerate(grid.rows[:MAX_TITLE_ROWS]):
        keys = [header_key(cell.text) for cell in row.cells]
        columns = {
            name: next(keys.index(header) for header in headers if header in keys)
            for name, headers in known.items()
            if set(headers) & set(keys)
        }
        if columns.keys() >= set(required):
            for name, k in columns.items():
                if keys.count(keys[k]) > 1:
                    what = f"has the column {row.cell(k).text} more than once ({grid.unit} {row.line})"
                    raise InputError(what, path, f"keep one column {name}, or rename the others")
            return at, columns
    return None


def _map_columns(
    path: Path, at: int, row: SheetRow, unit: str, wanted: Mapping[str, str], form: ClinicalForm | None
) -> Header:
    texts = [cell.text for cell in row.cells]
    keys = [header_key(text) for text in texts]
    sought = {name: (header_key(name),) for name in SHEET_COLUMNS} if form is None else dict(form.columns)
    columns: dict[str, int] = {}
    for name in SHEET_COLUMNS:
        if name in wanted:
            columns[name] = _wanted_position(path, texts, name, wanted[name], row.line, unit)
        else:
            positions = [k for key in sought.get(name, ()) for k, own in enumerate(keys) if own == key]
            plain = [k for k in positions if "%" not in texts[k]]
            positions = plain if plain or name == "her2" else positions  # a share of cells is no score
            if len(positions) > 1 and form is None:
                what = f"has the column {texts[positions[0]]} more than once ({unit} {row.line})"
                raise InputError(what, path, "keep one of these columns, or rename the others")
            if positions:
                columns[name] = positions[0]
    used = set(columns.values())
    ignored = tuple(text for k, text in enumerate(texts) if text and k not in used)
    return Header(at, columns, {name: texts[k] for name, k in columns.items()}, ignored, form)


def _wanted_position(path: Path, texts: Sequence[str], name: str, header: str, line: int, unit: str) -> int:
    """Return the position of a header that --column names: as it is written, else in any case."""
    for compare in (str.strip, header_key):
        positions = [k for k, text in enumerate(texts) if compare(text) == compare(header)]
        if len(positions) == 1:
            return positions[0]
        if positions:
            what = f"has the column {header!r} more than once ({unit} {line})"
            raise InputError(what, path, "rename all but one of these columns")
    there = ", ".join(text for text in texts if text)
    raise InputError(f"has no column {header!r}, which --column gives for {name}", path, f"its columns are: {there}")


def further_positions(path: Path, grid: Grid, header: Header, names: Iterable[str]) -> dict[str, int]:
    """Return the position of each further column, which a task of the user's own reads.

    Raises InputError for a column that is missing or there twice.
    """
    row = grid.rows[header.at]
    texts = [cell.text for cell in row.cells]
    found: dict[str, int] = {}
    for name in names:
        if not any(header_key(text) == header_key(name) for text in texts):
            there = ", ".join(text for text in texts if text)
            what = f"has no column {name}, which a task reads; its columns are: {there}"
            raise InputError(what, path, "add the column, or correct the column in the file for --tasks")
        found[name] = _wanted_position(path, texts, name, name, row.line, grid.unit)
    return found


def no_header_error(path: Path, grid: Grid, wanted: Mapping[str, str]) -> InputError:
    """Return the error of a sheet without a column of slides. It quotes the sheet's first rows as possible headers."""
    first = next((row for row in grid.rows if not row.is_blank), None)
    if first is None:
        return InputError("is empty", path, f"its first line must contain column names: {', '.join(SHEET_COLUMNS)}")
    texts = [cell.text for cell in first.cells if cell.text]
    there = ", ".join(quote(text, 30) for text in texts[:12]) + (", …" if len(texts) > 12 else "")
    column = wanted.get("slide_id", "slide_id")
    what = f"has no column {column}; {grid.unit} {first.line} has {there}"
    guesses = guess_columns(texts, GUESSES)
    if "slide_id" in guesses and "slide_id" not in wanted:
        options = [shlex.quote(f"{name}={guesses[name]}") for name in SHEET_COLUMNS if name in guesses]
        return InputError(what, path, f"say what its columns are: --column {' --column '.join(options)}")
    known = ", ".join(SHEET_COLUMNS)
    return InputError(what, path, f"name its columns {known}, or give --column slide_id=HEADER for other names")


def guess_columns(texts: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return our name → header that may mean it, for the names that any header may mean. Each header is used once."""
    left, found = list(texts), {}
    for name in (name for name in GUESSES if name in set(names)):
        for text in left:
            if GUESSES[name].search(fold_text(text)):
                found[name] = text
                left.remove(text)
                break
    return found


def unused_notes(header: Header) -> list[str]:
    """Return a sentence for each unused column that may be one which the sheet lacks."""
    if header.form is not None:
        return []
    shares = [text for text in header.ignored if "%" in text and header_key(text) == "her2"]
    notes = [f"the column {quote(text)} has shares of cells, which are no scores, and is not used" for text in shares]
    guesses = guess_columns(header.ignored, set(GUESSES) - {"slide_id"} - header.columns.keys())
    return notes + [
        f"the column {quote(text)} is not used; if it is {name}, give --column {shlex.quote(f'{name}={text}')}"
        for name, text in guesses.items()
    ]
