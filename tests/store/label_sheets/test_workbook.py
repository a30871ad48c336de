"""Workbooks: number cells, dates, formulas, hidden sheets, and formats that are refused with a remedy."""

import io
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
from openpyxl import Workbook

from her2batch.errors import InputError
from her2batch.store.label_sheets.reading import read_label_sheet
from tests.store.label_sheets.sheets import HEADER, ROWS, write_workbook


def test_text_cells_are_read_as_they_are(tmp_path: Path) -> None:
    sheet = read_label_sheet(write_workbook(tmp_path / "a.xlsx", [HEADER, *ROWS]))
    assert sheet.form == "XLSX"
    assert [(row["slide_id"], row["patient_id"], row["her2"], row["ish"] or "") for row in sheet.rows] == list(ROWS)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1, "000", "001"),
        (1, "General", "1"),
        (12, "00000", "00012"),
        (7, '"P"000', "P007"),
        (123, "0", "123"),
        (20231234, "0000-0000", "2023-1234"),
        (12345, "000", "12345"),
    ],
)
def test_a_number_is_read_as_it_is_shown(tmp_path: Path, value: int, form: str, text: str) -> None:
    path = write_workbook(tmp_path / "a.xlsx", [("slide_id", "patient_id", "her2"), ("A", value, 3)], {"B2": form})
    (row,) = read_label_sheet(path).rows
    assert (row["patient_id"], row["her2"]) == (text, "3+")


def test_a_percentage_is_read_as_one(tmp_path: Path) -> None:
    path = write_workbook(
        tmp_path / "a.xlsx", [("slide_id", "er"), ("A", 0.9), ("B", 0.005)], {"B2": "0%", "B3": "0.0%"}
    )
    assert [row["er"] for row in read_label_sheet(path).rows] == ["+", "-"]


def test_a_number_that_has_lost_its_zeros_is_refused_beside_one_that_has_not(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", [("slide_id", "patient_id"), ("A", "007"), ("B", 7)])
    with pytest.raises(
        InputError, match=r"rows 2 and 3: patient_id is 007 and 7; one of them has lost its leading zeros"
    ):
        read_label_sheet(path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("A", datetime(2024, 3, 2))], r"row 2: her2 is a date: Excel makes dates of entries such as 2-3.*2024-03-02"),
        ([("A", "=1+2")], "row 2: her2 is a formula whose value is not stored"),
        ([(1234567890123456, "3+")], "row 2: slide_id is a number of more than 15 digits"),
        ([(None, "3+")], "row 2 has no slide_id"),
        ([("A", True)], "row 2: her2 is 'TRUE'"),
        ([("A", "3+"), ("A", "2+")], r"rows 2 and 3 are of one slide, and they differ: her2 is 3\+ and 2\+"),
    ],
)
def test_what_excel_has_changed_is_refused_with_its_row(tmp_path: Path, rows: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_label_sheet(write_workbook(tmp_path / "a.xlsx", [("slide_id", "her2"), *rows]))


def test_traps_in_columns_that_are_not_read_do_not_matter(tmp_path: Path) -> None:
    path = write_workbook(
        tmp_path / "a.xlsx", [("slide_id", "seen", "her2"), ("A", datetime(2024, 3, 2), "3+"), ("B", "=1", 0)]
    )
    assert [row["her2"] for row in read_label_sheet(path).rows] == ["3+", "0"]


def test_merged_titles_may_stand_above_the_header(tmp_path: Path) -> None:
    book = Workbook()
    for row in [("HER2 cohort 2024",), (), HEADER, *ROWS, (None, None, None, None)]:
        book.active.append(list(row))
    book.active.merge_cells("A1:D1")
    book.save(tmp_path / "a.xlsx")
    sheet = read_label_sheet(tmp_path / "a.xlsx")
    assert [row["line"] for row in sheet.rows] == [4, 5, 6, 7]
    assert sheet.notes == ["the header is row 3; what stands above it is not read"]


def book_of(path: Path, *sheets: tuple[str, list, str]) -> Path:
    """A workbook with sheets of a title, rows and a state."""
    book = Workbook()
    book.remove(book.active)
    for title, rows, state in sheets:
        sheet = book.create_sheet(title)
        sheet.sheet_state = state
        for row in rows:
            sheet.append(list(row))
    book.save(path)
    return path


def test_the_sheet_with_labels_is_found_among_others(tmp_path: Path) -> None:
    labels, other = [HEADER, *ROWS], [("legend",), ("0", "none")]
    sheets = (
        ("empty", [], "visible"),
        ("legend", other, "visible"),
        ("HER2", labels, "visible"),
        ("old", labels, "hidden"),
    )
    path = book_of(tmp_path / "a.xlsx", *sheets)
    sheet = read_label_sheet(path)
    assert len(sheet.rows) == 4
    assert sheet.notes == ["the labels are those of the sheet 'HER2'"]


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (("visible", "visible"), "has labels in 2 sheets: 'S0', 'S1'"),
        (("visible", "hidden", "gone"), "hidden sheet 'S1'"),
    ],
)
def test_two_sheets_or_a_hidden_one_are_refused(tmp_path: Path, states: tuple, words: str) -> None:
    labels = [HEADER, *ROWS]
    rows = [labels if "gone" not in states or k else [("x",)] for k in range(2)]
    with pytest.raises(InputError, match=words):
        read_label_sheet(book_of(tmp_path / "a.xlsx", *((f"S{k}", rows[k], states[k]) for k in range(2))))


