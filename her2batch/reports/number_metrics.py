"""Metrics of predicted numbers in the report of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from her2batch.store.training_run import tasks_of_table
from her2batch.training.metrics import CELL, grouped_rows
from her2batch.training.statistics import bootstrap_intervals

RESAMPLES: Final = 300
"""Bootstrap resamples of patients, as for the classes."""


def split_numbers(predictions: pa.Table, patients: Mapping[str, str]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Return the predictions of classes, and the metrics of each method that predicts a number.

    A row of metrics has task, method, input, n, unit, and for c_index, r2 and mae a row of `bootstrap_intervals`.
    patients: of each slide_id.
    """
    tasks = tasks_of_table(predictions)
    names = pa.array([name for name, task in tasks.items() if task.is_number], pa.string())
    is_number = pc.is_in(predictions["task"], value_set=names)
    rows = []
    for keys, part in grouped_rows(predictions.filter(is_number), CELL):
        row: dict[str, Any] = {**keys, "n": part.num_rows, "unit": tasks[keys["task"]].unit}
        intervals = bootstrap_intervals(part, patients, RESAMPLES).to_pylist()
        rows.append(row | {interval["metric"]: interval for interval in intervals})
    return predictions.filter(pc.invert(is_number)), rows
