"""How good predictions are: from a predictions table to one row of figures a fold, and their mean and spread.

The figures are functions of the confusion matrix, (…, C, C) with rows for the truth, and of the ranks of the
probabilities; leading axes are resamples (see compare).
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
from her2batch.store.schemas import run_schema
from her2batch.tasks import CLASSES

Floats = NDArray[np.float64]

FIGURES = ("auc", "f1", "accuracy", "kappa")
CELL = ("task", "method", "input")

SUM_TOLERANCE = 1e-3
"""Probabilities are float32, some from half-precision networks: their sum may miss 1 by so much."""


@dataclass(frozen=True)
class CheckedPredictions:
    """Predictions of one task as arrays. truth, predicted: (n,) int64 classes.  p: (n, C) float64."""

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    p: Floats


def check_predictions(predictions: pa.Table) -> CheckedPredictions:
    """The rows of one task as arrays, in the table's order.

    Raises InputError for more than one task, a class that the task has not, or probabilities that are not as many as
    the classes, are no numbers or do not sum to 1.
    """
    tasks = pc.unique(predictions["task"]).to_pylist()
    if len(tasks) != 1 or tasks[0] not in CLASSES:
        raise InputError(f"predictions are of the tasks {tasks}, they must be of one that is known")
    classes = CLASSES[tasks[0]]
    return CheckedPredictions(
        _classes(predictions, "truth", classes),
        _classes(predictions, "predicted", classes),
        _probabilities(predictions, len(classes)),
    )


def _classes(predictions: pa.Table, column: str, classes: Sequence[str]) -> NDArray[np.int64]:
    found = pc.index_in(predictions[column], value_set=pa.array(classes, pa.string()))
    if found.null_count:
        _refuse(predictions, found.is_null().to_numpy(), f"{column} is none of {', '.join(classes)}")
    return np.asarray(found.to_numpy(), np.int64)


def _probabilities(predictions: pa.Table, n_classes: int) -> Floats:
    column = predictions["p"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    if (lengths != n_classes).any():
        _refuse(predictions, lengths != n_classes, f"p does not hold {n_classes} probabilities")
    p = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64).reshape(-1, n_classes)
    wrong = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE))
    if wrong.any():
        _refuse(predictions, wrong, "p are no probabilities that sum to 1")
    return p


def _refuse(predictions: pa.Table, wrong: NDArray[np.bool_], what: str) -> None:
    row = predictions.slice(int(wrong.argmax()), 1).to_pylist()[0]
    where = f"{row['task']}, {row['method']} on {row['input']}, fold {row['fold']}, slide {row['slide_id']}"
    raise InputError(f"{where}: {what} (in {int(wrong.sum())} rows)", None, "remove this unit's folder, then resume")


def grouped_rows(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """The rows with equal keys, as (keys, rows), in order of the keys."""
    ordered = table.sort_by([(name, "ascending") for name in by])
    # not Arrow's group_by: the order of its groups is its own, and with some hundred of them not that of the rows
    columns = [ordered[name].to_pylist() for name in by]
    start = 0
    for keys, rows in groupby(zip(*columns, strict=True)):
        n = sum(1 for _ in rows)
        yield dict(zip(by, keys, strict=True)), ordered.slice(start, n)
        start += n


def metrics_table(predictions: pa.Table) -> pa.Table:
    """The metrics table: one row for each task, method, input and fold, sorted by them.

    A class that a fold's test part lacks has no AUC there and one that is neither there nor predicted no F1: the means
    are over the others, as scikit-learn has them. What is left undefined is null.  Raises InputError as `judged` does.
    """
    rows = []
    for keys, part in grouped_rows(predictions, (*CELL, "fold")):
        found = check_predictions(part)
        table = confusion_counts(found.truth, found.predicted, found.p.shape[1])
        values = [auc(found.truth, found.p), *(float(figure(table)) for figure in (f1, accuracy, kappa))]
        rows.append({**keys, **dict(zip(FIGURES, map(nan_to_null, values), strict=True)), "n": part.num_rows})
    return pa.Table.from_pylist(rows, run_schema("metrics"))


def metrics_summary(table: pa.Table) -> pa.Table:
    """Mean and sample sd over folds of a metrics table: a row for each task, method and input, sorted.

    auc, f1 and accuracy in percent, as the paper prints them; kappa plain. Folds without a figure are left out of it;
    an sd of fewer than two is null.  Columns: task, method, input, auc_mean, auc_sd, … kappa_sd, folds, n.
    """
    rows = []
    for keys, part in grouped_rows(table, CELL):
        row = {**keys}
        for name in FIGURES:
            values = part[name].drop_null().to_numpy() * (1 if name == "kappa" else 100)
            row[f"{name}_mean"] = float(values.mean()) if len(values) else None
            row[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append({**row, "folds": part.num_rows, "n": sum(part["n"].to_pylist())})
    figures = [(f"{name}_{what}", pa.float64()) for name in FIGURES for what in ("mean", "sd")]
    names = [(name, pa.string()) for name in CELL]
    return pa.Table.from_pylist(rows, pa.schema([*names, *figures, ("folds", pa.int32()), ("n", pa.int32())]))


def nan_to_null(value: float) -> float | None:
    """A figure for a table: null for NaN."""
    return None if np.isnan(value) else value


# -- figures -----------------------------------------------------------------------------------------------------


def confusion(predictions: pa.Table) -> NDArray[np.int64]:
    """The confusion matrix of one task's predictions: (C, C), rows for the truth.  Raises InputError as `judged`."""
    found = check_predictions(predictions)
    return confusion_counts(found.truth, found.predicted, found.p.shape[1])


