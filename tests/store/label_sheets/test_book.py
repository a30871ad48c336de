"""The labels of an ingest: those of a sheet or those stored, and the slides that they meet as they come."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.store.label_sheets.book import LabelBook, slide_paths, stored_book
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.label_sheets.stored import write_labels
from her2batch.store.pseudonyms import Pseudonymizer

KEY = Pseudonymizer(b"k" * 32)


def book_of(tmp_path: Path, text: str, names: Pseudonymizer | None = None) -> LabelBook:
    (tmp_path / "labels.csv").write_text(text)
    sheet = read_label_sheet(tmp_path / "labels.csv")
    return LabelBook(sheet.rows, names or Pseudonymizer(), sheet)


def kept(book: LabelBook, tmp_path: Path, names: Pseudonymizer | None = None) -> LabelBook:
    """The same labels, stored in a cohort and opened again."""
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    write_labels(cohort, book.stored_rows())
    return stored_book(cohort, names or Pseudonymizer())


def test_a_label_meets_a_slide_that_comes_later(tmp_path: Path) -> None:
    book = book_of(tmp_path, "slide_id,patient_id,her2\nMüller 1,P1,3+\nS2.svs,P2,0\n")
    assert (len(book), book.is_empty) == (0, False)
    book.add_slides([("M_ller_1", "/scans/Müller 1.svs")])
    assert {slide_id: (row["patient_id"], row["her2"]) for slide_id, row in book.items()} == {"M_ller_1": ("P1", "3+")}
    again = kept(book, tmp_path)
    again.add_slides([("M_ller_1", "/scans/Müller 1.svs"), ("S2", "/scans/S2.svs")])
    assert {slide_id: row["patient_id"] for slide_id, row in again.items()} == {"M_ller_1": "P1", "S2": "P2"}
    assert [row["slide_id"] for row in again.stored_rows()] == ["M_ller_1", "S2"]


def test_labels_of_patients_are_one_row_again_when_they_were_stored(tmp_path: Path) -> None:
    book = book_of(tmp_path, "bcr_patient_barcode\ther2_ihc_score\nTCGA-A1-A0SB\t3+\nTCGA-A1-A0SC\t0\n")
    book.add_slides([("TCGA-A1-A0SB-01Z", None), ("TCGA-A1-A0SB-01A", None)])
    assert [row["slide_id"] for row in book.stored_rows()] == ["TCGA-A1-A0SB-01A", "TCGA-A1-A0SB-01Z", "TCGA-A1-A0SC"]
    again = kept(book, tmp_path)
    again.add_slides([("TCGA-A1-A0SB-01Z", None), ("TCGA-A1-A0SC-01Z", None), ("TCGA-A1-A0SB-02", None)])
    assert {slide_id: row["her2"] for slide_id, row in again.items()} == {
        "TCGA-A1-A0SB-01Z": "3+", "TCGA-A1-A0SB-02": "3+", "TCGA-A1-A0SC-01Z": "0",
    }  # fmt: skip


def test_an_ambiguous_label_is_refused_with_both_paths(tmp_path: Path) -> None:
    book = book_of(tmp_path, "slide_id,her2\n1,3+\n")
    book.add_slides([("1", "/scans/a/1.svs"), ("1-ab", "/scans/b/1.svs")])
    with pytest.raises(
        InputError, match=r"line 2: slide_id '1' could mean /scans/a/1.svs or /scans/b/1.svs; write the path"
    ):
        book.check()
    assert book.report(["1", "1-ab"]).ambiguous == [
        {"line": 2, "slide_id": "1", "paths": ["/scans/a/1.svs", "/scans/b/1.svs"]}
    ]
    assert book.report(["1", "1-ab"]).unlabelled == ["1", "1-ab"]
    (warning,) = book.report([]).warnings
    assert warning.startswith("The label 1 could mean /scans/a/1.svs or /scans/b/1.svs and was not used")


def test_an_ambiguous_label_that_was_stored_meets_no_slide_by_its_id(tmp_path: Path) -> None:
    book = book_of(tmp_path, "slide_id,her2\n1,3+\n")
    slides = [("1", "/scans/a/1.svs"), ("1-ab", "/scans/b/1.svs")]
    book.add_slides(slides)
    (stored,) = book.stored_rows()
    assert (stored["slide_id"], stored["level"], stored["name"]) == ("1 (ambiguous)", "ambiguous", "1")
    again = kept(book, tmp_path)
    again.add_slides(slides[:1])
    assert list(again) == ["1"]


def test_two_lines_of_one_slide_are_refused_with_what_they_differ_in(tmp_path: Path) -> None:
    book = book_of(tmp_path, "slide_id,her2\nS1,3+\nx/S1.svs,0\n")
    book.add_slides([("S1", "/scans/x/S1.svs")])
    with pytest.raises(InputError, match=r"lines 2 and 3 are of one slide, and they differ: her2 is 3\+ and 0"):
        book.check()
    assert len(book) == 0


@pytest.mark.parametrize("name", ["Jane Doe 1", "Jane Doe 1.svs", "x/Jane Doe 1.svs"])
def test_with_pseudonyms_no_name_is_stored_or_reported(tmp_path: Path, name: str) -> None:
    book = book_of(tmp_path, f"slide_id,patient_id,her2,site\n{name},Doe,3+,Roe\nJane Doe 2,Doe,0,Roe\n", KEY)
    slide_id = KEY.slide("Jane Doe 1")
    book.add_slides([(slide_id, "/scans/x/Jane Doe 1.svs")])
    rows = book.stored_rows()
    assert [row["slide_id"] for row in rows] == [slide_id, KEY.slide("Jane Doe 2")]
    stored = [{name: row[name] for name in ("slide_id", "name", "patient_id", "site")} for row in rows]
    assert "Doe" not in str(stored)
    assert "Roe" not in str(stored)
    report = book.report([slide_id])
    assert (report.met, report.unmet) == (1, [{"line": 3, "slide_id": None}])
    again = kept(book, tmp_path, KEY)
    again.add_slides([(slide_id, None), (KEY.slide("Jane Doe 2"), "/scans/Jane Doe 2.svs")])
    assert {one: row["patient_id"] for one, row in again.items()} == dict.fromkeys(
        [slide_id, KEY.slide("Jane Doe 2")], KEY.patient("Doe")
    )


def test_with_pseudonyms_a_label_meets_a_slide_whose_file_is_not_here(tmp_path: Path) -> None:
    book = book_of(tmp_path, "slide_id,her2\nS1.ome.tif,3+\nS2.svs,0\n", KEY)
    book.add_slides([(KEY.slide("S1.ome"), None), (KEY.slide("S2"), None)])
    assert {slide_id: row["her2"] for slide_id, row in book.items()} == {
        KEY.slide("S1.ome"): "3+",
        KEY.slide("S2"): "0",
    }


def test_with_pseudonyms_an_ambiguous_label_is_not_stored(tmp_path: Path) -> None:
    book = book_of(tmp_path, "slide_id,her2\nJane,3+\n", KEY)
    book.add_slides([(KEY.slide("Jane"), "/a/Jane.svs"), ("other", "/b/Jane.svs")])
    assert book.stored_rows() == []
    with pytest.raises(InputError, match="line 2: slide_id could mean") as refused:
        book.check()
    assert "Jane" not in str(refused.value)


def test_labels_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    import pyarrow as pa

    from her2batch.files.parquet import write_parquet

    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    names = ("slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain")
    row = dict.fromkeys(names) | {"slide_id": "S1", "patient_id": "P1", "her2": "0"}
    write_parquet(pa.Table.from_pylist([row], pa.schema([(name, pa.string()) for name in names])), cohort.labels)
    book = stored_book(cohort, Pseudonymizer())
    book.add_slides([("S1", "/scans/S1.svs")])
    assert book["S1"]["patient_id"] == "P1"
    assert book.path is None
    book.check()


def test_a_cohort_gives_the_paths_of_copies_too(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    entry = {"bytes": 1, "mtime_ns": 1, "n_files": 1, "sha256": "x", "reason": None, "slide_id": "S1"}
    cohort.write_intake(
        [{**entry, "path": "/s/S1.svs", "outcome": "slide"}, {**entry, "path": "/s/b.svs", "outcome": "duplicate"}]
    )
    assert sorted(slide_paths(cohort)) == [("S1", "/s/S1.svs"), ("S1", "/s/b.svs")]
    assert list(slide_paths(cohort, hidden=True)) == []
