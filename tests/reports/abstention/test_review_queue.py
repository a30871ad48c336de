"""The review queue of a calibrated cohort: its order, and the slides that it leaves out."""

from dataclasses import replace

import pytest

from her2batch.reports.abstention.review_queue import review_queue
from her2batch.reports.report_data import ReportData
from her2batch.tasks import is_calibration


def test_the_queue_holds_each_scored_slide_by_its_probability_of_error(calibrated_data: ReportData) -> None:
    queue = review_queue(calibrated_data)
    assert sorted(one.slide_id for one in queue.slides) == sorted(calibrated_data.rows)
    errors = [one.error for one in queue.slides]
    assert errors == sorted(errors, reverse=True)
    first = queue.slides[0]
    main = calibrated_data.assessments[first.slide_id].main
    assert is_calibration(main["bundle"])
    assert first.error == pytest.approx(1 - max(main["p"]))
    assert queue.expected == pytest.approx(sum(errors)) == pytest.approx(queue.caught)


def test_decided_slides_are_not_queued_again(calibrated_data: ReportData) -> None:
    slide_id = review_queue(calibrated_data).slides[0].slide_id
    verdict = {"number": 1, "task": "her2-4way", "verdict": "agree", "label": "2+", "reviewer": "r", "supersedes": None,
               "comment": None}  # fmt: skip
    queue = review_queue(replace(calibrated_data, reviews={slide_id: [verdict]}))
    assert slide_id not in {one.slide_id for one in queue.slides}
