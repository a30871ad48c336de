"""The map of a tissue microarray: what it may state, and what is said when it is wrong."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.exchange.controls.tma_map import read_array_map


def written(folder: Path, text: str) -> Path:
    path = folder / "map.csv"
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "row,column,case\n1,1,P1\n2,1,P2\n",
        "Row;Column;Case\nA;1;P1\nB;1;P2\n",
        "\ufeffcolumn\tcase\trow\tnote\n1\tP1\ta\tx\n\n1\tP2\tb\t\n",
    ],
)
def test_rows_are_numbers_or_letters_in_any_delimiter(tmp_path: Path, text: str) -> None:
    assert read_array_map(written(tmp_path, text)).of_slide("any") == {(1, 1): "P1", (2, 1): "P2"}


def test_lines_with_a_slide_hold_for_it_alone(tmp_path: Path) -> None:
    found = read_array_map(written(tmp_path, "slide,row,column,case\nTMA1,1,1,P1\nTMA2*,1,1,P2\n"))
    assert found.of_slide("tma1") == {(1, 1): "P1"}
    assert found.of_slide("TMA2-b") == {(1, 1): "P2"}
    assert found.of_slide("S1") == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no column row, column, case"),
        ("row,column\n1,1\n", "no column case"),
        ("row,column,case\n", "no cores"),
        ("row,column,case\n1,0,P1\n", "line 2, column: '0'"),
        ("row,column,case\n1,1,P1\nAA,1,P2\n", "line 3, row: 'AA'"),
        ("row,column,case\n1,1\n", "line 2: the core has no case"),
        ("row,column,case\n1,1,P1\n1,1,P2\n", "line 3: row 1, column 1 is in line 2 too"),
    ],
)
def test_a_wrong_map_is_an_error_that_names_the_line(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_array_map(path)
    assert named in error.value.message
    assert error.value.remedy


def test_a_map_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_array_map(tmp_path / "none.csv")
