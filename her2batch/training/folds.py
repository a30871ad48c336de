"""Assign slides to the training, validation and test parts of each fold, by whole patients.

Fold i tests on part i, validates on part i + 1 and trains on the others: 80/10/10 with ten folds (methods.md §7).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import FINAL_FOLD
from her2batch.tasks import Task, as_task
from her2batch.training.recipes.random_streams import random_stream

ORDERS = 50
"""Orders of the patients that are tried: 0.06 s for 500 slides. With ten, some folds differed by two slides in size."""

ASSIGN, SHUFFLE = 1001, 1002
"""Keys of the random streams of a run's seed."""

MIN_PATIENTS = 3
"""Patients that a class needs: one each to train, validate and test."""


def assign_patients(
    strata: Sequence[str], patients: Sequence[str], n_folds: int, seed: int, also: Sequence[Sequence[str]] = ()
) -> NDArray[np.int32]:
    """Return the fold of each slide, (n,) int32 from 0: one fold per patient, every stratum spread evenly.

    also: further columns of n words to spread evenly: the classes of the tasks that share these folds, any word where a
    slide has none.  The result depends on the patients' slides and on the seed, not on the order of rows.

    Patients are assigned in random order, those with most slides first, each to the fold with the smallest sum over
    words of (slides in the fold) × (slides of the patient), where all slides count as one more word. This is the greedy
    step towards the smallest sum of squares. Of ORDERS orders the one with the smallest sum is used, among those in
    which the fewest training parts lack a word: of two equally even assignments one may put all slides of a class into
    the parts that test and validate a fold.
    """
    # Slides of the largest less those of the smallest fold, worst of 20 draws of the paper's cohort (500 slides, 10
    # folds), for all slides · the five IHC/ISH strata · the classes of the three HER2 tasks:
    #                                     the classes given   strata alone   StratifiedGroupKFold
    #   one slide a patient                   0 · 1 · 1         0 · 1 · 2         2 · 1 · 2
    #   one to three, of any strata           0 · 1 · 1         0 · 1 · 2         2 · 1 · 2
    #   one to three, all of one stratum      0 · 3 · 3         0 · 3 · 3         2 · 3 · 3
    names, of = np.unique(np.asarray(patients, np.str_), return_inverse=True)
    words = [strata, *also, [""] * len(of)]
    slides = np.hstack([_counts(of, len(names), column) for column in words])
    draw = random_stream(seed, ASSIGN)
    candidates = [_assign(slides, draw.permutation(len(names)), n_folds) for _ in range(ORDERS)]
    loads = [_load(slides, fold, n_folds) for fold in candidates]
    best = min(range(ORDERS), key=lambda k: (_missing_in_training(loads[k]), int((loads[k] ** 2).sum())))
    return candidates[best][of]


def _counts(of: NDArray[np.int64], n_patients: int, words: Sequence[str]) -> NDArray[np.int64]:
    """Count the slides of each patient with each word, (P, W). of: (n,) patients.  words: (n,)."""
    found, kind = np.unique(np.asarray(words, np.str_), return_inverse=True)
    counts = np.zeros((n_patients, len(found)), np.int64)
    np.add.at(counts, (of, kind), 1)
    return counts


def _assign(slides: NDArray[np.int64], order: NDArray[np.int64], n_folds: int) -> NDArray[np.int32]:
    """Return the fold of each patient, (P,) int32. slides: (P, W), last column all.  order: (P,), for equal sizes."""
    fold = np.zeros(len(slides), np.int32)
    load = np.zeros((n_folds, slides.shape[1]), np.int64)
    for patient in order[np.argsort(-slides[order, -1], kind="stable")]:
        fold[patient] = (load @ slides[patient]).argmin()
        load[fold[patient]] += slides[patient]
    return fold


def _load(slides: NDArray[np.int64], fold: NDArray[np.int32], n_folds: int) -> NDArray[np.int64]:
    """Count the slides with each word in each fold: (folds, W)."""
    load = np.zeros((n_folds, slides.shape[1]), np.int64)
    np.add.at(load, fold, slides)
    return load


def _missing_in_training(load: NDArray[np.int64]) -> int:
    """Count the folds and words without a slide of the word in the training part. load: (folds, W)."""
    trains = load.sum(axis=0) - load - np.roll(load, -1, axis=0)  # fold k tests part k and validates on part k + 1
    return int((trains == 0).sum())


