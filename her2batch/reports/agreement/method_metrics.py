"""Metrics of each method with their intervals, for the sections of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from her2batch.reports.agreement.curves import RESAMPLES, plot_curves, task_of_predictions
from her2batch.reports.agreement.kappa import without_false_certainty
from her2batch.reports.figures import Figure
from her2batch.tasks import task_order
from her2batch.training.metrics import CELL, check_predictions, confusion, grouped_rows
from her2batch.training.statistics import MIN_AUC_SLIDES, bootstrap_intervals, smallest_class, widen_interval

MAX_CURVES: Final = 24
"""Combinations of method and input that get curves, the best by AUC first. The table of metrics has all of them."""


def evaluate_methods(
    predictions: pa.Table, patients: Mapping[str, str], prefix: str
) -> tuple[list[dict[str, Any]], tuple[Figure, ...]]:
    """Return the metrics of each method with their intervals, the best AUC of each task first; and the curves."""
    bounds: dict[tuple[str, ...], dict[tuple[str, str | None], dict[str, Any]]] = {}
    for row in bootstrap_intervals(predictions, patients, RESAMPLES).to_pylist():
        bounds.setdefault(tuple(row[name] for name in CELL), {})[row["metric"], row["class"]] = row
    methods = []
    for keys, part in grouped_rows(predictions, CELL):
        own = bounds[tuple(keys.values())]
        overall = _overall_metrics(part, own, patients)
        classes = _class_metrics(part, own, patients)
        methods.append({**keys, "n": part.num_rows, "part": part, "metrics": overall, "classes": classes})
    order = task_order(row["task"] for row in methods)
    methods.sort(key=lambda row: (order.index(row["task"]), -(row["metrics"]["auc"]["value"] or 0), row["method"]))
    figures: list[Figure] = []
    for k, method in enumerate(methods):
        method["curves"] = plot_curves(method["part"], patients, f"{prefix}-{k + 1}") if k < MAX_CURVES else ()
        figures += method["curves"]
    return methods, tuple(figures)


def _overall_metrics(part: pa.Table, own: Mapping[Any, Any], patients: Mapping[str, str]) -> dict[str, Any]:
    """Return the metrics of one method over all classes, with intervals that do not look certain for few slides.

    own: bootstrap intervals over patients.  A note stands where there is no value, or no interval.
    """
    checked = check_predictions(part)
    smallest = smallest_class(checked.truth, checked.p.shape[1])
    n_patients = _count_patients(part, patients)
    metrics = {name: widen_interval(own[name, None], n_patients) for name in ("f1", "accuracy")}
    if smallest < MIN_AUC_SLIDES:
        auc_metric: dict[str, Any] = {"value": None, "note": f"too few: {smallest} slides of a class"}
    else:
        auc_metric = widen_interval(own["auc", None], min(smallest, n_patients))
    return {"auc": auc_metric, **metrics, "kappa": without_false_certainty(own["kappa", None])}


def _count_patients(part: pa.Table, patients: Mapping[str, str]) -> int:
    return len({patients[slide_id] for slide_id in part["slide_id"].to_pylist()})


def _class_metrics(part: pa.Table, own: Mapping[Any, Any], patients: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return for each class: number of slides, recall and precision with their intervals, F1."""
    counts = confusion(part)
    rows = []
    for k, name in enumerate(task_of_predictions(part).classes):
        correct, actual, predicted = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        f1 = 2 * correct / (actual + predicted) if actual + predicted else None
        of_class = part.filter(pc.equal(part["truth"], name))
        recall = widen_interval(own["recall", name], _count_patients(of_class, patients))
        of_predicted = part.filter(pc.equal(part["predicted"], name))
        value = correct / predicted if predicted else None
        precision = widen_interval({"value": value, "low": None, "high": None}, _count_patients(of_predicted, patients))
        rows.append({"class": name, "n": actual, "recall": recall, "precision": precision, "f1": f1})
    return rows
