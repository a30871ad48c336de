"""Rows: what each line states, and lines that contradict each other."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.label_sheets.rows import LabelRow, strip_slide_suffix


def rows_of(tmp_path: Path, text: str) -> list[LabelRow]:
    (tmp_path / "a.csv").write_text(text)
    return read_label_sheet(tmp_path / "a.csv").rows


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("S1.svs", "S1"),
        ("S1.SVS", "S1"),
        ("S1.ome.tif", "S1"),
        ("S1.OME.TIFF", "S1"),
        ("case.1", "case.1"),
        ("S1.mrxs", "S1"),
        ("a.b.ndpi", "a.b"),
        (".svs", ".svs"),
        ("caseA/1.svs", "caseA/1"),
        ("x.jpg", "x.jpg"),
    ],
)
def test_the_suffix_of_a_slide_file_is_left_out(name: str, bare: str) -> None:
    assert strip_slide_suffix(name) == bare


@pytest.mark.parametrize(
    "word", ["NA", "nan", "-", "unknown", "#N/A", "n/a", "?", "None", "anonymous", "[Not Available]", "k.A."]
)
def test_a_patient_who_is_not_known_is_stated_as_such(tmp_path: Path, word: str) -> None:
    rows = rows_of(tmp_path, f"slide_id,patient_id,her2\na,P1,0\nb,{word},0\nc,{word},3+\nd,,0\n")
    assert [(row["patient_id"], row["patient_unknown"]) for row in rows] == [
        ("P1", False),
        (None, True),
        (None, True),
        (None, False),
    ]
    sheet = read_label_sheet(tmp_path / "a.csv")
    assert sheet.notes == [
        "2 patients are not known, and each of these slides counts as a patient of its own (lines 3, 4)"
    ]


def test_blank_lines_and_trailing_columns_are_passed_over(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "slide_id,her2,,\nA,3+,,\n,,,\n\n   ,,\nB,0\n")
    assert [(row["line"], row["slide_id"], row["her2"]) for row in rows] == [(2, "A", "3+"), (6, "B", "0")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide_id,her2\na,2-3+\n", r"line 2: her2 is '2-3\+' \(it could mean two scores\); use one of 0, 1\+"),
        ("slide_id,her2\na,negative\n", "negative alone could be 0 or 1+"),
        ("slide_id,ish\na,maybe\n", r"line 2: ish is 'maybe'; use one of \+, -"),
        ("slide_id,stain\na,PD-L1\n", "line 2: stain is 'PD-L1'; use one of her2, er"),
        ("slide_id,her2\n,3+\n", "line 2 has no slide_id; fill it in"),
        ("slide_id,her2\n?,3+\n", r"line 2 has no slide_id \('\?'\)"),
        ("slide_id,her2\n1.23E+11,3+\n", r"line 2: slide_id is a number that Excel has shortened \('1.23E\+11'\)"),
        ("slide_id,her2\na,3,0,x\n", "line 2 has 4 cells, but the header has 2 columns; put values"),
        ("slide_id,her2\na,0\n\na,0\n", "lines 2 and 4 are of one slide; keep one line per slide"),
        ("slide_id,her2,ish\na,0,\na.svs,3+,+\n", r"lines 2 and 3 .* differ: her2 is 0 and 3\+; ish is empty and \+"),
        ("slide_id,patient_id\na,P1\na,P2\n", "lines 2 and 3 are of one slide, and they differ; keep"),
        ("slide_id,her2,her2_detail\na,1+,null\n", r"line 2: her2_detail is 'null' \(but her2 is 1\+\)"),
        ("slide_id,her2,her2_detail\na,ultralow,null\n", r"line 2: her2_detail is 'null' \(but her2 is ultralow\)"),
    ],
)
def test_a_line_that_is_not_understood_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("alone could be 0 or 1+", r"alone could be 0 or 1\+")):
        rows_of(tmp_path, text)


def test_sub_scores_may_stand_in_either_column(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "slide_id,her2,her2_detail\na,ultralow,\nb,0,null\nc,,ultralow\nd,0,\ne,0 (null),null\n")
    assert [(row["her2"], row["her2_detail"]) for row in rows] == [
        ("0", "ultralow"), ("0", "null"), ("0", "ultralow"), ("0", None), ("0", "null"),
    ]  # fmt: skip


def test_files_that_differ_in_their_suffix_only_are_two_slides(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "slide_id,her2\na.svs,0\na.ndpi,3+\nb.svs,0\n")
    assert [row["slide_id"] for row in rows] == ["a.svs", "a.ndpi", "b"]


def test_undecided_results_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id,ish\na,equivocal\nb,+\n")
    assert read_label_sheet(tmp_path / "a.csv").notes == [
        "results that are neither positive nor negative count as missing (line 2)"
    ]


def test_the_unit_of_a_percentage_may_stand_in_the_header(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "slide_id;ER %;PR\nA;90;+\nB;0,5;-\n")
    assert [(row["er"], row["pr"]) for row in rows] == [("+", "+"), ("-", "-")]


def test_leading_zeros_stay(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "slide_id,patient_id\n001,007\n01,7\n")
    assert [(row["slide_id"], row["patient_id"]) for row in rows] == [("001", "007"), ("01", "7")]
