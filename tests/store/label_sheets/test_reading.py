"""Reading a label sheet from a file: kinds of files, and errors that name the file."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.label_sheets.reading import read_label_sheet
from tests.store.label_sheets.sheets import HEADER, ROWS, write_text, write_workbook


def test_a_workbook_and_a_text_file_give_the_same_rows(tmp_path: Path) -> None:
    text = read_label_sheet(write_text(tmp_path / "a.csv", [HEADER, *ROWS], ";"))
    book = read_label_sheet(write_workbook(tmp_path / "a.xlsx", [HEADER, *ROWS]))
    assert text.rows == book.rows
    assert (text.form, text.unit, book.form, book.unit) == ("CSV, semicolon, UTF-8", "line", "XLSX", "row")


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "labels.csv", [HEADER, *ROWS])
    assert read_label_sheet(path).form == "XLSX"
    assert read_label_sheet(write_text(tmp_path / "labels.xls", [HEADER, *ROWS], "\t")).form == "CSV, tab, UTF-8"


def test_a_sheet_with_one_column_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id\nA\nB\n")
    assert [row["slide_id"] for row in read_label_sheet(tmp_path / "a.csv").rows] == ["A", "B"]


@pytest.mark.parametrize(("name", "words"), [("none.csv", "can't be read"), ("", "can't be read")])
def test_files_that_are_not_there_are_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_label_sheet(tmp_path / name)


def test_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(InputError, match="has 300 MB"):
        read_label_sheet(tmp_path / "a.csv")


def test_columns_may_be_named_in_any_case(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", [("File", "Score"), ("A.svs", "Score 3+")])
    (row,) = read_label_sheet(path, {"Slide ID": "file", "HER2": "Score"}).rows
    assert (row["slide_id"], row["name"], row["her2"]) == ("A", "A.svs", "3+")
