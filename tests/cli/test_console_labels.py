"""Labels on the screen fit a terminal, and name what has no counterpart."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from her2batch.cli import console_labels
from her2batch.cli.console_labels import print_labels_report, print_sheet
from her2batch.store.label_sheets.book import LabelsReport
from her2batch.store.label_sheets.overview import sheet_overview
from her2batch.store.label_sheets.reading import read_label_sheet


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console_labels, "stdout_console", lambda: console)
    return file


def test_a_sheet_fits_80_columns(screen: io.StringIO, tmp_path: Path) -> None:
    header = "slide_id,patient_id,her2,her2_detail,ish,er,pr,site,stain,an unused column with a long name,another one"
    rows = [f"a very long name of a slide {k:03d}.svs,patient-{k:05d},0,ultralow,,+,-,a site,her2" for k in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join([header, *rows]))
    print_sheet(sheet_overview(read_label_sheet(tmp_path / "labels.csv")))
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    text = " ".join(screen.getvalue().split())
    assert "60 slides with labels" in text
    assert "ultralow: 60" in text
    assert "and 40 more; --json has all" in text
    assert "not used: an unused column with a long name, another one" in text


def test_every_label_and_slide_without_a_counterpart_is_named(screen: io.StringIO) -> None:
    unmet = [{"line": 7, "slide_id": "S9"}, {"line": 8, "slide_id": None}]
    unclear = [{"line": 3, "slide_id": "1", "paths": ["/a/1.svs", "/b/1.svs"]}]
    print_labels_report(LabelsReport(5, 2, unmet, unclear, ["S4"], ["the header is line 3"]))
    assert screen.getvalue().splitlines() == [
        "labels: the header is line 3",
        "2 slides have a label",
        "2 labels meet no slide: S9 (line 7), line 8",
        "the label 1 (line 3) could mean /a/1.svs or /b/1.svs: not used",
        "1 slide has no label: S4",
    ]


def test_many_names_are_counted_on_the_screen(screen: io.StringIO) -> None:
    print_labels_report(LabelsReport(0, 0, [], [], [f"S{k}" for k in range(200)]))
    text = " ".join(screen.getvalue().split())
    assert "S49 and 150 more (--json has all)" in text


def test_without_labels_nothing_is_printed(screen: io.StringIO) -> None:
    print_labels_report(None)
    assert screen.getvalue() == ""
