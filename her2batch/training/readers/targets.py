"""Labels of several readers in training: shares of the readers as soft labels, and the matrix of their disagreement.

Soft labels from several readers: Peterson et al., ICCV 2019; of pathologists, as label distributions: Geng, IEEE
Transactions on Knowledge and Data Engineering 28, 1734 (2016), doi 10.1109/TKDE.2016.2545658.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.settings import Training
from her2batch.tasks import Task

Shares = NDArray[np.float32]

READERS: Final = "readers"
"""Value of --disagreement: the matrix is estimated from the readers of the labels."""

PRIOR_READINGS: Final = 1.0
"""Readings that agree with the reference and are added to each row, so that a class that nobody read keeps its label
and a single reading does not decide."""


def needs_readers(training: Training) -> bool:
    """Return whether a run trains on the labels of several readers."""
    return training.readers is not None or training.disagreement == READERS


def check_readers(training: Training, readings: pa.Table) -> None:
    """Refuse a run on readers' labels for a task in which no slide has two readers. readings: of the run."""
    if not needs_readers(training):
        return
    option = "--readers soft" if training.readers is not None else f"--disagreement {READERS}"
    for name in training.tasks:
        if not any(len(own) > 1 for own in _by_slide(readings, training.task(name)).values()):
            what = f"{option} needs slides that several readers have read, and {name} has none"
            raise InputError(
                what, None, "give labels with a column reader and a row for each reader, or omit the option"
            )


def soft_targets(readings: pa.Table, task: Task, slide_ids: Sequence[str], labels: NDArray[np.int64]) -> Shares:
    """Return the share of a slide's readers in each class, (n, C); without readers its label. Rows sum to 1.

    labels: (n,), −1 for slides of neither part, whose rows are not used.
    """
    n_classes = len(task.classes)
    targets = np.eye(n_classes, dtype=np.float32)[np.maximum(labels, 0)]
    by_slide = _by_slide(readings, task)
    for k, slide_id in enumerate(slide_ids):
        if (own := by_slide.get(slide_id)) is not None:
            targets[k] = np.bincount(own, minlength=n_classes) / len(own)
    return targets


def estimate_disagreement(readings: pa.Table, task: Task, slide_ids: Collection[str]) -> Shares:
    """Return how readers call slides of a class, (C, C), rows of shares, from these slides with two readers and more.

    Each reading is compared with the median of the other readers of the slide, so that no reader agrees with himself;
    where these have two middle classes, each counts by half.
    """
    n_classes = len(task.classes)
    counts = np.eye(n_classes) * PRIOR_READINGS
    for slide_id, own in _by_slide(readings, task).items():
        if len(own) < 2 or slide_id not in slide_ids:
            continue
        for k, reading in enumerate(own):
            others = sorted(own[:k] + own[k + 1 :])
            for middle in (others[(len(others) - 1) // 2], others[len(others) // 2]):
                counts[middle, reading] += 0.5
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), np.float32)


def _by_slide(readings: pa.Table, task: Task) -> dict[str, list[int]]:
    """Return slide_id → classes that its readers give in a task."""
    found: dict[str, list[int]] = defaultdict(list)
    row: dict[str, Any]
    for row in readings.to_pylist():
        if row["task"] == task.name:
            found[row["slide_id"]].append(task.classes.index(row["truth"]))
    return dict(found)
