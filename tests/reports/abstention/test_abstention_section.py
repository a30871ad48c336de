"""The section on abstention and review, from a calibrated cohort."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import InputError
from her2batch.reports.abstention.abstention_section import abstention_section, method_trades
from her2batch.reports.abstention.review_queue import queue_table, review_queue
from her2batch.reports.report_data import ReportData
from her2batch.store.cohort import Cohort
from her2batch.tasks import is_calibration
from tests.reports.abstention.conftest import with_budget


@pytest.mark.parametrize(("share", "length"), [(0.0, 0), (0.1, 5), (0.25, 14), (1.0, 56)])
def test_a_budget_cuts_the_queue_and_counts_the_errors_it_catches(
    calibrated_data: ReportData, share: float, length: int
) -> None:
    data = with_budget(calibrated_data, share)
    queue = review_queue(data)
    assert queue.length == length == len(queue_table(data, queue).rows)
    assert queue.caught >= share * queue.expected * length / max(1, share * 56) - 1e-9
    html = abstention_section(data).html
    assert f"{length} in the queue" in html
    assert "(budget)" in html


def test_the_trade_compares_with_the_rule_before_the_calibration(calibrated_data: ReportData) -> None:
    (trade,) = method_trades(calibrated_data)
    assert (trade.task, trade.method, len(trade.slides)) == ("her2-4way", "membrane", 56)
    none, sets = trade.points[0], trade.points[-1]
    assert none.error == pytest.approx(np.mean([one.wrong for one in trade.slides]))
    assert sets.reviewed == sum(len(one.plausible) > 1 for one in trade.slides)
    before = sum(one.uncalibrated == "2+" for one in trade.slides)
    assert none.ish == before - none.saved + none.added


def test_a_report_shows_how_many_of_the_known_errors_the_queue_holds(calibrated_data: ReportData) -> None:
    (trade,) = method_trades(calibrated_data)
    assert trade.points[0].errors == 2
    html = abstention_section(with_budget(calibrated_data, 1.0)).html
    assert "Of the 2 errors on the 56 labelled slides the queue holds 2." in html


def test_the_coverage_of_the_sets_stands_beside_the_promised_one(calibrated_data: ReportData) -> None:
    (trade,) = method_trades(calibrated_data)
    assert trade.promised == pytest.approx(0.9)
    assert "promised: 90 %" in abstention_section(calibrated_data).html.replace("\u00a0", " ")


def test_slides_outside_the_calibration_come_first_and_count_no_error(calibrated_data: ReportData) -> None:
    slide_id = review_queue(calibrated_data).slides[-1].slide_id
    moved = [
        {**row, "reasons": [*row["reasons"], "outside-calibration"]} if is_calibration(row["bundle"]) else row
        for row in calibrated_data.predictions[slide_id]
    ]
    data = replace(calibrated_data, predictions={**calibrated_data.predictions, slide_id: moved})
    queue = review_queue(data)
    assert (queue.slides[0].slide_id, queue.slides[0].error, queue.outside) == (slide_id, None, 1)
    assert "1 of them lie outside the calibration" in abstention_section(data).html


def test_without_labels_the_queue_is_shown_and_no_trade(calibrated_data: ReportData) -> None:
    content = abstention_section(replace(calibrated_data, labels={}))
    assert content.figures == ()
    assert len(content.tables[0].rows) == 56
    assert "Coverage against error" not in content.html


def test_without_calibration_there_is_no_section_and_a_budget_is_refused(calibrated_data: ReportData) -> None:
    plain = {
        slide_id: [row for row in rows if not is_calibration(row["bundle"])]
        for slide_id, rows in calibrated_data.predictions.items()
    }
    data = replace(calibrated_data, predictions=plain)
    assert abstention_section(data) is None
    with pytest.raises(InputError, match="no calibrated predictions"):
        review_queue(with_budget(data, 0.2))


def test_report_takes_a_review_budget(calibrated_cohort: Cohort, tmp_path) -> None:
    out = tmp_path / "report.html"
    command = ["report", str(calibrated_cohort.root), "--out", str(out), "--pages", "0", "--review-budget", "0.2"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    queue = json.loads(result.stdout)["review_queue"]
    assert (queue["slides"], queue["queue"], queue["budget"]) == (56, 11, 0.2)
    assert 0 < queue["expected_caught"] < queue["expected_errors"]
    page = out.read_text()
    assert "Abstention and review" in page
    assert "The review budget is 20.0" in page
