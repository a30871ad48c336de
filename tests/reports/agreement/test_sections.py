"""Sections on the agreement with the labels and on a training run, on a cohort with everything to show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from her2batch.method_results import DERIVED_TASKS
from her2batch.reports.agreement.sections import (
    label_agreement_section,
    labelled_predictions,
    predictions_of_slides,
    shown_on_pages,
    training_run_section,
)
from her2batch.reports.report_data import ReportData
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import TrainingRun
from her2batch.tasks import PATCH_NETWORKS
from her2batch.training.metrics import metrics_table
from tests.reports.agreement.predictions import predictions


def test_labelled_predictions_have_the_class_of_their_label(report_data: ReportData) -> None:
    found = labelled_predictions(report_data)
    by_rule = found.filter(pc.equal(found["method"], "membrane"))
    assert set(by_rule["task"].to_pylist()) == {"her2-4way", "her2-3way", "her2-binary"}
    assert set(found["task"].to_pylist()) == {"her2-4way", "her2-5way", "her2-3way", "her2-binary", "er"}
    truth = {(one["slide_id"], one["truth"]) for one in found.to_pylist() if one["task"] == "her2-4way"}
    assert truth == {(one, report_data.labels[one]["her2"]) for one, _ in truth}


def test_section_shows_methods_sites_and_misclassified_slides(report_data: ReportData) -> None:
    part = label_agreement_section(report_data)
    assert part is not None
    for words in ("IHC score by membrane", "HER2 group by clam-sb", "Agreement at each site", "north", "Misclassified"):
        assert words in part.html, words
    names = [one.name for one in part.figures]
    assert len(names) == len(set(names))
    assert {one.rsplit("-", 1)[1] for one in names if one.startswith("labels-")} == {"confusion", "calibration"}
    assert any(one.startswith("kappa-") for one in names)


def test_misclassified_slides_are_those_whose_class_the_pages_show(report_data: ReportData) -> None:
    """A rule that gives 2+ predicts no status, which ISH decides; a slide that cannot be scored has no class."""
    rows = labelled_predictions(report_data)
    shown = shown_on_pages(rows, report_data).to_pylist()
    hidden = [row for row in rows.to_pylist() if row not in shown]
    assert shown
    assert hidden
    for row in hidden:
        found = report_data.assessments[row["slide_id"]]
        assert found.not_scorable or (row["task"] in DERIVED_TASKS and "2+" in {one.predicted for one in found.methods})


def test_section_is_left_out_without_labels_or_run(report_data: ReportData) -> None:
    assert label_agreement_section(replace(report_data, labels={})) is None
    assert training_run_section(report_data) is None


@pytest.mark.parametrize("network", PATCH_NETWORKS)
def test_patches_are_no_slides_in_the_report_of_a_run(network: str) -> None:
    """A run keeps one row a patch of every network that classifies patches; agreement is measured on slides."""
    table = predictions("her2-4way", ["0", "3+"], np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    kinds = [(network, "patches-low"), (network, "thumbnail-224"), ("svm", "patches-low")]
    rows = [{**row, "method": method, "input": name} for row in table.to_pylist() for method, name in kinds]
    found = predictions_of_slides(pa.Table.from_pylist(rows, table.schema)).to_pylist()
    assert {(row["method"], row["input"]) for row in found} == set(kinds[1:])


def test_a_run_shows_the_misclassified_slides_of_each_approach(report_data: ReportData, tmp_path: Path) -> None:
    """Each slide is tested by a head and by a network of thumbnails, which call every slide 0."""
    ids = sorted(report_data.labels)[:6]
    truth = [("0", "3+")[k % 2] for k in range(len(ids))]
    table = predictions("her2-4way", truth, np.tile([0.7, 0.1, 0.1, 0.1], (len(ids), 1)))
    cells = [("clam-sb", "stain"), ("convnext-small", "thumbnail-224")]
    rows = [{**row, "slide_id": ids[k], "method": method, "input": name}
            for method, name in cells for k, row in enumerate(table.to_pylist())]  # fmt: skip
    run = TrainingRun(tmp_path / "run")
    run.open_or_create({})
    labels = [{"task": "her2-4way", "slide_id": one, "patient_id": one, "label": 0, "truth": "0"} for one in ids]
    run.write("labels", pa.Table.from_pylist(labels, run_schema("labels")))
    run.write("predictions", pa.Table.from_pylist(rows, run_schema("predictions")))
    run.write("metrics", metrics_table(run.read("predictions")))
    part = training_run_section(replace(report_data, run=run))
    assert part is not None
    for approach in ("multiple instance learning", "networks on thumbnails"):
        shown = part.html.partition(f"Misclassified by {approach}")[2].partition("<h3>")[0]
        assert f"3 of {len(ids)} slides" in shown
        assert shown.count("<figure>") == shown.count("<img") == 3
