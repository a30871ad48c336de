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


def notes_of(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "a.csv").write_text(text)
    return read_label_sheet(tmp_path / "a.csv").notes


@pytest.mark.parametrize("word", ["-9", "-1", "-99,0", "n.b.", "x", "nicht bekannt", "sin datos", "non renseigné"])
def test_codes_and_words_of_other_languages_may_stand_for_an_unknown_patient(tmp_path: Path, word: str) -> None:
    rows = rows_of(tmp_path, f'slide_id;patient_id;her2\na;P1;0\nb;"{word}";0\nc;"{word}";3+\n')
    assert [row["patient_id"] for row in rows] == ["P1", None, None]
    assert [row["patient_unknown"] for row in rows] == [False, True, True]


@pytest.mark.parametrize("code", ["1.2E+05", "1,23E+11", "1e+06"])
def test_patients_whose_numbers_excel_has_shortened_are_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(InputError, match=r"line 3: patient_id is a number that Excel has shortened"):
        rows_of(tmp_path, f"slide_id;patient_id;her2\na;P1;0\nb;{code};0\nc;{code};3+\n")


def test_numbers_of_patients_with_a_decimal_zero_are_whole_numbers(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "slide_id,patient_id,her2\na,12.0,0\nb,12,0\nc,1.5,0\nd,12.0.0,0\n")
    assert [row["patient_id"] for row in rows] == ["12", "12", "1.5", "12.0.0"]


@pytest.mark.parametrize("pair", [("p12", "P12"), ("P 12", "P12"), ("0012", "12")])
def test_patients_who_may_be_one_are_noted_without_their_names(tmp_path: Path, pair: tuple[str, str]) -> None:
    sheet = f"slide_id,patient_id,her2\na,{pair[0]},0\nb,Q7,0\nc,{pair[1]},0\n"
    (note,) = notes_of(tmp_path, sheet)
    assert note == "patients that differ in case, blanks or leading zeros only count as different ones (lines 2, 4)"


@pytest.mark.parametrize("code", ["0", "999", "99999"])
def test_a_number_that_often_means_unknown_is_noted_where_several_slides_have_it(tmp_path: Path, code: str) -> None:
    assert "write NA (lines 2, 3)" in notes_of(tmp_path, f"slide_id,patient_id,her2\na,{code},0\nb,{code},0\n")[0]
    assert notes_of(tmp_path, f"slide_id,patient_id,her2\na,{code},0\nb,99,0\n") == []


@pytest.mark.parametrize(
    "row",
    ["Total,2,", "Summe: 2,,", "Grand total,,2", "n = 2,,", "* scored twice,,", "Note: by two pathologists,,",
     "slide_id,patient_id,her2"],
)  # fmt: skip
def test_totals_remarks_and_repeated_headers_are_no_slides(tmp_path: Path, row: str) -> None:
    text = f"slide_id,patient_id,her2\na,P1,0\nb,P2,3+\n{row}\n"
    assert [found["slide_id"] for found in rows_of(tmp_path, text)] == ["a", "b"]
    assert notes_of(tmp_path, text) == ["totals, remarks and repeated headers are not read (line 4)"]


def test_slides_whose_names_resemble_a_total_or_a_remark_are_read(tmp_path: Path) -> None:
    text = "slide_id,patient_id,her2\nsum,P1,0\nnote,P2,3+\nsource 4,P3,1+\nlast,P4,0\n"
    assert [row["slide_id"] for row in rows_of(tmp_path, text)] == ["sum", "note", "source 4", "last"]


def test_a_line_with_another_delimiter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3 has other delimiters than the header"):
        rows_of(tmp_path, "slide_id;patient_id;her2\na;P1;0\nb,P2,3+\n")
    rows = rows_of(tmp_path, 'slide_id;patient_id;her2\na;P1;0\n"b, left";P2;3+\n')
    assert rows[1]["slide_id"] == "b, left"


def test_lines_that_end_before_the_labels_are_noted(tmp_path: Path) -> None:
    (note,) = notes_of(tmp_path, "slide_id,patient_id,her2\na,P1\nb,P2,3+\n")
    assert note == "rows end before the columns of labels, which count as empty (line 2)"