def test_an_empty_workbook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_label_sheet(book_of(tmp_path / "a.xlsx", ("a", [], "visible")))


def zipped(**parts: str) -> bytes:
    """A packed file with parts, whose names are written with __ for a slash and _ for a dot."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, text in parts.items():
            packed.writestr(name.replace("__", "/").replace("_", "."), text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 600, r"Excel 97 \(\.xls\).*save it as \.xlsx"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + "EncryptedPackage".encode("utf-16-le"), "password"),
        (zipped(mimetype="application/vnd.oasis.opendocument.spreadsheet"), r"OpenDocument.*save it as \.xlsx"),
        (zipped(xl__workbook_bin="x"), r"\.xlsb"),
        (zipped(a_txt="x"), "no workbook"),
        (zipped(xl__workbook_xml="<workbook/>"), "is damaged"),
        (b"PK\x03\x04 and then nothing", "is damaged"),
        (b"PAR1 and more", "is a Parquet file"),
        (b"%PDF-1.7", "is a PDF"),
        (b"\n<html><table>", "web page"),
    ],
)
def test_other_formats_are_refused_with_a_remedy(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "labels.xlsx").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_label_sheet(tmp_path / "labels.xlsx")


def changed_sheet(path: Path, old: bytes, new: bytes) -> Path:
    """The workbook with other bytes in the XML of its sheet."""
    name = "xl/worksheets/sheet1.xml"
    with zipfile.ZipFile(path) as packed:
        parts = {part: packed.read(part) for part in packed.namelist()}
    assert old in parts[name]
    parts[name] = parts[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as packed:
        for part, data in parts.items():
            packed.writestr(part, data)
    return path


def test_entities_that_multiply_are_refused(tmp_path: Path) -> None:
    entities = b"".join(b'<!ENTITY a%d "%s">' % (k, b"&a%d;" % (k - 1) * 10) for k in range(1, 10))
    path = write_workbook(tmp_path / "a.xlsx", [("slide_id", "her2"), ("A", "3+")])
    changed_sheet(path, b"<t>A</t>", b"<t>&a9;</t>")
    changed_sheet(path, b"<worksheet", b'<!DOCTYPE a [<!ENTITY a0 "ha">' + entities + b"]><worksheet")
    with pytest.raises(InputError, match="is damaged"):
        read_label_sheet(path)


def test_a_sheet_that_claims_a_million_rows_is_read_quickly(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", [HEADER, *ROWS])
    changed_sheet(path, b'<dimension ref="A1:D5"', b'<dimension ref="A1:XFD1048576"')
    assert len(read_label_sheet(path).rows) == 4
