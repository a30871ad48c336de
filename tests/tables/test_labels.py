"""labels.csv: read as it is meant, or refused with the line and the remedy."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.tables.labels import read_labels


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_gaps_are_null_and_unknown_columns_are_left_out(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "slide_id,patient_id,her2,ish,mood\na,P1,2+,-,good\nb,P1,,,\n"))
    assert table.to_pylist()[0]["ish"] == "-"
    assert table.to_pylist()[1]["her2"] is None
    assert "mood" not in table.column_names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient,her2\nP1,0\n", "no column slide_id"),
        ("slide_id,her2\na,4+\n", "line 2: her2 is '4\\+'"),
        ("slide_id,her2\na,0\na,0\n", "more than once"),
        ("slide_id,her2\n,0\n", "line 2 has no slide_id"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_labels(write(tmp_path, text))
