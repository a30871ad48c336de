"""A laboratory with a calibration, and the report's data of it."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, calibrate_slides
from her2batch.reports.cohort_page import add_worklists
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.store.cohort import Cohort
from her2batch.store.labels import read_labels
from her2batch.tasks import IHC_SCORES
from tests.pipeline.calibration.laboratories import STRENGTH, make_laboratory, write_sheet


@pytest.fixture(scope="session")
def calibrated_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """A laboratory with 14 slides of each class, all labelled; the calibration has learnt from ten of each.

    Two of the other labels are wrong by one class.
    """
    folder = tmp_path_factory.mktemp("abstention")
    cohort, labels = make_laboratory(folder / "cohort", dict.fromkeys(IHC_SCORES, 14), STRENGTH)
    learnt = {slide: label for slide, label in labels.items() if int(slide[2:5]) < 10}
    path = folder / "calibration.toml"
    calibrate_cohort(CalibrationRequest(cohort.root, path, write_sheet(folder / "learnt.csv", learnt)))
    assert calibrate_slides(cohort.root, path).calibrated == 56
    labels |= {"0x012-1": "1+", "3x012-1": "2+"}
    pq.write_table(read_labels(write_sheet(folder / "labels.csv", labels), cohort, {}), cohort.labels)
    return cohort


@pytest.fixture(scope="session")
def calibrated_data(calibrated_cohort: Cohort) -> ReportData:
    return add_worklists(load_report_data(calibrated_cohort))


def with_budget(data: ReportData, share: float | None) -> ReportData:
    """The data of a report with a review budget."""
    return replace(data, review_budget=share)
