"""The overview of a sheet: what was understood, and what has no counterpart in a cohort."""

import json
from pathlib import Path

from her2batch.store.label_sheets.book import LabelBook
from her2batch.store.label_sheets.overview import sheet_overview
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.pseudonyms import Pseudonymizer


def test_rows_columns_and_classes_are_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Slide ID,Patient_ID,HER2,FISH\nS1.svs,P1,ultralow,\nS2,P1,Score 2+,neg\nS3,NA,,pos\n"
    )
    overview = sheet_overview(read_label_sheet(tmp_path / "a.csv", {"ish": "FISH"}))
    assert overview["columns"] == {"slide_id": "Slide ID", "patient_id": "Patient_ID", "her2": "HER2", "ish": "FISH"}
    assert overview["classes"] == {
        "her2": {"0": 1, "2+": 1, "": 1}, "her2_detail": {"ultralow": 1, "": 2}, "ish": {"+": 1, "-": 1, "": 1},
    }  # fmt: skip
    assert overview["rows"][0] == {
        "line": 2, "slide_id": "S1", "patient_id": "P1", "her2": "0", "her2_detail": "ultralow", "ish": None,
        "er": None, "pr": None, "site": None, "stain": None,
    }  # fmt: skip
    assert (overview["patients"], overview["level"], overview["header_line"]) == (1, "slide", 1)
    assert overview["notes"] == [
        "1 patient is not known, and each of these slides counts as a patient of its own (line 4)"
    ]
    assert "met" not in overview
    json.dumps(overview)


def test_with_a_cohort_labels_and_slides_without_a_counterpart_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id,her2\nS1.svs,0\nS9,3+\n")
    sheet = read_label_sheet(tmp_path / "a.csv")
    book = LabelBook(sheet.rows, Pseudonymizer(), sheet)
    book.add_slides([("S1", "/s/S1.svs"), ("S2", "/s/S2.svs")])
    overview = sheet_overview(sheet, book)
    assert [row["slides"] for row in overview["rows"]] == [["S1"], []]
    assert (overview["met"], overview["unmet"], overview["unlabelled"]) == (1, [{"line": 3, "slide_id": "S9"}], ["S2"])
