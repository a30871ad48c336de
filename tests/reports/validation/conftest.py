"""A validated cohort: the synthetic slides of two sites, with a label sheet that names physical slides and scanners."""

import csv
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.reports.validation.comparison import (
    Comparison,
    choose_predictions,
    compare,
    read_validation_labels,
)
from her2batch.store.cohort import Cohort
from her2batch.store.pseudonyms import Pseudonymizer
from tests.conftest import Synthetic


class Validated(NamedTuple):
    """A cohort that tests may validate, and its label sheet."""

    cohort: Cohort
    labels: Path


@pytest.fixture
def validated(synthetic: Synthetic, tmp_path: Path) -> Validated:
    return make_validated(synthetic, tmp_path)


@pytest.fixture(scope="session")
def report_data(synthetic: Synthetic) -> ReportData:
    return load_report_data(Cohort(synthetic.cohort))


@pytest.fixture(scope="session")
def comparison(synthetic: Synthetic, report_data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("comparison")
    sheet = write_sheet(synthetic.labels, folder / "labels.csv")
    labels = read_validation_labels(report_data.cohort, report_data, sheet, {}, Pseudonymizer())
    return compare(report_data, labels, choose_predictions(report_data, "her2-4way"))


def make_validated(synthetic: Synthetic, folder: Path) -> Validated:
    """A copy of the cohort that shares its files, without stored labels, and the sheet."""
    cohort = Path(shutil.copytree(synthetic.cohort, folder / "cohort", copy_function=os.link))
    (cohort / "labels.parquet").unlink()
    return Validated(Cohort(cohort), write_sheet(synthetic.labels, folder / "labels.csv"))


def write_sheet(labels: Path, path: Path) -> Path:
    """Write the labels with two more columns: four slides of a score are a patient's, two scans each."""
    with labels.open() as file:
        rows = list(csv.DictReader(file))
    seen: dict[str, int] = {}
    for row in rows:
        k = seen[row["her2"]] = seen.get(row["her2"], -1) + 1
        row["patient_id"] = f"Q{row['her2']}-{k // 4}"
        row["Physical slide"] = f"{row['her2']}-{k // 2}"
        row["scanner"] = ("alpha", "beta")[k % 2]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
