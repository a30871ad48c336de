"""Agreement of the predictions with the labels, and the results of a training run beside those of the paper.

The figures are those of `training.metrics`, their intervals those of `training.statistics`.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from her2batch.reports.agreement.curves import RESAMPLES
from her2batch.reports.agreement.gallery import galleries_by_approach, worst_misclassified
from her2batch.reports.agreement.kappa import kappa_by_site
from her2batch.reports.agreement.method_metrics import evaluate_methods
from her2batch.reports.number_metrics import split_numbers
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, render_template, thumbnail_uris
from her2batch.store.labels import LABELS_SCHEMA, label_slides
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import tasks_of_table
from her2batch.tasks import CLASSES, GUIDELINE_RULES, classifies_patches
from her2batch.training.metrics import metrics_summary
from her2batch.training.statistics import MIN_AUC_SLIDES, cells_with_few_slides, without_auc


def label_agreement_section(data: ReportData) -> SectionContent | None:
    """Compare the predictions of the cohort with its labels. None without a labelled prediction."""
    predictions = labelled_predictions(data)
    if not predictions.num_rows:
        return None
    patients = patient_of_slide(data)
    methods, curves = evaluate_methods(predictions, patients, "labels")
    sites = kappa_by_site(data, predictions, patients)
    misclassified = worst_misclassified(shown_on_pages(predictions, data), _open_for_ish(data))
    thumbnails = thumbnail_uris(data.cohort, [error["slide_id"] for error in misclassified], 180)
    trained = bool(set(pc.unique(predictions["method"]).to_pylist()) - {*GUIDELINE_RULES})
    html = render_template(
        "agreement.html", methods=methods, sites=sites, misclassified=misclassified, thumbnails=thumbnails,
        page_links=data.page_links, trained=trained, resamples=RESAMPLES, min_auc_slides=MIN_AUC_SLIDES,
    )  # fmt: skip
    return SectionContent(html, (*curves, *sites))


def training_run_section(data: ReportData) -> SectionContent | None:
    """Show a training run: its metrics on held-out slides, and the paper's tables beside them. None without a run."""
    run = data.run
    if run is None:
        return None
    patients = {row["slide_id"]: row["patient_id"] for row in run.read("labels").to_pylist()}
    predictions, numbers = split_numbers(predictions_of_slides(run.read("predictions")), patients)
    methods, curves = evaluate_methods(predictions, patients, "run") if predictions.num_rows else ([], ())
    few = cells_with_few_slides(predictions)
    rows = without_auc(metrics_summary(run.read("metrics")).to_pylist(), few)
    paper = without_auc(run.read_or_empty("tables").to_pylist(), few)
    excluded = run.read_or_empty("excluded").to_pylist()
    classes = {name: task.classes for name, task in tasks_of_table(run.read("predictions")).items()}
    galleries = galleries_by_approach(predictions, _open_for_ish(data), classes)
    shown = sorted({error["slide_id"] for gallery in galleries for error in gallery.errors})
    external = external_results(run.read("test_metrics")) if run.table("test_metrics").exists() else []
    html = render_template(
        "training_run.html", methods=methods, rows=rows, paper=paper, excluded=excluded, name=run.root.name,
        resamples=RESAMPLES, min_auc_slides=MIN_AUC_SLIDES, numbers=numbers, external=external,
        galleries=galleries, thumbnails=thumbnail_uris(data.cohort, shown, 180), page_links=data.page_links,
    )  # fmt: skip
    return SectionContent(html, curves)


def external_results(metrics: pa.Table) -> list[dict[str, Any]]:
    """Return one row per test cohort and model: cohort, task, method, input, n, is_number, and `metrics`.

    `metrics`: name → value, low, high.  is_number: of models that predict a number.

    metrics: RUN/test_metrics.parquet (`experiments.external_test`); fractions, null where there are too few slides.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in metrics.to_pylist():
        names = ("cohort", "task", "method", "input", "n")
        key = tuple(row[name] for name in names)
        of = found.setdefault(key, {**dict(zip(names, key, strict=True)), "metrics": {}})
        if row["class"] is None:
            of["metrics"][row["metric"]] = {name: row[name] for name in ("value", "low", "high")}
    return [{**row, "is_number": "mae" in row["metrics"]} for row in found.values()]


def labelled_predictions(data: ReportData) -> pa.Table:
    """Return the predictions of the cohort that have a label, in the schema of a run: `input` is the bundle, fold 0."""
    rows = []
    for task in CLASSES:
        labels = pa.Table.from_pylist(list(data.labels.values()), LABELS_SCHEMA)
        labelled, _ = label_slides(labels, task, data.rows)
        for label in labelled.to_pylist():
            for prediction in data.predictions_for(label["slide_id"], task):
                rows.append({**prediction, "input": prediction["bundle"], "fold": 0, "truth": label["truth"]})
    schema = run_schema("predictions")
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)


def shown_on_pages(predictions: pa.Table, data: ReportData) -> pa.Table:
    """Return the predictions whose class the pages show: none that hangs on ISH, or of a slide that has no score."""
    shown = {
        (slide_id, one.task, one.bundle, one.method)
        for slide_id, found in data.assessments.items()
        for one in found.methods
        if one.predicted is not None
    }
    keys = zip(*(predictions[name].to_pylist() for name in ("slide_id", "task", "input", "method")), strict=True)
    return predictions.filter(pa.array([key in shown for key in keys], pa.bool_()))


def _open_for_ish(data: ReportData) -> set[str]:
    """Return the slides whose classes hang on an ISH result that is not known."""
    return {slide_id for slide_id, found in data.assessments.items() if found.needs_ish}


def patient_of_slide(data: ReportData) -> dict[str, str]:
    """Return slide_id → patient. A slide without a patient counts as a patient of its own."""
    return {
        slide_id: row["patient_id"] or data.labels.get(slide_id, {}).get("patient_id") or slide_id
        for slide_id, row in data.rows.items()
    }


def predictions_of_slides(predictions: pa.Table) -> pa.Table:
    """Return the predictions of a run without those of single patches."""
    pairs = zip(predictions["method"].to_pylist(), predictions["input"].to_pylist(), strict=True)
    return predictions.filter(pa.array([not classifies_patches(*pair) for pair in pairs], pa.bool_()))
