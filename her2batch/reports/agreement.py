"""Agreement of the predictions with the labels, and the results of a training run beside those of the paper.

The figures are those of `training.metrics`, their intervals those of `training.statistics`. This module adds the
confusion matrices, ROC curves and calibration curves, with bands from the same resampled patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.method_results import DERIVED_TASKS
from her2batch.reports.figures import Figure, plot_calibration, plot_confusion, plot_intervals, plot_roc
from her2batch.reports.number_metrics import split_numbers
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, render_template, thumbnail_uris
from her2batch.store.labels import LABELS_SCHEMA, label_slides
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import tasks_of_table
from her2batch.tasks import CLASSES, GUIDELINE_RULES, PATCH_INPUTS, Task, task_order
from her2batch.training.methods import PATCH_NET
from her2batch.training.metrics import (
    CELL,
    Floats,
    auc,
    check_predictions,
    confusion,
    grouped_rows,
    kappa,
    metrics_summary,
    nan_to_null,
)
from her2batch.training.statistics import (
    MIN_AUC_SLIDES,
    bootstrap_intervals,
    cells_with_few_slides,
    draw_resamples,
    patient_indices,
    smallest_class,
    widen_interval,
    without_auc,
)

RESAMPLES: Final = 300
"""Bootstrap resamples of patients for the intervals of the report. The comparison of a training run takes more."""

ROC_GRID: Final = np.linspace(0, 1, 41)
"""Values of 1 − specificity at which a ROC curve and its band are drawn."""

CALIBRATION_BINS: Final = 10
"""Number of equally wide bins of the calibration curve."""

MAX_MISCLASSIFIED: Final = 36
"""Misclassified slides that are shown with their thumbnail."""

MAX_CURVES: Final = 24
"""Combinations of method and input that get curves, the best by AUC first. The table of metrics has all of them."""

INTERVAL_SCHEMA: Final = pa.schema(
    [("name", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int32())]
)


def label_agreement_section(data: ReportData) -> SectionContent | None:
    """Compare the predictions of the cohort with its labels. None without a labelled prediction."""
    predictions = labelled_predictions(data)
    if not predictions.num_rows:
        return None
    methods, curves = _evaluate_methods(predictions, _patient_of_slide(data), "labels")
    open_slides = {slide_id for slide_id, found in data.assessments.items() if found.needs_ish}
    sites = _kappa_by_site(data, predictions)
    misclassified = _worst_misclassified(predictions, open_slides)
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
    predictions, numbers = split_numbers(_without_patches(run.read("predictions")), patients)
    methods, curves = _evaluate_methods(predictions, patients, "run") if predictions.num_rows else ([], ())
    few = cells_with_few_slides(predictions)
    rows = without_auc(metrics_summary(run.read("metrics")).to_pylist(), few)
    paper = without_auc(run.read("tables").to_pylist() if run.table("tables").exists() else [], few)
    excluded = run.read("excluded").to_pylist() if run.table("excluded").exists() else []
    external = external_results(run.read("test_metrics")) if run.table("test_metrics").exists() else []
    html = render_template(
        "training_run.html", methods=methods, rows=rows, paper=paper, excluded=excluded, name=run.root.name,
        resamples=RESAMPLES, min_auc_slides=MIN_AUC_SLIDES, numbers=numbers, external=external,
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


# -- predictions with their truth --------------------------------------------------------------------------------


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


def _patient_of_slide(data: ReportData) -> dict[str, str]:
    """Return slide_id → patient. A slide without a patient counts as a patient of its own."""
    return {
        slide_id: row["patient_id"] or data.labels.get(slide_id, {}).get("patient_id") or slide_id
        for slide_id, row in data.rows.items()
    }


def _without_patches(predictions: pa.Table) -> pa.Table:
    """Return the predictions of slides, without those of single patches."""
    patches = pc.and_(
        pc.equal(predictions["method"], PATCH_NET),
        pc.is_in(predictions["input"], value_set=pa.array(list(PATCH_INPUTS), pa.string())),
    )
    return predictions.filter(pc.invert(patches))


# -- metrics and curves of each method ---------------------------------------------------------------------------


def _evaluate_methods(
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
        method["curves"] = _plot_curves(method["part"], patients, f"{prefix}-{k + 1}") if k < MAX_CURVES else ()
        figures += method["curves"]
    return methods, tuple(figures)


def _task_of(part: pa.Table) -> Task:
    """Return the task of predictions that are all of one task."""
    return tasks_of_table(part)[part["task"][0].as_py()]


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


def without_false_certainty(metric: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metric without its interval where that has the width 0, with a note instead."""
    if metric["low"] is None or metric["low"] < metric["high"]:
        return dict(metric)
    return {**metric, "low": None, "high": None, "note": "too few for an interval"}


def _count_patients(part: pa.Table, patients: Mapping[str, str]) -> int:
    return len({patients[slide_id] for slide_id in part["slide_id"].to_pylist()})