def confusion_counts(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """(n,) and (n,) classes → (C, C) counts, rows for the truth."""
    counts = np.bincount(truth * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def auc(truth: NDArray[np.int64], p: Floats) -> float:
    """Area under the ROC curve, one class against the rest, mean over the classes; of two classes: of the second.

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


def mean_defined(values: Floats) -> Floats:
    """Mean over the last axis of what is no NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    return divide_or_nan(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1))


def divide_or_nan(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """Quotient, NaN where the divisor is 0."""
    found = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan)
    np.divide(above, below, out=found, where=np.asarray(below) != 0)
    return found


def class_recalls(table: NDArray[Any]) -> Floats:
    """Share of each class that is predicted as it: (…, C, C) → (…, C); NaN for a class that is not there."""
    return divide_or_nan(_diagonal(table), table.sum(axis=-1))


def accuracy(table: NDArray[Any]) -> Floats:
    """Share predicted right: (…, C, C) → (…)."""
    return divide_or_nan(_diagonal(table).sum(axis=-1), table.sum(axis=(-2, -1)))


def f1(table: NDArray[Any]) -> Floats:
    """Mean over classes of 2 TP / (2 TP + FP + FN): (…, C, C) → (…). A class neither there nor predicted: left out."""
    return mean_defined(divide_or_nan(2 * _diagonal(table), table.sum(axis=-1) + table.sum(axis=-2)))


def kappa(table: NDArray[Any]) -> Floats:
    """Cohen's kappa with quadratic weights (Cohen 1968): (…, C, C) → (…); NaN when one class alone is met.

    The classes of every task have an order; with two it is the kappa without weights.
    """
    classes = np.arange(table.shape[-1])
    weights = (classes[:, None] - classes[None, :]) ** 2
    chance = table.sum(axis=-1)[..., :, None] * table.sum(axis=-2)[..., None, :]
    seen = (weights * table).sum(axis=(-2, -1)) * table.sum(axis=(-2, -1))
    return 1 - divide_or_nan(seen, (weights * chance).sum(axis=(-2, -1)))


def _diagonal(table: NDArray[Any]) -> NDArray[Any]:
    return np.diagonal(table, axis1=-2, axis2=-1)
