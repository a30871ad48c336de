"""Confusion matrix, ROC curves and calibration curve of one method, with bands from resampled patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.reports.figures import Figure, plot_calibration, plot_confusion, plot_roc
from her2batch.store.training_run import tasks_of_table
from her2batch.tasks import GUIDELINE_RULES, Task
from her2batch.training.metrics import Floats, auc, check_predictions, confusion
from her2batch.training.statistics import MIN_AUC_SLIDES, draw_resamples, patient_indices, widen_interval

RESAMPLES: Final = 300
"""Bootstrap resamples of patients for the intervals of the report. The comparison of a training run takes more."""

ROC_GRID: Final = np.linspace(0, 1, 41)
"""Values of 1 − specificity at which a ROC curve and its band are drawn."""

CALIBRATION_BINS: Final = 10
"""Number of equally wide bins of the calibration curve."""


def task_of_predictions(part: pa.Table) -> Task:
    """Return the task of predictions that are all of one task."""
    return tasks_of_table(part)[part["task"][0].as_py()]


def plot_curves(part: pa.Table, patients: Mapping[str, str], name: str) -> tuple[Figure, ...]:
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
    classes = task_of_predictions(part).classes
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
    for k, name in enumerate(classes := task_of_predictions(part).classes):
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
