"""Headers: names in any case, other names by --column, and clear errors for missing and doubled columns."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.label_sheets.headers import SHEET_COLUMNS, header_name, parse_column_options
from her2batch.store.label_sheets.reading import read_label_sheet


def sheet_of(tmp_path: Path, text: str, **columns: str) -> dict[str, str]:
    (tmp_path / "a.csv").write_text(text)
    return dict(read_label_sheet(tmp_path / "a.csv", columns).header.names)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.title,
        lambda name: name.replace("_", " "),
        lambda name: f" {name}\u00a0",
        lambda name: name.replace("_", "-"),
        lambda name: name.replace("_", ""),
    ],
)
def test_names_are_known_in_any_case_with_any_separator(tmp_path: Path, change: object) -> None:
    names = [change(name) for name in SHEET_COLUMNS]
    found = sheet_of(tmp_path, ",".join(names) + "\na,,,,,,,,\n")
    assert list(found) == list(SHEET_COLUMNS)


def test_options_map_other_headers(tmp_path: Path) -> None:
    found = sheet_of(tmp_path, "Filename;IHC score;her2\nA;3+;x\n", slide_id="filename", her2="IHC score")
    assert found == {"slide_id": "Filename", "her2": "IHC score"}


def test_an_option_wins_over_the_column_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id,new id,her2\nA,B,3+\n")
    sheet = read_label_sheet(tmp_path / "a.csv", {"slide_id": "new id"})
    assert [row["slide_id"] for row in sheet.rows] == ["B"]
    assert sheet.header.ignored == ("slide_id",)


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("a,b\n1,2\n", {}, r"has no column slide_id; line 1 has 'a', 'b'; .*--column slide_id=HEADER"),
        ("\n\n", {}, "is empty"),
        ("slide_id,her2,HER2\na,0,0\n", {}, r"has the column her2 more than once \(line 1\)"),
        ("slide_id,her2\na,0\n", {"ish": "FISH"}, "has no column 'FISH', which --column gives for ish; its columns"),
        ("slide_id,x,X\na,0,0\n", {"her2": " x. "}, r"has the column ' x\. ' more than once"),
        ("slide_id\na\n", {"colour": "x"}, "labels have no column 'colour'; known: slide_id"),
    ],
)
def test_missing_and_doubled_columns_are_refused(tmp_path: Path, text: str, columns: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sheet_of(tmp_path, text, **columns)


def test_doubled_columns_that_are_not_used_do_not_matter(tmp_path: Path) -> None:
    assert sheet_of(tmp_path, "slide_id,remark,remark,,\na,x,y,,\n") == {"slide_id": "slide_id"}


def test_title_rows_may_stand_above_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("HER2 study 2024;;\n;;\nslide_id;her2;\nA;3+;\n")
    sheet = read_label_sheet(tmp_path / "a.csv")
    assert ([row["line"] for row in sheet.rows], sheet.line) == ([4], 3)
    assert sheet.notes == ["the header is line 3; what stands above it is not read"]


def test_headers_that_may_be_meant_are_suggested_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Filename,Case,IHC score,FISH result,Date\nA.svs,P1,3+,,\n")
    options = (
        r"--column slide_id=Filename --column patient_id=Case --column 'her2=IHC score' --column 'ish=FISH result'"
    )
    with pytest.raises(InputError, match=options):
        read_label_sheet(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("slide_id,HER2 score,ER status,comment\nA.svs,3+,90,\n")
    sheet = read_label_sheet(tmp_path / "a.csv")
    assert [row["her2"] for row in sheet.rows] == [None]
    assert sheet.notes == [
        "the column 'HER2 score' is not used; if it is her2, give --column 'her2=HER2 score'",
        "the column 'ER status' is not used; if it is er, give --column 'er=ER status'",
    ]
    (tmp_path / "a.csv").write_text("slide_id,HER2,HER2 score,FISH date\nA.svs,3+,2,\n")
    assert [note[:28] for note in read_label_sheet(tmp_path / "a.csv").notes] == ["the column 'FISH date' is no"]


@pytest.mark.parametrize("share", ["HER2 %", "HER2 (%)", "her2_%"])
def test_a_share_of_cells_is_no_score(tmp_path: Path, share: str) -> None:
    """3 % of the cells would be taken for 3+."""
    (tmp_path / "a.csv").write_text(f"slide_id,{share},HER2\nA,3,1+\nB,90,2+\n")
    sheet = read_label_sheet(tmp_path / "a.csv")
    assert [row["her2"] for row in sheet.rows] == ["1+", "2+"]
    assert sheet.notes == [f"the column '{share}' has shares of cells, which are no scores, and is not used"]
    (tmp_path / "a.csv").write_text(f"slide_id,{share}\nA,3\n")
    assert [row["her2"] for row in read_label_sheet(tmp_path / "a.csv").rows] == [None]
    with pytest.raises(InputError, match="a share of cells is no score"):
        read_label_sheet(tmp_path / "a.csv", {"her2": share})


def test_a_result_and_its_share_may_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id,ER,ER %,PR (%)\nA,-,90,0\n")
    (row,) = read_label_sheet(tmp_path / "a.csv").rows
    assert (row["er"], row["pr"]) == ("-", "-")


def test_ratios_are_not_suggested_as_results_and_slides_are_in_other_languages(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id,ISH ratio,HER2/CEP17 ratio,HER2 copies\nA,2.3,2.3,8\n")
    assert read_label_sheet(tmp_path / "a.csv").notes == []
    for text in ("Präparat", "Lame", "Portaobjetos", "Vetrino"):
        (tmp_path / "a.csv").write_text(f"{text},Paciente,HER2\nA,P1,3+\n")
        options = f"--column '?slide_id={text}'? --column patient_id=Paciente --column her2=HER2"
        with pytest.raises(InputError, match=options):
            read_label_sheet(tmp_path / "a.csv")


def test_options_are_parsed_and_checked() -> None:
    assert parse_column_options(["slide_id=File = x", "HER2=IHC"]) == {"slide_id": "File = x", "her2": "IHC"}
    for texts, words in [
        (["slide_id"], "is not NAME=HEADER"),
        (["a=b"], "no column 'a'"),
        (["her2=a", "HER2=b"], "her2 twice"),
    ]:
        with pytest.raises(InputError, match=words):
            parse_column_options(texts)
    assert header_name("Patient ID") == "patient_id"
