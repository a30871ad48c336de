"""Identities of slides for a laboratory information system, from the laboratory's own sheet.

File names and labels are never taken for identities: a mistyped name would send a result to another patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.store.cohort import Cohort
from her2batch.store.label_sheets.cells import (
    Grid,
    header_key,
    is_missing,
    is_shortened_number,
    is_unknown_patient,
)
from her2batch.store.label_sheets.headers import find_columns
from her2batch.store.label_sheets.rows import strip_slide_suffix
from her2batch.store.label_sheets.text_file import read_text_grids
from her2batch.store.label_sheets.workbook import is_workbook, read_workbook_grids
from her2batch.store.pseudonyms import Pseudonymizer, has_pseudonyms, read_key

REQUIRED: Final = ("slide_id", "patient_id", "accession")
"""Columns that an identity sheet needs."""

NUMBERS: Final = ("slide_id", "patient_id", "accession", "specimen", "order")
"""Columns of numbers and names, which Excel may shorten."""

SEXES: Final = ("F", "M", "O", "U")
"""Values of the column `sex` (HL7 table 0001)."""

DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Identity:
    """Whose slide it is.

    slide_id: as in the cohort.  patient_id: number of the patient (PID-3).  accession: number of the case (OBR-3).
    specimen: number of the specimen or block (SPM-2); the accession where the sheet has none.  order: number of the
    order that asked for the test (OBR-2).  authority: who assigned the patient's number.  birth_date: YYYY-MM-DD.
    """

    slide_id: str
    patient_id: str
    accession: str
    specimen: str = ""
    order: str = ""
    authority: str = ""
    family_name: str = ""
    given_name: str = ""
    birth_date: str = ""
    sex: str = ""


COLUMNS: Final = tuple(field.name for field in fields(Identity))


def identities_for(cohort: Cohort, sheet: Path, key: Path | None) -> dict[str, Identity]:
    """Read the identities of a cohort's slides: slide id → identity.

    key: key file of a pseudonymized cohort. Raises InputError for such a cohort without its key, and what
    `read_identities` raises.
    """
    if key is None and has_pseudonyms(cohort.rows(("slide_id", "path")).values()):
        what = "is pseudonymized: without its key no result can be given to a patient"
        raise InputError(what, cohort.root, "give the key file with --pseudonymize")
    return read_identities(sheet, Pseudonymizer(read_key(key) if key is not None else None))


def read_identities(path: Path, names: Pseudonymizer) -> dict[str, Identity]:
    """Read an identity sheet: slide id in the cohort → identity.

    names: with the key of a pseudonymized cohort, slide names of the sheet become the cohort's. Raises InputError with
    the line and the column for a sheet that cannot be used: unreadable, a column or value missing, a slide twice.
    """
    found: dict[str, Identity] = {}
    for line, row in _sheet_rows(path):
        for name in REQUIRED:
            if not row.get(name):
                raise InputError(f"line {line}: {name} is empty", path, "fill it in, or delete the line")
        identity = _checked(path, line, {name: row.get(name) or "" for name in COLUMNS}, names)
        if identity.slide_id in found and found[identity.slide_id] != identity:
            raise InputError(f"line {line}: {row['slide_id']} has another identity above", path, "keep one of them")
        found[identity.slide_id] = identity
    return found


def _checked(path: Path, line: int, values: Mapping[str, str], names: Pseudonymizer) -> Identity:
    if values["birth_date"] and not DATE.fullmatch(values["birth_date"]):
        raise InputError(f"line {line}: birth_date is {values['birth_date']!r}", path, "write it as YYYY-MM-DD")
    sex = values["sex"].upper()
    if sex and sex not in SEXES:
        raise InputError(f"line {line}: sex is {values['sex']!r}", path, f"use one of {', '.join(SEXES)}")
    identity = {**values, "sex": sex, "slide_id": names.slide(strip_slide_suffix(values["slide_id"]))}
    return Identity(**{**identity, "specimen": values["specimen"] or values["accession"]})


def _sheet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the values by column of every row below the header. Raises InputError without a header."""
    grid, at, columns = _grid_with_header(path)
    width = len(grid.rows[at].cells)
    for row in grid.rows[at + 1 :]:
        if row.is_blank:
            continue
        cells = {name: row.cell(k) for name, k in columns.items()}
        for name, cell in cells.items():
            shortened = name in NUMBERS and not cell.number and is_shortened_number(cell.text)
            problem = "is a number that Excel has shortened" if shortened else cell.problem
            if problem is not None:
                raise InputError(f"{grid.unit} {row.line}: {name}: {problem}", path, "write the cell as text")
        if any(cell.text for cell in row.cells[width:]):
            what = f"{grid.unit} {row.line} has more cells than the header, so that values are in wrong columns"
            raise InputError(what, path, "put values that contain the delimiter in quotes")
        texts = {name: "" if is_missing(cell.text) else cell.text for name, cell in cells.items()}
        yield row.line, texts | ({"patient_id": ""} if is_unknown_patient(texts["patient_id"]) else {})


def _grid_with_header(path: Path) -> tuple[Grid, int, dict[str, int]]:
    """Return the sheet that has a header with the required columns, the header's position, and column → position."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "give a CSV or XLSX file") from error
    if is_workbook(data):
        grids = [grid for _, visible, grid in read_workbook_grids(path, data) if visible]
    else:
        grids = read_text_grids(path, data)
    known = {name: (header_key(name),) for name in COLUMNS}
    found = [(grid, *header) for grid in grids if (header := find_columns(path, grid, known, REQUIRED)) is not None]
    if len(found) > 1:
        raise InputError(f"has identities in {len(found)} sheets", path, "keep one of them, or save it as CSV")
    if found:
        return found[0]
    raise InputError(
        f"has no header with {', '.join(REQUIRED)}", path, f"known columns: {', '.join(COLUMNS)} (docs/lis.md)"
    )
