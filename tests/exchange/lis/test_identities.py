"""Tests of identity sheets: who a slide belongs to comes from the laboratory's sheet, or not at all."""

from pathlib import Path

import pytest
from openpyxl import Workbook

from her2batch.errors import InputError
from her2batch.exchange.lis.identities import Identity, identities_for, read_identities
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.store.pseudonyms import Pseudonymizer

PLAIN = Pseudonymizer()
HEADER = "Slide ID;patient_id;Accession;Family Name;birth_date;sex\n"


def sheet(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "identities.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_sheet_from_a_spreadsheet_is_read(tmp_path: Path, encoding: str) -> None:
    path = sheet(tmp_path, HEADER + "S1.ome.tif;0012;A26-1;Müller;1960-01-02;f\nS2;0013;A26-2;;;\n", encoding)
    assert read_identities(path, PLAIN) == {
        "S1": Identity("S1", "0012", "A26-1", "A26-1", family_name="Müller", birth_date="1960-01-02", sex="F"),
        "S2": Identity("S2", "0013", "A26-2", "A26-2"),
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("S1;;A1;;;", "line 2: patient_id is empty"),
        ("S1;NA;A1;;;", "line 2: patient_id is empty"),
        ("S1;1;A1;;02.01.1960;", "line 2: birth_date is '02.01.1960'"),
        ("S1;1;A1;;;x", "line 2: sex is 'x'"),
        ("S1;1;A1;;;\nS1;2;A1;;;", "line 3: S1 has another identity above"),
        ("S1;1.2E+11;A1;;;", "line 2: patient_id: is a number that Excel has shortened"),
        ("S1;1;2,6E+07;;;", "line 2: accession: is a number that Excel has shortened"),
        ("S1;-9;A1;;;", "line 2: patient_id is empty"),
        ("S1;unknown;A1;;;", "line 2: patient_id is empty"),
        ("S1;1;A1;Smith; Jr.;1960-01-02;f", "line 2 has more cells than the header"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_identities(sheet(tmp_path, HEADER + line), PLAIN)


def test_a_sheet_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slide_id, patient_id, accession"):
        read_identities(sheet(tmp_path, "slide_id,patient_id\nS1,1\n"), PLAIN)


def test_a_doubled_column_is_refused(tmp_path: Path) -> None:
    text = "slide_id,patient_id,Patient ID,accession\nS1,1,2,A1\n"
    with pytest.raises(InputError, match="has the column patient_id more than once"):
        read_identities(sheet(tmp_path, text), PLAIN)


def test_identities_in_two_sheets_of_a_workbook_are_refused(tmp_path: Path) -> None:
    book = Workbook()
    for page in (book.active, book.create_sheet("older")):
        page.append(["slide_id", "patient_id", "accession"])
        page.append(["S1", "1", "A1"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(InputError, match="has identities in 2 sheets"):
        read_identities(tmp_path / "a.xlsx", PLAIN)


def test_a_pseudonymized_cohort_needs_its_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    names = Pseudonymizer(key.read_bytes())
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    slide_id = names.slide("S1")
    row = {"slide_id": slide_id, "status": "failed", "error_code": "no-mpp", "path": None, "flags": []}
    cohort.draft(slide_id).commit(row, None)
    path = sheet(tmp_path, HEADER + "S1.svs;1;A1;;;\n")
    with pytest.raises(InputError, match="is pseudonymized"):
        identities_for(cohort, path, None)
    assert list(identities_for(cohort, path, key)) == [slide_id]
