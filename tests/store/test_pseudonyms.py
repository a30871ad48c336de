"""Slide ids, pseudonyms, and cells of CSV files that no spreadsheet runs as a formula."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.store.pseudonyms import Pseudonymizer, escape_formula, read_key, slide_id_of


@given(st.text(max_size=300))
def test_a_slide_id_is_always_a_plain_file_name(stem: str) -> None:
    name = slide_id_of(stem)
    assert 0 < len(name) <= 120
    assert name.isascii()
    assert not set(name) & set("/\\ \n\0")
    assert name[0] not in ".-"


def test_a_key_gives_stable_pseudonyms() -> None:
    names, others = Pseudonymizer(b"k" * 32), Pseudonymizer(b"o" * 32)
    assert names.slide("Jane Doe") == names.slide("Jane Doe")
    assert names.slide("Jane Doe") != others.slide("Jane Doe")
    assert "Jane" not in names.slide("Jane Doe") + names.path(Path("/scans/Jane Doe.svs")) + str(names.patient("Jane"))
    assert names.patient(None) is None


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(InputError, match="no such key file"):
        read_key(key)
    key.write_bytes(b"x" * 32)
    key.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_key(key)
    key.chmod(0o600)
    assert read_key(key) == b"x" * 32
    key.write_bytes(b"short")
    with pytest.raises(InputError, match="at least 16 bytes"):
        read_key(key)


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "  =1",
        "-cmd|' /C calc'!A0",
        "=",
        "@",
        "++",
        "＝1+1",
        "-1\n",
    ],
)
def test_formulas_are_quoted(text: str) -> None:
    assert escape_formula(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["", "-", "+", "-3", "+3", "-3.25", "-1e-05", "2+", "3+", "S1", "S-1", "a=b", "ä@b", "'=1"]
)
def test_labels_and_numbers_are_not_quoted(text: str) -> None:
    assert escape_formula(text) == text


@given(st.text(max_size=40))
def test_a_quoted_cell_is_not_quoted_again(text: str) -> None:
    assert escape_formula(escape_formula(text)) == escape_formula(text)
    assert escape_formula(text).removeprefix("'") == text.removeprefix("'")
