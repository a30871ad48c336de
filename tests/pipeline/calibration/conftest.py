"""A laboratory with a calibration, which several tests share."""

from pathlib import Path

import pytest

from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, calibrate_slides
from her2batch.store.cohort import Cohort
from her2batch.tasks import IHC_SCORES
from tests.pipeline.calibration.laboratories import STRENGTH, make_laboratory, write_sheet


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, dict[str, str], Path]:
    """A laboratory with 18 slides of each class; the sheet has the labels of half of them."""
    folder = tmp_path_factory.mktemp("laboratory")
    cohort, labels = make_laboratory(folder / "cohort", dict.fromkeys(IHC_SCORES, 18), STRENGTH)
    learnt = {slide: labels[slide] for slide in sorted(labels)[::2]}
    return cohort, labels, write_sheet(folder / "labels.csv", learnt)


@pytest.fixture(scope="session")
def calibrated(laboratory: tuple[Cohort, dict[str, str], Path]) -> tuple[Path, str]:
    """The file of the laboratory's calibration, which was applied to it; and its id."""
    cohort, _, sheet = laboratory
    path = cohort.root.parent / "calibration.toml"
    found = calibrate_cohort(CalibrationRequest(cohort.root, path, sheet))
    assert found.notes == []
    assert calibrate_slides(cohort.root, path).calibrated == 72
    return path, found.calibration.id
