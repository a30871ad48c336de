"""The report of a stress test: flips, whether they were on the review list before, and scores that fall with DAB."""

import json
import re
from pathlib import Path

import pytest

from her2batch.pipeline.stress.rescoring import ShiftResult, StressedSlide
from her2batch.reports.report_data import ReportData
from her2batch.reports.validation.stress_page import (
    StressSummary,
    dab_factor,
    falls_with_dab,
    summarize_stress,
    write_stress_report,
)
from her2batch.vision.shifts.scanner_shifts import SHIFTS


def stressed(slide_id: str, scores: dict[str, float], predicted: str = "1+") -> StressedSlide:
    shifted = tuple(
        ShiftResult(shift.name, predicted if shift.name in scores else "1+", scores.get(shift.name, 1.0))
        for shift in SHIFTS
    )
    return StressedSlide(slide_id, 5, 9, ShiftResult("unchanged", "1+", 1.0), shifted)


@pytest.fixture(scope="module")
def summary(report_data: ReportData) -> StressSummary:
    found = report_data.assessments
    names = [
        next(name for name, one in found.items() if one.result and one.review == review) for review in (True, False)
    ]
    slides = [
        stressed(names[0], {"DAB × 1.4": 2.0}, "2+"),
        stressed(names[1], {"gamma 1.2": 1.5, "DAB × 1.4": 0.9}, "2+"),
    ]
    return summarize_stress(report_data.cohort, slides, {"gone": "it <is> gone"})


def test_flips_are_counted_with_the_review_list_before(summary: StressSummary) -> None:
    assert (summary.flips, summary.flips_for_review) == (3, 1)
    by_shift = {row["shift"]: row for row in summary.shifts}
    assert (by_shift["DAB × 1.4"]["flips"], by_shift["DAB × 1.4"]["flips_for_review"]) == (2, 1)
    assert by_shift["DAB × 1.4"]["largest_change"] == 1.0
    assert by_shift["DAB × 1.4"]["mean_change"] == pytest.approx(0.45)


def test_classes_by_cells_are_counted_by_themselves(report_data: ReportData, tmp_path: Path) -> None:
    slide_id = next(name for name, one in report_data.assessments.items() if one.result and one.review)
    shifted = tuple(
        ShiftResult(shift.name, "1+", 1.0, "2+" if shift.name == "DAB × 1.4" else "1+", 1.2) for shift in SHIFTS
    )
    slide = StressedSlide(slide_id, 5, 9, ShiftResult("unchanged", "1+", 1.0, "1+", 1.1), shifted)
    found = summarize_stress(report_data.cohort, [slide], {})
    assert (found.flips, found.cell_flips, found.cell_flips_for_review, found.with_cells) == (0, 1, 1, True)
    content = json.loads(write_stress_report(report_data.cohort, found, tmp_path / "s.html", 0).read_text())
    assert content["slides"][0]["cells"] == "1+"
    assert [row["shift"] for row in content["results"] if row["cells_flipped"]] == ["DAB × 1.4"]
    assert "By the tumour cells the class changes in 1, 1 of them" in (tmp_path / "s.html").read_text()


def test_score_that_falls_with_dab_is_named(summary: StressSummary) -> None:
    assert summary.score_falls == [(summary.slides[1].slide_id, "DAB × 1.2", "DAB × 1.4")]
    assert falls_with_dab(stressed("a", {"DAB × 0.7": 1.1})) == [("DAB × 0.7", "DAB × 0.85")]
    assert falls_with_dab(stressed("a", {"DAB × 0.85": 0.9, "DAB × 0.7": 0.8})) == []
    assert [dab_factor(shift.name) for shift in SHIFTS][-4:] == [0.7, 0.85, 1.2, 1.4]
    assert all(dab_factor(shift.name) is None for shift in SHIFTS[:-4])


def test_page_and_json_have_every_slide_and_shift(
    summary: StressSummary, report_data: ReportData, tmp_path: Path
) -> None:
    path = write_stress_report(report_data.cohort, summary, tmp_path / "stress.html", 7)
    html, content = (tmp_path / "stress.html").read_text(), json.loads(path.read_text())
    assert len(content["results"]) == 2 * len(SHIFTS)
    assert (content["flips"], content["seed"]) == (3, 7)
    assert content["cell_flips"] == 0  # the slides were not scored by cells
    assert "By the tumour cells" not in html
    assert all(shift.name in html for shift in SHIFTS)
    assert "not for review" in html
    assert "The score falls with more DAB" in html
    assert "it <is> gone" not in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
