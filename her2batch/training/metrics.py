"""Metrics of predictions: one row for each fold of a predictions table, and their mean and standard deviation.

The metrics of classes are functions of the confusion matrix, (…, C, C) with rows for the truth, and of the ranks of the
probabilities; leading axes are resamples (see `statistics`). Numbers have metrics of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import rankdata

from her2batch.errors import InputError
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import tasks_of_table

Floats = NDArray[np.float64]

FIGURES = ("auc", "f1", "accuracy", "kappa")
"""Metrics of a task of classes."""

NUMBER_FIGURES = ("c_index", "r2", "mae")
"""Metrics of a task whose target is a number."""

PERCENT_FIGURES = ("auc", "f1", "accuracy", "c_index")
"""Metrics that summaries give in percent."""

CELL = ("task", "method", "input")

SUM_TOLERANCE = 1e-3
"""Largest difference between a sum of probabilities and 1. They are float32, some from half-precision networks."""


@dataclass(frozen=True)
class CheckedPredictions:
    """The predictions of one task as arrays. truth, predicted: (n,) int64 classes.  p: (n, C) float64.

    ordinal: whether the classes are ordered.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    p: Floats
    ordinal: bool = True


def check_predictions(predictions: pa.Table) -> CheckedPredictions:
    """Return the rows of one task as arrays, in the table's order.

    Raises InputError for more than one task, an unknown class, or probabilities that are not as many as the classes,
    are not finite or do not sum to 1.
    """
    tasks, known = pc.unique(predictions["task"]).to_pylist(), tasks_of_table(predictions)
    if len(tasks) != 1 or tasks[0] not in known or known[tasks[0]].is_number:
        raise InputError(f"the predictions are of the tasks {tasks}; they must be of one known task with classes")
    classes = known[tasks[0]].classes
    return CheckedPredictions(
        _classes(predictions, "truth", classes),
        _classes(predictions, "predicted", classes),
        _probabilities(predictions, len(classes)),
        known[tasks[0]].ordinal,
    )


def check_numbers(predictions: pa.Table) -> tuple[Floats, Floats]:
    """Return truth and prediction of the rows of one task whose target is a number, both (n,) float64.

    Raises InputError for a truth that is no number, and for a prediction that is missing or not finite.
    """
    try:
        truth = np.array([float(text) for text in predictions["truth"].to_pylist()], np.float64)
    except ValueError as error:
        raise InputError(f"the truth of a task of numbers is no number ({error})", None, "train again") from error
    values = predictions["p"].to_pylist()
    wrong = np.array([len(value or ()) != 1 or not np.isfinite(value[0]) for value in values], bool)
    if wrong.any():
        _refuse(predictions, wrong, "p is not one number")
    return truth, np.array([value[0] for value in values], np.float64)


def _classes(predictions: pa.Table, column: str, classes: Sequence[str]) -> NDArray[np.int64]:
    indices = pc.index_in(predictions[column], value_set=pa.array(classes, pa.string()))
    if indices.null_count:
        _refuse(predictions, indices.is_null().to_numpy(), f"{column} is none of {', '.join(classes)}")
    return np.asarray(indices.to_numpy(), np.int64)


def _probabilities(predictions: pa.Table, n_classes: int) -> Floats:
    column = predictions["p"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    if (lengths != n_classes).any():
        _refuse(predictions, lengths != n_classes, f"p does not have {n_classes} probabilities")
    p = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64).reshape(-1, n_classes)
    wrong = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE))
    if wrong.any():
        _refuse(predictions, wrong, "p are not probabilities that sum to 1")
    return p


def _refuse(predictions: pa.Table, wrong: NDArray[np.bool_], what: str) -> None:
    row = predictions.slice(int(wrong.argmax()), 1).to_pylist()[0]
    where = f"{row['task']}, {row['method']} on {row['input']}, fold {row['fold']}, slide {row['slide_id']}"
    raise InputError(f"{where}: {what} (in {int(wrong.sum())} rows)", None, "remove this unit's folder, then resume")


