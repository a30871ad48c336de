"""The page of the validation report: every section, every discordant slide, nothing that is loaded from outside."""

import re
from dataclasses import replace

import pytest

from her2batch.reports.agreement.readers import agreement_of_readers
from her2batch.reports.report_data import ReportData
from her2batch.reports.validation.comparison import Comparison
from her2batch.reports.validation.measures import Measures
from her2batch.reports.validation.validation_page import ValidationFacts, render_validation_page
from her2batch.reports.validation.verdicts import judge
from her2batch.store.validation.criteria import DEFAULT_CRITERIA, parse_criteria
from tests.reports.agreement.test_readers import label

FACTS = ValidationFacts(
    "Criteria of <b>the laboratory</b>", ("They were registered before.", "Checksum: abc."), True,
    {"versions": {"her2batch": "1"}, "algorithms": 2, "code_sha256": "c", "plan_sha256": "p", "plan_ids": ["plan"],
     "predictions": "membrane", "bundle": {"bundle.toml": "b"}, "tables": {}},
    {"name": "labels.csv", "sha256": "l"}, "h", "2026-01-01",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(report_data: ReportData, comparison: Comparison) -> str:
    """The page of a comparison in which every slide is discordant but one."""
    slides = [one._replace(predicted="3+" if one.truth != "3+" else "0") for one in comparison.slides]
    slides[0] = slides[0]._replace(predicted=slides[0].truth)
    found = Measures(replace(comparison, slides=tuple(slides)))
    data = replace(report_data, page_links={slides[1].slide_id: "v_slides/x.html"})
    verdicts = judge(parse_criteria(DEFAULT_CRITERIA), found)
    rows = [label(one.slide_id, A=one.truth, B=one.truth if k % 3 else "1+") for k, one in enumerate(slides)]
    facts = replace(FACTS, readers=tuple(agreement_of_readers(rows, {})))
    return render_validation_page(data, found, verdicts, facts)[0]


def test_sections_are_in_order_and_in_the_navigation(page: str) -> None:
    sections = re.findall(r'<section id="(\S+)" class="part"', page)
    assert sections == re.findall(r'<li><a href="#(\S+)">', page)
    assert sections[0] == "verdict"


def test_every_discordant_slide_is_shown_with_thumbnail_and_steps(page: str, comparison: Comparison) -> None:
    articles = re.findall(r'<article class="discordant">(.*?)</article>', page, re.DOTALL)
    assert len(articles) == len(comparison.slides) - 1
    assert all("data:image/jpeg" in one and "intense" in one for one in articles)
    assert sum("v_slides/x.html" in one for one in articles) == 1


def test_names_are_escaped_and_nothing_is_loaded(page: str) -> None:
    assert "<b>the laboratory</b>" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:|v_slides/)', page)
    assert 'loading="lazy"' not in page


def test_verdicts_figures_and_checksums_are_there(page: str) -> None:
    assert page.count("was asked:") == 5
    assert "Agreement by site" in page
    assert "Agreement by scanner" in page
    for text in ("They were registered before.", "bundle: bundle.toml", "Slides of one patient that differ",
                 "Agreement of the readers", "A and B"):  # fmt: skip
        assert text in page
