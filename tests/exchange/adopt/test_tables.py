"""Tables of public sets, whatever their columns are called and however they were saved."""

from pathlib import Path

import openpyxl
import pytest

from her2batch.errors import InputError
from her2batch.exchange.adopt.tables import read_table

COLUMNS = {"name": ("name", "case"), "status": ("status", "her2status"), "more": ("more",)}


@pytest.mark.parametrize(
    "data",
    [b"name,status\n1,Positive\n2,NA\n", b"Name;HER2 status\n1;Positive\n2;NA\n",
     "Case\tStatus\n1\tPositive\n2\t\n".encode("utf-16")],
)  # fmt: skip
def test_delimiters_encodings_and_headers(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    rows = read_table(tmp_path / "t.csv", COLUMNS, ("name", "status"))
    assert [(row["name"], row["status"], row["more"], row["line"]) for row in rows] == [
        ("1", "Positive", "", "2"), ("2", "", "", "3"),
    ]  # fmt: skip


def test_workbook_with_a_title(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["HEROHE ground truth"], [], ["Case", "Status"], [1, "Positive"]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    (row,) = read_table(tmp_path / "t.xlsx", COLUMNS, ("name", "status"))
    assert (row["name"], row["status"]) == ("1", "Positive")


def test_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"t\.csv: has no header with the columns name, status; .*name: name, case"):
        read_table(tmp_path / "t.csv", COLUMNS, ("name", "status"))