def grouped_rows(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Yield the rows of equal keys as (keys, rows), in order of the keys."""
    ordered = table.sort_by([(name, "ascending") for name in by])
    # Arrow's group_by is not used: with some hundred groups their order is not that of the rows
    columns = [ordered[name].to_pylist() for name in by]
    start = 0
    for keys, rows in groupby(zip(*columns, strict=True)):
        n = sum(1 for _ in rows)
        yield dict(zip(by, keys, strict=True)), ordered.slice(start, n)
        start += n


def metrics_table(predictions: pa.Table) -> pa.Table:
    """Return the metrics table: one row for each task, method, input and fold, sorted by them.

    A class that a test part lacks has no AUC, and a class that is neither there nor predicted has no F1: means are over
    the other classes, as in scikit-learn. An undefined metric is null. The columns of NUMBER_FIGURES are there where a
    task predicts a number.  Raises InputError as `check_predictions` and `check_numbers` do.
    """
    tasks, rows = tasks_of_table(predictions), []
    for keys, part in grouped_rows(predictions, (*CELL, "fold")):
        values = _number_metrics(part) if tasks[keys["task"]].is_number else _class_metrics(part)
        rows.append({**keys, **{name: nan_to_null(value) for name, value in values.items()}, "n": part.num_rows})
    numbers = any(tasks[row["task"]].is_number for row in rows)
    return pa.Table.from_pylist(rows, run_schema("metrics", numbers))


def _class_metrics(part: pa.Table) -> dict[str, float]:
    found = check_predictions(part)
    table = confusion_counts(found.truth, found.predicted, found.p.shape[1])
    values = [auc(found.truth, found.p), float(f1(table)), float(accuracy(table)), float(kappa(table, found.ordinal))]
    return dict(zip(FIGURES, values, strict=True))


def _number_metrics(part: pa.Table) -> dict[str, float]:
    truth, predicted = check_numbers(part)
    values = (c_index(truth, predicted), r_squared(truth, predicted), float(np.abs(truth - predicted).mean()))
    return dict(zip(NUMBER_FIGURES, values, strict=True))


def metrics_summary(table: pa.Table) -> pa.Table:
    """Return means and sample standard deviations over folds: a row for each task, method and input, sorted.

    auc, f1, accuracy and c_index in percent, as in the paper; the others as they are. Folds where a metric is undefined
    are left out; the standard deviation of fewer than two folds is null.  Columns: task, method, input, auc_mean,
    auc_sd, … kappa_sd, those of NUMBER_FIGURES if the table has them, folds, n.
    """
    rows, named = [], [name for name in (*FIGURES, *NUMBER_FIGURES) if name in table.column_names]
    for keys, part in grouped_rows(table, CELL):
        row = {**keys}
        for name in named:
            values = part[name].drop_null().to_numpy() * (100 if name in PERCENT_FIGURES else 1)
            row[f"{name}_mean"] = float(values.mean()) if len(values) else None
            row[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append({**row, "folds": part.num_rows, "n": sum(part["n"].to_pylist())})
    figures = [(f"{name}_{what}", pa.float64()) for name in named for what in ("mean", "sd")]
    names = [(name, pa.string()) for name in CELL]
    return pa.Table.from_pylist(rows, pa.schema([*names, *figures, ("folds", pa.int32()), ("n", pa.int32())]))


def nan_to_null(value: float) -> float | None:
    """Return a metric for a table: null for NaN."""
    return None if np.isnan(value) else value


# -- figures -----------------------------------------------------------------------------------------------------


def confusion(predictions: pa.Table) -> NDArray[np.int64]:
    """Return the confusion matrix of one task, (C, C), rows for the truth. Raises InputError as `check_predictions`."""
    found = check_predictions(predictions)
    return confusion_counts(found.truth, found.predicted, found.p.shape[1])


def confusion_counts(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Count pairs of true and predicted classes, (n,) and (n,) → (C, C), rows for the truth."""
    counts = np.bincount(truth * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def auc(truth: NDArray[np.int64], p: Floats) -> float:
    """Return the area under the ROC curve, one class against the rest, mean over classes; of two classes: the second.

    truth: (n,) classes.  p: (n, C).  Ties count half (Mann & Whitney 1947).  NaN when all are of one class.
    """
    scored = [1] if p.shape[1] == 2 else range(p.shape[1])
    return float(mean_defined(np.array([_area(truth == k, p[:, k]) for k in scored])))


def _area(positive: NDArray[np.bool_], score: Floats) -> float:
    m = int(positive.sum())
    n = len(positive) - m
    if m == 0 or n == 0:
        return float("nan")
    return float((rankdata(score)[positive].sum() - m * (m + 1) / 2) / (m * n))


def c_index(truth: Floats, predicted: Floats) -> float:
    """Return the share of pairs of slides in the right order, ties of the prediction half (Harrell 1982).

    truth, predicted: (n,).  Pairs of the same truth do not count; NaN without any other pair.
    """
    order = np.sign(truth[:, None] - truth[None, :])
    pairs = int(np.count_nonzero(order))
    if not pairs:
        return float("nan")
    agree = order * np.sign(predicted[:, None] - predicted[None, :])  # 1 right, −1 wrong, 0 a tie
    return float(agree.sum() / pairs + 1) / 2


def r_squared(truth: Floats, predicted: Floats) -> float:
    """Return the share of the variance that is explained, 1 − Σ(y − ŷ)² / Σ(y − ȳ)²; NaN where all truths are equal."""
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - predicted) ** 2).sum()) / total if total else float("nan")


