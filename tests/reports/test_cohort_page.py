"""The report: one file, every section where it has something to say, and nothing it should not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from her2batch.reports import cohort_page as module
from her2batch.reports.cohort_page import SECTIONS, Section, page, write_report
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import Part, render
from her2batch.store.cohort import Cohort
from tests.reports.conftest import EVIL, FAILED


def test_sections_stand_in_order_and_those_without_anything_are_left_out(report_html: str) -> None:
    found = re.findall(r'<section id="(\S+)" class="part"', report_html)
    assert found == [one.name for one in SECTIONS if one.name != "run"]


def test_it_says_once_what_it_is_for(report_html: str) -> None:
    assert report_html.count("For research use") == 1
    assert "can't be reproduced" in report_html
    assert "about the software, not about medicine" in report_html


def test_nothing_is_loaded_and_no_name_is_markup(report_html: str) -> None:
    assert EVIL not in report_html
    assert not re.search(r'(?:src|href)="(?!#|data:|cohort_slides/|\.\.?/|report)', report_html)


def test_failures_come_with_their_remedies(report_html: str) -> None:
    assert "copy the slide again from the scanner" in report_html
    assert FAILED in report_html


def test_lists_hold_all_their_rows_as_data(report_html: str, material: ReportData) -> None:
    holders = re.findall(r'<script type="application/json" class="rows">(.*?)</script>', report_html)
    every = json.loads(holders[-1])
    assert [row[0] for row in every["rows"]] == list(material.rows)
    shared = json.loads(re.search(r'id="shared">(.*?)</script>', report_html)[1])
    assert set(shared["pictures"]) == {one for one, row in material.rows.items() if row["status"] == "done"}


def test_figures_have_names_of_their_own(material: ReportData) -> None:
    names = [one.name for one in page(material)[1]]
    assert len(names) == len(set(names))
    assert {"scores-her2-4way", "sites-her2-4way", "stages"} <= set(names)


def test_a_new_section_is_a_function_and_a_line(material: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Section("toy", "A toy", lambda found: Part(render("scores.html", figures=[])))
    monkeypatch.setattr(module, "SECTIONS", (*SECTIONS, toy))
    assert '<section id="toy" class="part"' in page(material)[0]


def test_a_large_cohort_has_pages_beside_it_those_on_lists_first(reported: Cohort, tmp_path: Path) -> None:
    found = write_report(reported, tmp_path / "r.html", pages=3)
    pages = sorted(one.stem for one in (tmp_path / "r_slides").iterdir())
    assert found.slides == len(pages) == 3
    html = (tmp_path / "r.html").read_text()
    links = json.loads(re.search(r'id="shared">(.*?)</script>', html)[1])["links"]
    assert links == {one: f"r_slides/{one}.html" for one in links}
    assert sorted(links) == pages
    listed = [slide for one in module.with_worklists(module.gather(reported)).worklists for slide in one.slides]
    assert set(pages) <= set(listed)


def test_a_small_cohort_has_its_evidence_inside(
    reported: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 100)
    found = write_report(reported, tmp_path / "r.html", pages=2)
    assert found.slides == 0
    assert not (tmp_path / "r_slides").exists()
    html = (tmp_path / "r.html").read_text()
    assert html.count('<article class="evidence"') == 2
    links = json.loads(re.search(r'id="shared">(.*?)</script>', html)[1])["links"]
    assert all(f'id="{href[1:]}"' in html for href in links.values())


def test_the_same_tables_make_the_same_report(reported: Cohort, tmp_path: Path) -> None:
    first, second = (write_report(reported, tmp_path / name / "r.html", pages=0).path for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_cohort_without_labels_or_predictions_is_a_report_too(material: ReportData) -> None:
    bare = replace(material, labels={}, calls={}, worklists=(), times=material.times.slice(0, 0))
    html, _ = page(module.with_worklists(bare))
    assert '<section id="scores"' not in html
    assert '<section id="labels"' not in html
    assert "no-method" in html
