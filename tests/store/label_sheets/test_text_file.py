"""Text files in every delimiter and encoding that spreadsheets write; lines are those of the file."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.label_sheets.text_file import read_text_grids
from tests.store.label_sheets.sheets import HEADER, ROWS, write_text

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_delimiter_and_encoding_gives_the_same_rows(tmp_path: Path, delimiter: str, encoding: str) -> None:
    names = [("Müller-1", *ROWS[0][1:]), *ROWS[1:]]
    sheet = read_label_sheet(write_text(tmp_path / "a.csv", [HEADER, *names], delimiter, encoding))
    found = [(row["slide_id"], row["patient_id"], row["her2"], row["ish"] or "") for row in sheet.rows]
    assert found == names
    assert [row["line"] for row in sheet.rows] == [2, 3, 4, 5]


def test_excels_separator_line_states_the_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=|\nslide_id|her2\nA|3+\n")
    (row,) = read_label_sheet(tmp_path / "a.csv").rows
    assert (row["line"], row["slide_id"], row["her2"]) == (3, "A", "3+")


def test_a_line_break_in_quotes_belongs_to_its_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('slide_id,remark,her2\nA,"two\nlines",3+\nB,,2++\n')
    with pytest.raises(InputError, match=r"line 4: her2 is '2\+\+'"):
        read_label_sheet(tmp_path / "a.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_read(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.csv").write_bytes(end.join(["slide_id,her2", "A,3+", "B,0"]).encode())
    assert [row["line"] for row in read_label_sheet(tmp_path / "a.csv").rows] == [2, 3]


def test_commas_in_values_do_not_make_a_semicolon_file_a_comma_file(tmp_path: Path) -> None:
    rows = [("slide_id", "remark", "her2"), ("A", "large, pale, torn", "3,0"), ("B", "a,b,c,d", "1,0")]
    sheet = read_label_sheet(write_text(tmp_path / "a.csv", rows, ";"))
    assert [row["her2"] for row in sheet.rows] == ["3+", "1+"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("slide_id,her2\nä,0\n".encode("latin-1") + "ä,1+\n".encode(), "line 2 is not UTF-8, but other lines are"),
        (b"slide_id,her2\na\x81,0\n", "line 2 is neither UTF-8 nor Windows-1252"),
        (b"slide_id,her2\na\0b,0\n", "contains NUL"),
        (b'slide_id,her2\n"a,0\n', "is not a CSV file"),
        (b"\xff\xfes\x00l\x00x", "is not a CSV file in UTF-16"),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_label_sheet(tmp_path / "a.csv")


def test_a_grid_is_made_for_each_delimiter(tmp_path: Path) -> None:
    grids = read_text_grids(tmp_path / "a.csv", b"a;b,c\n")
    assert [[cell.text for cell in grid.rows[0].cells] for grid in grids] == [
        ["a;b", "c"], ["a", "b,c"], ["a;b,c"], ["a;b,c"],
    ]  # fmt: skip


def test_vertical_bars_may_divide_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id|patient_id|her2\nA, left; deep|P1|3+\n")
    (row,) = read_label_sheet(tmp_path / "a.csv").rows
    assert (row["slide_id"], row["patient_id"], row["her2"]) == ("A, left; deep", "P1", "3+")
