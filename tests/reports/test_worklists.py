"""The worklist: each slide once, in the order of work, with all reasons; cases; nothing definite while ISH is open."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.assessment import assess_slide
from her2batch.method_results import DERIVED_TASKS
from her2batch.reports import slide_page, worklists
from her2batch.reports.cohort_page import scores_section, summary_section
from her2batch.reports.report_data import ReportData
from her2batch.reports.slide_page import render_evidence_sections
from her2batch.reports.theme import SortableTable
from tests.reports.conftest import FAILED
from tests.test_assessment import entry, made_predictions, prediction, slide


def with_predictions(report_data: ReportData, *predictions: dict, **labels: dict) -> ReportData:
    """Return the data with these predictions and labels instead of its own."""
    found: dict[str, list] = {}
    for row in predictions:
        found.setdefault(row["slide_id"], []).append(row)
    return replace(report_data, predictions=found, labels=labels)


def cells(table: SortableTable, name: str) -> list:
    return [row[[label for label, *_ in table.columns].index(name)] for row in table.rows]


def shown_by(table: SortableTable, name: str) -> list[str]:
    """Slides that a filter of the table shows."""
    return [table.rows[k][0] for k in dict(table.filters).get(name, [])]


def clear_slides(report_data: ReportData) -> list[str]:
    return [row["slide_id"] for row in report_data.done_rows if row["stain"] == "her2" and not row["flags"]][:3]


def test_each_slide_is_listed_once_and_those_to_review_come_first(report_data: ReportData) -> None:
    found = worklists.list_work(report_data)
    ids = cells(found, "slide")
    assert sorted(ids) == sorted(report_data.rows)
    reviews = [report_data.assessments[slide_id].review for slide_id in ids]
    assert reviews == sorted(reviews, reverse=True)
    assert ids[0] == FAILED
    weights = [report_data.assessments[slide_id].rank for slide_id in ids]
    assert weights == sorted(weights)
    for slide_id, reasons in zip(ids, cells(found, "reasons for review"), strict=True):
        message = [report_data.rows[slide_id]["error"]] if slide_id == FAILED else []
        own = [one.words for one in report_data.assessments[slide_id].reasons]
        assert [words for words, _ in reasons] == own + message


def test_filters_replace_lists(report_data: ReportData) -> None:
    a, b, c = clear_slides(report_data)
    predictions = (
        prediction("2+", slide_id=a),
        prediction("1+", slide_id=b),
        prediction("0", method="clam-sb", slide_id=b),
        prediction("0", slide_id=c, plausible=["0", "1+"], reasons=["near-10-percent"], review=True),
    )
    found = worklists.list_work(with_predictions(report_data, *predictions))
    assert shown_by(found, "ISH needed") == [a]
    assert shown_by(found, "methods differ") == [b]
    assert shown_by(found, "borderline") == shown_by(found, "0 against 1+") == [c]
    assert set(shown_by(found, "to review")) >= {a, b, c, FAILED}
    assert FAILED in shown_by(found, "no result")
    known = with_predictions(report_data, *predictions, **{a: {"her2": "2+", "ish": "-", "site": "x"}})
    assert shown_by(worklists.list_work(known), "ISH needed") == []
    assert "2+, ISH negative" in cells(worklists.list_work(known), "laboratory")


def test_er_and_pr_slides_are_other_markers_and_not_unscorable(report_data: ReportData) -> None:
    others = {slide_id for slide_id, row in report_data.rows.items() if row["stain"] in ("er", "pr")}
    found = worklists.list_work(report_data)
    assert others
    assert not others & set(shown_by(found, "no result"))
    asked = {one for one in others if report_data.rows[one]["flags"]}
    assert others & set(shown_by(found, "to review")) == asked
    by_cells = {report_data.assessments[one].task for one in others - asked}
    assert by_cells
    assert by_cells <= {"er", "pr"}
    scored = {slide_id: rows for slide_id, rows in report_data.predictions.items() if slide_id not in others}
    unscored = replace(report_data, predictions=scored)  # as without cells
    assert set(shown_by(worklists.list_work(unscored), "marker not scored")) == others


def test_a_verdict_takes_a_slide_off_the_work_and_is_shown(report_data: ReportData) -> None:
    slide_id = next(one for one, found in report_data.assessments.items() if found.review and found.main)
    verdict = entry("3+", slide_id=slide_id, predicted="0", reviewer="Dr. Who")
    decided = worklists.list_work(replace(report_data, reviews={slide_id: [verdict]}))
    assert slide_id in shown_by(decided, "decided")
    assert slide_id not in shown_by(decided, "to review")
    assert "changed to 3+, Dr. Who" in cells(decided, "verdict")


@pytest.mark.parametrize(
    ("past", "words"),
    [(timedelta(minutes=5), "< 1 h"), (timedelta(hours=30), "30 h"), (timedelta(days=3, hours=5), "3 d"), (None, None)],
)
def test_age_is_in_hours_or_days(past: timedelta | None, words: str | None) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert worklists.age_text(None if past is None else now - past, now) == words


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"her2": "0", "her2_detail": "ultralow"}, "0 (ultralow)"),
        ({"her2": "2+", "ish": "+"}, "2+, ISH positive"),
        ({"her2": None, "ish": "-"}, "ISH negative"),
        ({}, None),
    ],
)
def test_the_laboratorys_own_result_stands_beside(label: dict, words: str | None) -> None:
    assert worklists.laboratory_text(assess_slide(slide(), [prediction("0")], label)) == words


def test_classes_are_summed_up_in_one_line() -> None:
    found = [
        assess_slide(slide(), [prediction("0")]),
        assess_slide(slide(), [prediction("2+")]),
        assess_slide(slide(stain="er"), [prediction("positive", "er", "clam-sb")]),
        assess_slide(slide(stain="pr")),
        assess_slide(slide(flags=["pen"]), [prediction("3+")], None, [entry("3+", "agree")]),
        assess_slide(slide(status="failed", error_code="truncated")),
    ]
    assert worklists.distribution_text(found) == (
        "3 HER2 slides scored: 1 × 0, 1 × 2+, 1 × 3+; 1 needs ISH; 1 × ER positive; "
        "1 of markers that no method scores; 1 to review; 1 failed; 1 decided"
    )


def test_cases_are_listed_with_conflicts_first(report_data: ReportData) -> None:
    found = worklists.list_cases(report_data)
    assert {row[0]: [one[0] for one in row[3]] for row in found.rows} == {
        case.name: [row["slide_id"] for row in case.slides] for case in report_data.cases if len(case.slides) > 1
    }
    conflicts = [bool(row[4]) for row in found.rows]
    assert conflicts == sorted(conflicts, reverse=True)


def test_every_list_has_a_value_and_a_source_for_each_column(report_data: ReportData) -> None:
    for make in (*worklists.WORKLISTS, worklists.list_flagged):
        found = make(report_data)
        assert all(len(row) == len(found.columns) for row in found.rows), found.name
        assert all(source for _, _, source in found.columns), found.name


def words_of(html: str) -> set[str]:
    """Words that a reader sees: without tags, styles and the legends of figures."""
    text = re.sub(r"<svg.*?</svg>|<script.*?</script>|<[^>]+>", " ", html, flags=re.DOTALL)
    return set(re.findall(r"[a-z]+", text.lower()))


@settings(max_examples=12)
@given(made_predictions, st.lists(st.sampled_from(["pen", "blurred", "odd"]), max_size=2))
def test_no_screen_shows_a_definite_class_of_a_slide_that_is_open_for_ish(
    report_data: ReportData, rows: list[dict], flags: list[str]
) -> None:
    """Whatever the flags and probabilities: worklist, evidence page, summary and scores of one such slide."""
    slide_id = clear_slides(report_data)[-1]  # without patches, whose resolution is called high
    rows = [{**one, "slide_id": slide_id} for one in [*rows, prediction("2+", method="svm")]]
    row = {**report_data.rows[slide_id], "flags": flags}
    data = replace(
        report_data, rows={slide_id: row}, predictions={slide_id: rows}, labels={}, page_links={slide_id: "#x"}
    )
    assert data.assessments[slide_id].needs_ish
    assert data.assessments[slide_id].review
    with patch.object(slide_page, "_example_tiles", lambda *_: ([], "none")), patch.object(slide_page, "_overview_uri"):
        html = "".join([render_evidence_sections(data)[0][2], summary_section(data).html])
    shown = words_of(html) | words_of(str(worklists.list_work(data).rows))
    assert not {"negative", "positive", "high"} & shown
    scores = scores_section(data)
    assert scores is not None
    for figure in scores.figures:
        if any(task in figure.name for task in DERIVED_TASKS):
            counts = {one["class"]: one["n"] for one in figure.table.to_pylist()}
            assert sum(counts.values()) == counts["ISH decides"]
