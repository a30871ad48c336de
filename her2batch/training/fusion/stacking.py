"""The method `fusion`: a stack of the other methods of a run and of the guideline rules, on out-of-fold predictions.

The stack that predicts the test slides of a fold is fitted to the test predictions of the other folds, by models that
had not seen these slides; it reads no label of the fold's own slides. Folds are of whole patients, so that no patient
is on both sides. The base models of the other folds were trained on slides of this fold, as in every stacking by
cross-validation.  The strength of the penalty is chosen inside these folds, by leaving out one of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.models.fusion.stack import FLOOR, StackWeights, stack_features, stack_probabilities
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import tasks_of_table, with_tasks
from her2batch.tasks import FUSION, FUSION_INPUT, Task, classifies_patches

Floats = NDArray[np.float64]

PENALTIES: Final = (0.003, 0.03, 0.3, 3.0)
"""Inverse strengths of the L2 penalty that are tried, strongest first."""


@dataclass(frozen=True)
class StackData:
    """The base predictions of the n slides of a task.

    bases: method and input of each.  p: (n, M, C), NaN where a base has none.  labels, fold: (n,).
    """

    bases: tuple[tuple[str, str], ...]
    slide_ids: tuple[str, ...]
    p: Floats
    labels: NDArray[np.int64]
    fold: NDArray[np.int64]


def base_predictions(predictions: pa.Table, task: Task, rules: pa.Table | None = None) -> StackData:
    """Return the predictions of slides, not of patches, by all other methods. Raises InputError without a method.

    rules: the table `rules` of a run; its methods are further bases, of the slides that a method predicts.
    """
    rows = [row for row in predictions.to_pylist() if row["task"] == task.name and row["method"] != FUSION]
    rows = [row for row in rows if not classifies_patches(row["method"], row["input"])]
    if not rows:
        raise InputError(f"{FUSION} has no other method to read for {task.name}", None, "add --method, such as clam-sb")
    slides = {row["slide_id"]: row for row in sorted(rows, key=lambda row: str(row["slide_id"]))}
    rows += [
        {**row, "input": row["method"]}
        for row in (rules.to_pylist() if rules is not None else ())
        if row["task"] == task.name and row["slide_id"] in slides
    ]
    bases = sorted({(row["method"], row["input"]) for row in rows})
    at, base_at = {name: k for k, name in enumerate(slides)}, {base: k for k, base in enumerate(bases)}
    p = np.full((len(slides), len(bases), len(task.classes)), np.nan)
    for row in rows:
        p[at[row["slide_id"]], base_at[row["method"], row["input"]]] = row["p"]
    labels = np.array([task.classes.index(row["truth"]) for row in slides.values()], np.int64)
    return StackData(tuple(bases), tuple(slides), p, labels, np.array([row["fold"] for row in slides.values()]))


def fit_stack(data: StackData, rows: NDArray[np.int64]) -> StackWeights:
    """Return a stack that is fitted to these slides; their folds are left out in turn to choose the penalty."""
    features, n_classes = stack_features(data.p[rows]), data.p.shape[2]
    labels, fold = data.labels[rows], data.fold[rows]
    losses = dict.fromkeys(PENALTIES, 0.0)
    for left_out in np.unique(fold) if len(np.unique(fold)) > 1 else ():
        train, test = fold != left_out, np.flatnonzero(fold == left_out)
        for penalty in PENALTIES:
            weights = _regress(data.bases, features[train], labels[train], n_classes, penalty)
            p = stack_probabilities(weights, data.p[rows[test]])
            losses[penalty] -= float(np.log(np.maximum(p[np.arange(len(test)), labels[test]], FLOOR)).sum())
    return _regress(data.bases, features, labels, n_classes, min(PENALTIES, key=losses.__getitem__))


def _regress(
    bases: tuple[tuple[str, str], ...], features: Floats, labels: NDArray[np.int64], n_classes: int, penalty: float
) -> StackWeights:
    """Return the weights of a regression. A class without a slide gets a low intercept; one class alone: the mean."""
    from sklearn.linear_model import LogisticRegression

    coefficients = np.tile(np.eye(n_classes) / len(bases), (1, len(bases)))  # the geometric mean of the bases
    intercept = np.zeros(n_classes)
    seen = np.unique(labels)
    if len(seen) > 1:
        model = LogisticRegression(C=penalty, max_iter=2000).fit(features, labels)
        coefficients, intercept = np.zeros_like(coefficients), np.full(n_classes, np.log(FLOOR))
        two = len(seen) == 2  # scikit-learn has one row for two classes: that of the second
        coefficients[seen] = np.vstack([0 * model.coef_, model.coef_]) if two else model.coef_
        intercept[seen] = [0.0, float(model.intercept_[0])] if two else model.intercept_
    rounded = tuple(tuple(round(float(value), 6) for value in row) for row in coefficients)
    return StackWeights(bases=bases, coefficients=rounded, intercept=tuple(round(float(v), 6) for v in intercept))


def with_fusion(predictions: pa.Table, tasks: Iterable[Task], rules: pa.Table | None = None) -> pa.Table:
    """Return the predictions of a run with those of the stack, for each of these tasks that has any prediction.

    Slides of a fold are predicted when at least one other fold has predictions.  rules: see `base_predictions`.
    """
    rows: list[dict[str, Any]] = []
    known = set(predictions["task"].to_pylist())
    for task in tasks:
        if task.name not in known:
            continue
        data = base_predictions(predictions, task, rules)
        for number in np.unique(data.fold):
            others, own = np.flatnonzero(data.fold != number), np.flatnonzero(data.fold == number)
            if not len(others):
                continue
            p = stack_probabilities(fit_stack(data, others), data.p[own])
            rows += [_row(task, data, int(k), values) for k, values in zip(own, p, strict=True)]
    added = pa.Table.from_pylist(rows, run_schema("predictions"))
    keys = [(name, "ascending") for name in ("task", "method", "input", "fold", "slide_id")]
    both = pa.concat_tables([predictions.replace_schema_metadata(None), added.replace_schema_metadata(None)])
    return with_tasks(both.sort_by(keys), tasks_of_table(predictions).values())


def _row(task: Task, data: StackData, k: int, p: Floats) -> dict[str, Any]:
    return {
        "task": task.name, "method": FUSION, "input": FUSION_INPUT, "fold": int(data.fold[k]),
        "slide_id": data.slide_ids[k], "truth": task.classes[int(data.labels[k])],
        "p": p.tolist(), "predicted": task.classes[int(p.argmax())],
    }  # fmt: skip


def final_stack(predictions: pa.Table, task: Task, rules: pa.Table | None = None) -> StackWeights:
    """Return the stack of a bundle, fitted to the out-of-fold predictions of all slides."""
    data = base_predictions(predictions, task, rules)
    return fit_stack(data, np.arange(len(data.slide_ids)))
