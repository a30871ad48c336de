"""Sheets with a row for each reader: one label a slide, with all readings; contradictions name file and lines."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.store.label_sheets.book import LabelBook, stored_book
from her2batch.store.label_sheets.overview import sheet_overview
from her2batch.store.label_sheets.reading import LabelSheet, read_label_sheet
from her2batch.store.label_sheets.stored import READINGS, stored_label_table, write_labels
from her2batch.store.pseudonyms import Pseudonymizer

TWO = "slide_id,patient_id,reader,her2,ish,site\n"
TWO += "S1.svs,p1,A,0,,north\nS1,,B,1+,,\nS2,p2,a,2+,-,\nS2,p2,B,3+,-,\nS3,,,0,,\n"


def sheet_of(tmp_path: Path, text: str) -> LabelSheet:
    (tmp_path / "labels.csv").write_text(text)
    return read_label_sheet(tmp_path / "labels.csv")


def test_rows_of_a_slide_become_one_with_the_labels_of_each_reader(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, TWO)
    rows = {row["slide_id"]: row for row in sheet.rows}
    assert {name: (row["her2"], row["ish"], row["patient_id"], row["site"]) for name, row in rows.items()} == {
        "S1": ("0", None, "p1", "north"), "S2": ("2+", "-", "p2", None), "S3": ("0", None, None, None),
    }  # fmt: skip
    assert [(one["reader"], one["her2"]) for one in rows["S2"][READINGS]] == [("A", "2+"), ("B", "3+")]
    assert rows["S3"][READINGS] is None
    assert sheet.notes == [
        "2 readers; 2 slides with labels of more than one",
        "no majority of the readers for her2 of 2 slides (first in line 2): the lower of the two middle classes counts",
    ]
    shown = sheet_overview(sheet)
    assert [len(row[READINGS] or ()) for row in shown["rows"]] == [2, 2, 0]
    assert "reader" not in shown["rows"][0]


def test_one_reader_of_all_slides_is_accepted_and_noted(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, "slide_id,reader,her2\nS1,A,0\nS2,A,3+\n")
    assert [row["her2"] for row in sheet.rows] == ["0", "3+"]
    assert sheet.notes == ["the column reader names one reader only: there is no agreement between readers to measure"]


def test_files_that_differ_in_the_suffix_stay_two_slides(tmp_path: Path) -> None:
    rows = sheet_of(tmp_path, "slide_id,reader,her2\nS1.svs,A,0\nS1.ndpi,A,3+\nS1.svs,B,0\n").rows
    assert [(row["slide_id"], row["her2"], len(row[READINGS])) for row in rows] == [
        ("S1.svs", "0", 2), ("S1.ndpi", "3+", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [
    ("slide_id,reader,her2\nS1,A,0\nS1,a,1+\n", "lines 2 and 3 are of one slide and one reader, and they differ: her2"),
    ("slide_id,reader,her2\nS1,A,0\nS1,A,0\n", "lines 2 and 3 are of one slide and one reader; keep one line for each"),
    ("slide_id,reader,her2\nS1,A,0\nS1,,0\n", "lines 2, 3 are of one slide, and line 3 has no reader; fill in"),
    ("slide_id,patient_id,reader,her2\nS1,p1,A,0\nS1,p2,B,0\n", "lines 2 and 3 are of one slide, and they differ in"),
    ("slide_id,stain,reader,her2\nS1,her2,A,0\nS1,ihc,B,0\n", "they differ in stain: her2 and ihc; readers may"),
    ("slide_id,her2\nS1,0\nS1,0\n", "keep one line per slide, or name the reader of each in a column reader"),
])  # fmt: skip
def test_contradictions_name_the_lines_and_the_remedy(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        sheet_of(tmp_path, text)
    assert error.value.path == tmp_path / "labels.csv"


def test_one_slide_in_two_spellings_is_refused_with_the_remedy(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, "slide_id,reader,her2\nS1,A,0\ns1,B,0\n")
    book = LabelBook(sheet.rows, Pseudonymizer(), sheet)
    book.add_slides([("S1", None)])
    with pytest.raises(InputError, match="lines 2 and 3 are of one slide; write its name in the same way in each line"):
        book.check()


@pytest.mark.parametrize("key", [None, b"k" * 32])
def test_readings_are_kept_in_the_cohort_under_the_names_that_it_stores(tmp_path: Path, key: bytes | None) -> None:
    names, sheet = Pseudonymizer(key), sheet_of(tmp_path, TWO)
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    write_labels(cohort, LabelBook(sheet.rows, names, sheet).stored_rows())
    found = stored_label_table(cohort).to_pylist()[1][READINGS]
    assert [one["her2"] for one in found] == ["2+", "3+"]
    assert [one["reader"] for one in found] == [names.reader("A"), names.reader("B")]
    assert (found[0]["reader"] == "A") == (key is None)
    write_labels(cohort, stored_book(cohort, names).stored_rows())  # a further ingest
    assert stored_label_table(cohort).to_pylist()[1][READINGS] == found


def test_labels_without_readers_are_stored_without_the_column(tmp_path: Path) -> None:
    from her2batch.files.parquet import read_parquet

    sheet = sheet_of(tmp_path, "slide_id,her2\nS1,0\n")
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    write_labels(cohort, LabelBook(sheet.rows, Pseudonymizer(), sheet).stored_rows())
    assert READINGS not in read_parquet(cohort.labels).column_names
    assert stored_label_table(cohort).to_pylist()[0][READINGS] is None
