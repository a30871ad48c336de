"""The cohort report: one file with every section that has content, and no unescaped input."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from her2batch.reports import cohort_page as module
from her2batch.reports.cohort_page import SECTIONS, Section, render_cohort_page, write_report
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, render_template
from her2batch.store.cohort import Cohort
from tests.reports.conftest import EVIL, FAILED


def test_sections_are_in_order_and_empty_ones_are_left_out(report_html: str) -> None:
    found = re.findall(r'<section id="(\S+)" class="part"', report_html)
    assert found == [
        one.name for one in SECTIONS if one.name not in ("run", "controls", "tma", "abstention", "readers")
    ]


def test_intended_use_is_stated_once(report_html: str) -> None:
    assert report_html.count("For research use") == 1
    assert "can't be reproduced" in report_html
    assert "about the software, not about medicine" in report_html


def test_no_resource_is_loaded_and_names_are_escaped(report_html: str) -> None:
    assert EVIL not in report_html
    assert not re.search(r'(?:src|href)="(?!#|data:|cohort_slides/|\.\.?/|report)', report_html)


def test_failures_are_shown_with_their_remedies(report_html: str) -> None:
    assert "copy the slide file from the scanner again" in report_html
    assert FAILED in report_html


def test_tables_contain_all_rows_as_data(report_html: str, report_data: ReportData) -> None:
    holders = re.findall(r'<script type="application/json" class="rows">(.*?)</script>', report_html)
    every = json.loads(holders[0])  # the worklist: each slide once
    assert sorted(row[0] for row in every["rows"]) == sorted(report_data.rows)
    shared = json.loads(re.search(r'id="shared">(.*?)</script>', report_html)[1])
    assert set(shared["pictures"]) == {one for one, row in report_data.rows.items() if row["status"] == "done"}


def test_figures_have_unique_names(report_data: ReportData) -> None:
    names = [one.name for one in render_cohort_page(report_data)[1]]
    assert len(names) == len(set(names))
    assert {"scores-her2-4way", "sites-her2-4way", "stages"} <= set(names)


def test_new_section_is_one_function_and_one_row(report_data: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Section("toy", "A toy", lambda data: SectionContent(render_template("scores.html", figures=[])))
    monkeypatch.setattr(module, "SECTIONS", (*SECTIONS, toy))
    assert '<section id="toy" class="part"' in render_cohort_page(report_data)[0]


def test_large_cohort_has_slide_pages_for_worklists_first(reported: Cohort, tmp_path: Path) -> None:
    found = write_report(reported, tmp_path / "r.html", pages=3)
    pages = sorted(one.stem for one in (tmp_path / "r_slides").iterdir())
    assert found.slides == len(pages) == 3
    html = (tmp_path / "r.html").read_text()
    links = json.loads(re.search(r'id="shared">(.*?)</script>', html)[1])["links"]
    assert links == {one: f"r_slides/{one}.html" for one in links}
    assert sorted(links) == pages
    listed = [
        slide for one in module.add_worklists(module.load_report_data(reported)).worklists for slide in one.slide_ids
    ]
    assert set(pages) <= set(listed)


def test_small_cohort_report_contains_the_evidence(
    reported: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SLIDES_INLINE", 100)
    found = write_report(reported, tmp_path / "r.html", pages=2)
    assert found.slides == 0
    assert not (tmp_path / "r_slides").exists()
    html = (tmp_path / "r.html").read_text()
    assert html.count('<article class="evidence"') == 2
    links = json.loads(re.search(r'id="shared">(.*?)</script>', html)[1])["links"]
    assert all(f'id="{href[1:]}"' in html for href in links.values())


def test_same_tables_give_an_identical_report(reported: Cohort, tmp_path: Path) -> None:
    first, second = (write_report(reported, tmp_path / name / "r.html", pages=0).path for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_report_works_without_labels_or_predictions(report_data: ReportData) -> None:
    bare = replace(report_data, labels={}, predictions={}, worklists=(), run_times=report_data.run_times.slice(0, 0))
    html, _ = render_cohort_page(module.add_worklists(bare))
    assert '<section id="scores"' not in html
    assert '<section id="labels"' not in html
    assert "no method gave a result" in html