def check_labelled(task: str | Task, labelled: pa.Table, n_folds: int) -> None:
    """Refuse labels that cannot be cross-validated.

    labelled: slide_id, patient_id, label, … of one task.  Raises InputError naming task, class, counts and remedy: no
    slides, a slide without a patient, only one patient, a class without slides or with too few patients, one number
    for all slides, fewer patients than folds.
    """
    task = as_task(task)
    if labelled.num_rows == 0:
        raise InputError(f"{task.name}: no slide has a label for it", None, "fill in its column of the labels")
    if missing := [row["slide_id"] for row in labelled.to_pylist() if row["patient_id"] is None]:
        what = f"{task.name}: slide {min(missing)} has no patient ({len(missing)} slides)"
        raise InputError(what, None, "fill in patient_id in the labels")
    patients = np.asarray(labelled["patient_id"].to_pylist(), np.str_)
    label = labelled["label"].to_numpy()
    n = len(np.unique(patients))
    if n == 1:
        what = f"{task.name}: all {len(patients)} slides are of one patient, who cannot be in training and test"
        raise InputError(what, None, "add slides of other patients, or correct patient_id in the labels")
    for k, name in enumerate(task.classes):
        count = len(np.unique(patients[label == k]))
        if count == 0:
            raise InputError(
                f"{task.name}: class {name} has no slide among {len(patients)}",
                None,
                "add slides of it, or omit the task",
            )
        if count < MIN_PATIENTS:
            what = f"{task.name}: class {name} has slides of {count} patients; training, validation and test need 3"
            raise InputError(what, None, "add slides of it, or omit the task")
    if task.is_number and len(set(labelled["truth"].to_pylist())) == 1:
        raise InputError(
            f"{task.name}: all {len(patients)} slides have the same number", None, "add others, or omit the task"
        )
    if n < n_folds:
        raise InputError(
            f"{task.name}: {n} patients are fewer than {n_folds} folds", None, f"give --folds {n} or fewer"
        )


def cross_validation_splits(
    task: str | Task, labelled: pa.Table, fold: NDArray[np.int32], n_folds: int, inner: NDArray[np.int32] | None = None
) -> pa.Table:
    """Return the folds table of one task: each slide with its split in every fold, sorted by fold and slide_id.

    labelled: slide_id, patient_id, label, … (n rows).  fold: (n,), see `assign_patients`.  inner: (n,) parts, one of
    which validates outside each fold; None: the next fold validates.  Raises InputError when a fold has no test slides,
    or its training part lacks a class.
    """
    tables = []
    for k in range(n_folds):
        if not (fold == k).any():
            what = f"{as_task(task).name}: fold {k} of {n_folds} has none of its {len(fold)} slides"
            raise InputError(what, None, "give fewer --folds, or add patients")
        validates = fold == (k + 1) % n_folds if inner is None else _inner_validation(inner, fold != k, k)
        split = np.select([fold == k, validates], ["test", "val"], "train")
        tables.append(_rows(task, labelled, k, split))
    return pa.concat_tables(tables)


def _inner_validation(inner: NDArray[np.int32], outside: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Return which slides validate fold k: the k-th part of those that it does not test, or the next part with one."""
    parts = np.unique(inner[outside])
    return np.asarray(outside & (inner == parts[k % len(parts)]), bool) if len(parts) else outside


def final_split(task: str | Task, labelled: pa.Table, fold: NDArray[np.int32]) -> pa.Table:
    """Return the rows of the folds table for the model of the bundle: no test part, part 0 validates.

    Raises InputError when its training part lacks a class.
    """
    return _rows(task, labelled, FINAL_FOLD, np.where(fold == 0, "val", "train"))


def _rows(task: str | Task, labelled: pa.Table, number: int, split: NDArray[np.str_]) -> pa.Table:
    task = as_task(task)
    classes = ("any number",) if task.is_number else task.classes
    trained = np.bincount(labelled["label"].to_numpy()[split == "train"], minlength=len(classes))
    for name, n in zip(classes, trained, strict=True):
        if n == 0:
            what = f"{task.name}: class {name} has no slide in the training part of fold {number}"
            remedy = (
                "give more --folds (a larger part trains), another --seed or other folds of your own, or add patients"
            )
            raise InputError(what, None, remedy)
    n = len(split)
    columns = {
        "task": [task.name] * n,
        "fold": [number] * n,
        "slide_id": labelled["slide_id"],
        "patient_id": labelled["patient_id"],
        "split": split.tolist(),
    }
    return pa.table(columns, run_schema("folds")).sort_by("slide_id")


def shuffle_labels(labelled: pa.Table, seed: int) -> pa.Table:
    """Assign label, truth and stratum to other patients at random, as a control; the slides keep their patients.

    Each patient gets all labels of one patient, in order of slide_id, repeated where that patient has fewer slides. So
    the slides of a patient stay together, and the classes keep their shares of patients. Call `check_labelled` next.
    The result depends on the patients and the seed, not on the order of rows.
    """
    patients = np.asarray(labelled["patient_id"].to_pylist(), np.str_)
    order = np.lexsort((np.asarray(labelled["slide_id"].to_pylist(), np.str_), patients))
    names, starts, of, counts = np.unique(patients[order], return_index=True, return_inverse=True, return_counts=True)
    source = random_stream(seed, SHUFFLE).permutation(len(names))[of]  # whose labels each slide gets
    rank = np.arange(len(order)) - starts[of]
    take = np.empty(len(order), np.int64)
    take[order] = order[starts[source] + rank % counts[source]]
    for name in ("label", "truth", "stratum"):
        k = labelled.schema.get_field_index(name)
        labelled = labelled.set_column(k, labelled.schema.field(k), labelled[name].take(pa.array(take)))
    return labelled
