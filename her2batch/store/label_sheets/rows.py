"""Rows of a label sheet: the understood values of each line, and the lines that contradict each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError
from her2batch.slides.discover import SLIDE_SUFFIXES
from her2batch.store.label_sheets import clinical_tables, values
from her2batch.store.label_sheets.cells import (
    Cell,
    Grid,
    SheetRow,
    fold_text,
    header_key,
    is_missing,
    is_shortened_number,
    is_unknown_patient,
    quote,
)
from her2batch.store.label_sheets.headers import Header
from her2batch.store.label_sheets.readers.merging import merge_readers, reader_notes
from her2batch.store.label_sheets.text_file import DELIMITERS
from her2batch.tasks import sheet_column

LabelRow = dict[str, Any]
"""A row of understood values by column of the labels, with `line`, its place in the sheet."""

LABEL_COLUMNS: Final = ("her2", "her2_detail", "ish", "er", "pr", "stain")
"""Columns that state labels, in the order in which they are understood."""

MAX_PLACES: Final = 8
"""Lines that a note names."""

SUMMARY: Final = re.compile(
    r"(?:grand |sub)?(?:totals?|totale?s?|summe|sum|gesamt(?:summe)?|insgesamt|somme|suma|count|anzahl|average)"
    r"\s*[:=]?\s*\d*|n\s*[:=]\s*\d+"
)
"""First cell of a row that counts the others."""

REMARK: Final = re.compile(r"\*|(?:notes?|legende?|bemerkung|anmerkung|remarques?|notas?|source|quelle)\b")
"""Beginning of the only cell of a row that is a remark."""

UNKNOWN_CODES: Final = re.compile(r"0+|9{3,}")
"""Numbers that often stand for a patient who is not known, and may be one."""

DOUBLE_SUFFIXES: Final = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf8", ".ome.tf2")


def strip_slide_suffix(name: str) -> str:
    """Return the name of a slide file without the suffix of its format; other endings stay: that of `case.1`."""
    folded = name.casefold()
    for suffix in (*DOUBLE_SUFFIXES, *sorted(SLIDE_SUFFIXES)):
        if folded.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


class RowReader:
    """Understands the rows of a sheet.

    notes: sentences are added to it.  further: positions of further columns, whose texts become part of the rows.
    """

    def __init__(
        self, path: Path, grid: Grid, header: Header, notes: list[str], further: Mapping[str, int] | None = None
    ) -> None:
        self._path, self._grid, self._header, self._notes = path, grid, header, notes
        self._further = further or {}
        self._undecided: list[int] = []
        self._skipped: list[int] = []
        self._short: list[int] = []
        self._level = header.form.level if header.form is not None else "slide"

    def rows(self) -> list[LabelRow]:
        """Return the understood rows. Blank lines are passed over."""
        rows = [row for line in self._grid.rows[self._header.at + 1 :] if (row := self._row(line)) is not None]
        if "reader" in self._header.columns:
            rows = merge_readers(self._path, rows, self._grid.unit)
            self._notes += reader_notes(rows, self._grid.unit)
        self._check_doubled(rows)
        self._check_leading_zeros(rows)
        self._note_similar_patients(rows)
        if self._skipped:
            self._notes.append(f"totals, remarks and repeated headers are not read ({self._places(self._skipped)})")
        if self._short:
            what = "rows end before the columns of labels, which count as empty"
            self._notes.append(f"{what} ({self._places(self._short)})")
        if self._undecided:
            what = "results that are neither positive nor negative count as missing"
            self._notes.append(f"{what} ({self._places(self._undecided)})")
        if unknown := [row["line"] for row in rows if row["patient_unknown"]]:
            what = "1 patient is" if len(unknown) == 1 else f"{len(unknown)} patients are"
            what = f"{what} not known, and each of these slides counts as a patient of its own"
            self._notes.append(f"{what} ({self._places(unknown)})")
        return rows

    def _places(self, lines: Iterable[int]) -> str:
        """Return the places of rows: line 3, lines 3, 4 and 5 more."""
        numbers = sorted(set(lines))
        more = f" and {len(numbers) - MAX_PLACES} more" if len(numbers) > MAX_PLACES else ""
        unit = f"{self._grid.unit}{'' if len(numbers) == 1 else 's'}"
        return f"{unit} {', '.join(map(str, numbers[:MAX_PLACES]))}{more}"

    def _row(self, line: SheetRow) -> LabelRow | None:
        cells = {name: line.cell(k) for name, k in self._header.columns.items()}
        if not any(cell.text or cell.problem for cell in cells.values()):
            return None
        if self._is_no_slide(line, cells["slide_id"]):
            self._skipped.append(line.line)
            return None
        name = self._name(line, cells["slide_id"])
        if self._level != "slide" and clinical_tables.SUBHEADER.match(name):
            return None
        self._check_width(line)
        for column, cell in cells.items():
            if cell.problem is not None:
                raise self._error(line, column, cell, cell.problem)
        patient = self._patient(line, cells.get("patient_id", Cell()))
        known = not is_missing(patient) and not is_unknown_patient(patient)
        row: LabelRow = {
            "line": line.line,
            "slide_id": strip_slide_suffix(name) if self._level == "slide" else name,
            "name": name,
            "level": self._level,
            "patient_id": patient if known else None,
            "patient_unknown": bool(patient) and not known,
            "site": None if is_missing(cells.get("site", Cell()).text) else cells["site"].text,
        }
        if "reader" in cells:
            row["reader"] = None if is_missing(cells["reader"].text) else cells["reader"].text
        return {**row, **self._labels(line, cells), **self._further_texts(line)}

    def _further_texts(self, line: SheetRow) -> LabelRow:
        """Return the texts of the further columns. Raises InputError for a cell that a spreadsheet has changed."""
        texts: LabelRow = {}
        for name, k in self._further.items():
            cell = line.cell(k)
            if cell.problem is not None:
                raise self._error(line, name, cell, cell.problem)
            texts[sheet_column(name)] = cell.text or None
        return texts

    def _name(self, line: SheetRow, cell: Cell) -> str:
        if cell.problem is not None:
            raise self._error(line, "slide_id", cell, cell.problem)
        if is_missing(cell.text):
            written = f" ({quote(cell.text)})" if cell.text else ""
            raise InputError(
                f"{self._grid.unit} {line.line} has no {self._header.names['slide_id'] or 'slide_id'}{written}",
                self._path,
                "fill it in or remove the line",
            )
        if not cell.number and is_shortened_number(cell.text):
            raise self._error(line, "slide_id", cell, "is a number that Excel has shortened")
        return cell.text

    def _is_no_slide(self, line: SheetRow, cell: Cell) -> bool:
        """Whether a row is a total, a remark or the header once more, as in sheets that were put together."""
        header = self._grid.rows[self._header.at]
        if [cell.text for cell in line.cells] == [cell.text for cell in header.cells]:
            return True
        others = [other.text for other in line.cells if other is not cell and other.text]
        labels = [line.cell(k).text for name, k in self._header.columns.items() if name in LABEL_COLUMNS]
        name = fold_text(cell.text)
        if SUMMARY.fullmatch(name):
            return not any(labels) or line is self._grid.rows[-1]
        return not others and REMARK.match(name) is not None

    def _patient(self, line: SheetRow, cell: Cell) -> str:
        """Return the patient of a row. Programs write the number 12 as 12.0 where a column has empty cells."""
        if not cell.number and is_shortened_number(cell.text):
            raise self._error(line, "patient_id", cell, "is a number that Excel has shortened")
        return re.sub(r"(?<=\d)[.,]0$", "", cell.text) if re.fullmatch(r"\d+[.,]0", cell.text) else cell.text

    def _check_width(self, line: SheetRow) -> None:
        """Refuse a row with more cells than columns: an unquoted delimiter in a value has moved the others."""
        width = len(self._grid.rows[self._header.at].cells)
        if any(cell.text for cell in line.cells[width:]):
            what = f"{self._grid.unit} {line.line} has {len(line.cells)} cells, but the header has {width} columns"
            raise InputError(what, self._path, "put values that contain the delimiter in quotes")
        filled = [cell.text for cell in line.cells if cell.text]
        if len(filled) == 1 and width > 1 and any(filled[0].count(mark) >= width - 1 for mark in DELIMITERS):
            what = f"{self._grid.unit} {line.line} has other delimiters than the header: {quote(filled[0])}"
            raise InputError(what, self._path, "use one delimiter in the whole file")
        last = max((k for name, k in self._header.columns.items() if name in LABEL_COLUMNS), default=0)
        if self._grid.unit == "line" and len(line.cells) <= last:
            self._short.append(line.line)

    def _labels(self, line: SheetRow, cells: Mapping[str, Cell]) -> LabelRow:
        """Return the values of the columns that state labels."""
        row: LabelRow = dict.fromkeys(LABEL_COLUMNS)
        for column in LABEL_COLUMNS:
            cell = cells.get(column, Cell())
            if not cell.text or (self._header.form is not None and is_missing(cell.text, clinical_tables.UNKNOWN)):
                continue
            try:
                row |= self._understood(line, column, cell.text, row)
            except values.UnclearValueError as error:
                raise self._error(line, column, cell, str(error)) from error
        return row

    def _understood(self, line: SheetRow, column: str, text: str, row: LabelRow) -> LabelRow:
        """Return the values that a cell states. row: those of the columns before.  Raises UnclearValueError."""
        if column == "her2":
            if "%" in self._header.names[column]:
                raise values.UnclearValueError("a share of cells is no score")
            score = values.read_her2(text)
            return {} if score is None else {"her2": score.score, "her2_detail": score.detail}
        if column == "her2_detail":
            detail = values.read_detail(text)
            if detail is None:
                return {}
            if row["her2"] not in (None, "0") or row["her2_detail"] not in (None, detail):
                raise values.UnclearValueError(f"but her2 is {row['her2_detail'] or row['her2']}")
            return {"her2": "0", "her2_detail": detail}
        if column == "stain":
            return {"stain": values.read_stain(text)}
        if "%" in self._header.names[column] and text.replace(",", ".").replace(".", "", 1).isdigit():
            text = f"{text}%"  # the unit stands in the header
        sign, undecided = values.read_sign(text, column)
        if undecided:
            self._undecided.append(line.line)
        return {column: sign}

    def _error(self, line: SheetRow, column: str, cell: Cell, why: str) -> InputError:
        header = self._header.names.get(column, column)
        what = f"{self._grid.unit} {line.line}: {header}"
        if cell.problem is not None or column in ("slide_id", "patient_id", "site"):
            return InputError(
                f"{what} {why}" + (f" ({quote(cell.text)})" if cell.text else ""), self._path, "correct the cell"
            )
        named = "" if header_key(header) == header_key(column) else f"{column} "
        what = f"{what} is {quote(cell.text)}" + (f" ({why})" if why else "")
        return InputError(what, self._path, f"{named}use one of {values.ACCEPTED[column]}".strip())

    def _check_doubled(self, rows: list[LabelRow]) -> None:
        """Refuse two lines of one slide. Files that differ in the suffix only are two slides."""
        by_id: dict[str, list[LabelRow]] = defaultdict(list)
        for row in rows:
            by_id[row["slide_id"]].append(row)
        for same in (group for group in by_id.values() if len(group) > 1):
            names = {row["name"] for row in same}
            if len(names) == len(same) and all(row["name"] != row["slide_id"] for row in same):
                for row in same:
                    row["slide_id"] = row["name"]
                continue
            raise doubled_error(self._path, same[0], same[1], self._grid.unit)

    def _note_similar_patients(self, rows: list[LabelRow]) -> None:
        """Note patients that may be one, and one that may stand for several. No name reaches a note or a log."""
        slides: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            if row["patient_id"] is not None:
                slides[row["patient_id"]].append(row["line"])
        similar: dict[str, list[str]] = defaultdict(list)
        for patient in slides:
            key = fold_text(patient).replace(" ", "")
            similar[key.lstrip("0") if key.isdigit() else key].append(patient)
        alike = [line for same in similar.values() if len(same) > 1 for patient in same for line in slides[patient]]
        if alike:
            what = "patients that differ in case, blanks or leading zeros only count as different ones"
            self._notes.append(f"{what} ({self._places(alike)})")
        codes = [line for name, own in slides.items() if len(own) > 1 and UNKNOWN_CODES.fullmatch(name) for line in own]
        if codes:
            what = "several slides are of one patient 0 or 999…; if this means unknown, write NA"
            self._notes.append(f"{what} ({self._places(codes)})")

    def _check_leading_zeros(self, rows: list[LabelRow]) -> None:
        """Refuse ids that differ in leading zeros only where a number cell has lost them."""
        for column in ("patient_id", "slide_id"):
            if column not in self._header.columns:
                continue
            k = self._header.columns[column]
            numbers = {line.line for line in self._grid.rows if line.cell(k).number}
            first: dict[int, LabelRow] = {}
            for row in rows:
                text = row[column]
                if text is None or not (text.isascii() and text.isdigit()):
                    continue
                other = first.setdefault(int(text), row)
                if other[column] != text and {row["line"], other["line"]} & numbers:
                    lines = f"{self._grid.unit}s {other['line']} and {row['line']}"
                    what = f"{lines}: {column} is {other[column]} and {text}; one of them has lost its leading zeros"
                    raise InputError(what, self._path, "give the column the format Text and type the ids again")


def doubled_error(path: Path, one: LabelRow, other: LabelRow, unit: str = "line") -> InputError:
    """Return the error of two rows of one slide or patient, with what they contradict each other in."""
    level = "slide" if one["level"] == "slide" else one["level"]
    fields = ("patient_id", "her2", "her2_detail", "ish", "er", "pr", "site", "stain")
    different = [name for name in fields if one[name] != other[name]]
    texts = [
        f"{name} is {one[name] or 'empty'} and {other[name] or 'empty'}"
        for name in different
        if name not in ("patient_id", "site")
    ]
    conflict = f", and they differ: {'; '.join(texts)}" if texts else ", and they differ" if different else ""
    lines = f"{unit}s {one['line']} and {other['line']}" if one.get("line") else "two rows"
    if one.get("readings"):
        return InputError(
            f"{lines} are of one {level}{conflict}", path, f"write its name in the same way in each {unit}"
        )
    remedy = f"keep one {unit} per {level}, or name the reader of each in a column reader"
    return InputError(f"{lines} are of one {level}{conflict}", path, remedy)
