"""Cells: missing values in every spelling, and texts that compare equal."""

import pytest

from her2batch.store.label_sheets.cells import (
    MISSING_PATIENTS,
    Cell,
    SheetRow,
    clean_text,
    fold_text,
    header_key,
    is_missing,
    quote,
)

MISSING = ["", " ", "NA", "n/a", "N.A.", "#N/A", "NaN", "None", "-", "–", "—", "?", "???", "unknown", "Unknown", "UNK",
           "[Not Available]",
           "[Unknown]", "(unknown)", "#REF!", "k.A.", "unbekannt", "not  done", "<NA>", "\u00a0", "null"]  # fmt: skip


@pytest.mark.parametrize("text", MISSING)
def test_words_for_a_missing_value_are_known(text: str) -> None:
    assert is_missing(text)


@pytest.mark.parametrize("text", ["P1", "0", "N1", "NA-12", "Nana", "001", "unknown-7", "A?"])
def test_ids_are_not_missing(text: str) -> None:
    assert not is_missing(text, MISSING_PATIENTS)


def test_anonymous_is_no_patient_but_may_be_a_site() -> None:
    assert is_missing("Anonymous", MISSING_PATIENTS)
    assert not is_missing("Anonymous")


def test_text_is_composed_and_free_of_invisible_characters() -> None:
    assert clean_text("\ufeff Mu\u0308ller\u200b\u00a01 ") == "Müller 1"
    assert fold_text("ＨＥＲ2  ³\u2212") == "her2 3-"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("'+2", "+2"),
        ("'-", "-"),
        ('="001"', "001"),
        ("'S1", "'S1"),
        ("=1+1", "=1+1"),
        ("@SUM(A1)", "@SUM(A1)"),
        ('=""', ""),
    ],
)
def test_what_guards_a_text_from_spreadsheets_is_left_out(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_headers_compare_without_case_and_separators() -> None:
    assert {header_key(text) for text in ("Slide_ID", "slide id", "SLIDE-ID", "slideid", " Slide.Id ")} == {"slideid"}


def test_a_row_has_empty_cells_beyond_its_end() -> None:
    row = SheetRow(3, (Cell("a"), Cell("")))
    assert row.cell(7) == Cell()
    assert not row.is_blank
    assert SheetRow(4, (Cell(), Cell())).is_blank


def test_long_texts_are_shortened_in_messages() -> None:
    assert len(quote("x" * 500)) < 70