def _class_metrics(part: pa.Table, own: Mapping[Any, Any], patients: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return for each class: number of slides, recall and precision with their intervals, F1."""
    counts = confusion(part)
    rows = []
    for k, name in enumerate(_task_of(part).classes):
        correct, actual, predicted = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        f1 = 2 * correct / (actual + predicted) if actual + predicted else None
        of_class = part.filter(pc.equal(part["truth"], name))
        recall = widen_interval(own["recall", name], _count_patients(of_class, patients))
        of_predicted = part.filter(pc.equal(part["predicted"], name))
        value = correct / predicted if predicted else None
        precision = widen_interval({"value": value, "low": None, "high": None}, _count_patients(of_predicted, patients))
        rows.append({"class": name, "n": actual, "recall": recall, "precision": precision, "f1": f1})
    return rows


def _plot_curves(part: pa.Table, patients: Mapping[str, str], name: str) -> tuple[Figure, ...]:
    """Draw the confusion matrix, ROC curves and calibration curve of one method."""
    row = part.slice(0, 1).to_pylist()[0]
    is_rule = row["method"] in GUIDELINE_RULES
    subject = f"{row['method']}, {row['task']}" if is_rule else f"{row['method']}, {row['input']}, {row['task']}"
    source = f"predictions, labels: {part.num_rows} slides"
    figures = []
    for kind, title, table, plot in (
        ("confusion", "Confusion matrix", confusion_table(part), plot_confusion),
        ("roc", "ROC, one class against the rest", _classes_with_roc(roc_table(part, patients), part), plot_roc),
        ("calibration", "Calibration", calibration_table(part, patients), plot_calibration),
    ):
        if table.num_rows:
            figures.append(Figure(f"{name}-{kind}", title, source, plot(f"{title}: {subject}", table), table))
    return tuple(figures)


def _classes_with_roc(table: pa.Table, part: pa.Table) -> pa.Table:
    """Return the ROC curves of the classes with enough slides, and enough of all others."""
    counts = Counter(part["truth"].to_pylist())
    enough = [name for name, n in counts.items() if min(n, part.num_rows - n) >= MIN_AUC_SLIDES]
    return table.filter(pc.is_in(table["class"], value_set=pa.array(enough, pa.string())))


def confusion_table(part: pa.Table) -> pa.Table:
    """Return the confusion matrix of one method. Columns: truth, predicted, n."""
    classes = _task_of(part).classes
    counts = confusion(part)
    rows = [
        {"truth": truth, "predicted": predicted, "n": int(counts[k, j])}
        for k, truth in enumerate(classes)
        for j, predicted in enumerate(classes)
    ]
    return pa.Table.from_pylist(rows)


def roc_table(part: pa.Table, patients: Mapping[str, str], draws: int = RESAMPLES) -> pa.Table:
    """Return the ROC curve of each class against the rest, with its band.

    The band is the central 95 % of resampled patients at each specificity. Columns: class, fpr, tpr, low, high, auc.
    With two classes only the second has a curve. Classes of all slides or of none are left out.
    """
    checked = check_predictions(part)
    patient_of_row, n_patients = patient_indices(part, patients)
    weights = draw_resamples(n_patients, draws, 0)[:, patient_of_row]
    rows = []
    for k, name in enumerate(classes := _task_of(part).classes):
        positive, p = checked.truth == k, checked.p[:, k]
        if (len(classes) == 2 and k == 0) or positive.all() or not positive.any():
            continue
        curves = _sensitivity_at_grid(positive, p, weights)
        low, high = np.nanpercentile(curves[1:], [2.5, 97.5], axis=0)
        area = auc(positive.astype(np.int64), np.stack([1 - p, p], axis=1))
        rows += [
            {"class": name, "fpr": float(x), "tpr": float(y), "low": float(lower), "high": float(upper), "auc": area}
            for x, y, lower, upper in zip(ROC_GRID, curves[0], low, high, strict=True)
        ]
    columns = [(column, pa.float64()) for column in ("fpr", "tpr", "low", "high", "auc")]
    return pa.Table.from_pylist(rows, pa.schema([("class", pa.string()), *columns]))


def _sensitivity_at_grid(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Return the sensitivity at ROC_GRID for each resample, NaN where a resample lacks one of the two classes.

    positive, score: (n,).  weights: (B, n).  Returns (B, len(ROC_GRID)).

    Slides with equal scores are one step of the curve. The curve is straight between steps, so that its area counts
    ties by half.
    """
    descending = np.argsort(-score, kind="stable")
    step_ends = np.flatnonzero(np.append(score[descending][1:] != score[descending][:-1], True))
    sensitivity = np.full((len(weights), len(ROC_GRID)), np.nan)
    for k, weight in enumerate(weights[:, descending]):
        true_positives = np.append(0, np.cumsum(weight * positive[descending])[step_ends])
        false_positives = np.append(0, np.cumsum(weight * ~positive[descending])[step_ends])
        if true_positives[-1] and false_positives[-1]:
            fpr, tpr = false_positives / false_positives[-1], true_positives / true_positives[-1]
            sensitivity[k] = np.interp(ROC_GRID, fpr, tpr)
    return sensitivity


def calibration_table(part: pa.Table, patients: Mapping[str, str], draws: int = RESAMPLES) -> pa.Table:
    """Return how often the predicted class is correct, by its probability.

    Columns: p (mean of the bin), share, low, high, n.
    """
    checked = check_predictions(part)
    patient_of_row, n_patients = patient_indices(part, patients)
    weights = draw_resamples(n_patients, draws, 0)[:, patient_of_row]
    p = checked.p[np.arange(len(checked.predicted)), checked.predicted]
    correct = checked.predicted == checked.truth
    bins = np.minimum((p * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    rows = []
    for k in np.unique(bins):
        inside = bins == k
        total = weights[:, inside].sum(axis=1)
        with np.errstate(invalid="ignore"):
            shares = (weights[:, inside] * correct[inside]).sum(axis=1) / total
        drawn = np.nanpercentile(shares[1:], [2.5, 97.5]).tolist() if (total[1:] > 0).any() else (None, None)
        share = {"value": float(shares[0]), "low": drawn[0], "high": drawn[1]}
        wide = widen_interval(share, len(np.unique(patient_of_row[inside])))
        rows.append({"p": float(p[inside].mean()), "share": share["value"], "low": wide["low"], "high": wide["high"],
                     "n": int(inside.sum())})  # fmt: skip
    return pa.Table.from_pylist(rows)


# -- sites and misclassified slides ------------------------------------------------------------------------------


def _kappa_by_site(data: ReportData, predictions: pa.Table) -> tuple[Figure, ...]:
    """Draw the agreement with the labels at each site: quadratically weighted kappa of each method and task."""
    sites = sorted({site for site in (data.site_of(slide_id) for slide_id in data.rows) if site is not None})
    patients = _patient_of_slide(data)
    figures: list[Figure] = []
    for keys, part in grouped_rows(predictions, CELL):
        site_of_row = pa.array([data.site_of(slide_id) for slide_id in part["slide_id"].to_pylist()], pa.string())
        parts = {site: part.filter(pc.equal(site_of_row, site)) for site in sites}
        rows = [
            {"name": site, **_figure_interval(kappa_interval(own, patients)), "n": own.num_rows}
            for site, own in parts.items()
            if own.num_rows
        ]
        if len(rows) < 2 or all(row["value"] is None for row in rows):
            continue
        name = f"{keys['task']}, {keys['method']}"
        table = pa.Table.from_pylist(rows, INTERVAL_SCHEMA)
        svg = plot_intervals(f"Kappa by site: {name}", table)
        figures.append(Figure(f"kappa-{len(figures) + 1}", name, "predictions, labels.site", svg, table))
    return tuple(figures)


def kappa_interval(part: pa.Table, patients: Mapping[str, str], draws: int = RESAMPLES) -> dict[str, float | None]:
    """Return the quadratically weighted kappa of one task's predictions and its interval: value, low, high.

    The result equals that of `training.statistics.intervals`, which also computes the AUCs; on thousands of slides
    these cost a hundred times as much. A value that is undefined is None.
    """
    checked = check_predictions(part)
    n_classes = checked.p.shape[1]
    patient_of_row, n_patients = patient_indices(part, patients)
    pairs = np.zeros((n_patients, n_classes**2))
    np.add.at(pairs, (patient_of_row, checked.truth * n_classes + checked.predicted), 1)
    values = kappa((draw_resamples(n_patients, draws, 0) @ pairs).reshape(-1, n_classes, n_classes))
    defined = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else (None, None)
    return {"value": nan_to_null(float(values[0])), "low": low, "high": high}


def _figure_interval(metric: Mapping[str, Any]) -> dict[str, Any]:
    """Return value, low and high of a metric; no interval where it would have the width 0."""
    found = without_false_certainty(metric)
    return {name: found[name] for name in ("value", "low", "high")}


def _worst_misclassified(predictions: pa.Table, open_for_ish: Collection[str]) -> list[dict[str, Any]]:
    """Return one misclassified prediction for each slide: furthest from the label, then most probable. Worst first.

    open_for_ish: slides whose classes hang on ISH: only their IHC score is shown.
    """
    worst: dict[str, dict[str, Any]] = {}
    for row in predictions.to_pylist():
        classes = CLASSES[row["task"]]
        if row["predicted"] == row["truth"] or (row["task"] in DERIVED_TASKS and row["slide_id"] in open_for_ish):
            continue
        distance = abs(classes.index(row["predicted"]) - classes.index(row["truth"]))
        probability = row["p"][classes.index(row["predicted"])]
        rank = (-distance, -probability)
        if row["slide_id"] not in worst or rank < worst[row["slide_id"]]["rank"]:
            worst[row["slide_id"]] = {**row, "rank": rank, "probability": probability}
    return sorted(worst.values(), key=lambda row: (row["rank"], row["slide_id"]))[:MAX_MISCLASSIFIED]