def mean_defined(values: Floats) -> Floats:
    """Return the mean over the last axis without NaN; NaN where all values are NaN."""
    defined = ~np.isnan(values)
    return divide_or_nan(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def divide_or_nan(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """Return the quotient, NaN where the divisor is 0."""
    quotient = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan)
    np.divide(above, below, out=quotient, where=np.asarray(below) != 0)
    return quotient


def class_recalls(table: NDArray[Any]) -> Floats:
    """Return the recall of each class: (…, C, C) → (…, C); NaN for a class without examples."""
    return divide_or_nan(_diagonal(table), table.sum(axis=-1))


def accuracy(table: NDArray[Any]) -> Floats:
    """Return the accuracy: (…, C, C) → (…)."""
    return divide_or_nan(_diagonal(table).sum(axis=-1), table.sum(axis=(-2, -1)))


def f1(table: NDArray[Any]) -> Floats:
    """Return the mean over classes of 2 TP / (2 TP + FP + FN), (…, C, C) → (…), without classes of no TP, FP and FN."""
    return mean_defined(divide_or_nan(2 * _diagonal(table), table.sum(axis=-1) + table.sum(axis=-2)))


def kappa(table: NDArray[Any], ordinal: bool = True) -> Floats:
    """Return Cohen's kappa with quadratic weights (Cohen 1968): (…, C, C) → (…); NaN with only one class.

    ordinal: whether the classes are ordered; without an order all errors weigh the same, as with two classes.
    """
    classes = np.arange(table.shape[-1])
    apart = classes[:, None] - classes[None, :]
    weights = apart**2 if ordinal else (apart != 0).astype(np.int64)
    chance = table.sum(axis=-1)[..., :, None] * table.sum(axis=-2)[..., None, :]
    seen = (weights * table).sum(axis=(-2, -1)) * table.sum(axis=(-2, -1))
    return 1 - divide_or_nan(seen, (weights * chance).sum(axis=(-2, -1)))


def _diagonal(table: NDArray[Any]) -> NDArray[Any]:
    return np.diagonal(table, axis1=-2, axis2=-1)
