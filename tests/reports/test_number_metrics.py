"""Predicted numbers stand apart from predicted classes in the report of a run."""

import pyarrow as pa
import pytest

from her2batch.reports.number_metrics import split_numbers
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import with_tasks
from her2batch.tasks import Task

INDEX = Task(name="ki67-index", column="ki67", target="number", unit="%", stains=("ki67",))


def predictions() -> pa.Table:
    cell = {"method": "clam-sb", "input": "stain", "fold": 0}
    numbers = [
        {
            **cell,
            "task": "ki67-index",
            "slide_id": f"s{k}",
            "truth": str(10.0 * k),
            "p": [10.0 * k + 1],
            "predicted": "1",
        }
        for k in range(6)
    ]
    classes = [{**cell, "task": "er", "slide_id": "s0", "truth": "positive", "p": [0.0, 1.0], "predicted": "positive"}]
    return with_tasks(pa.Table.from_pylist(numbers + classes, run_schema("predictions")), [INDEX])


def test_numbers_have_metrics_with_intervals_and_their_unit() -> None:
    classes, (row,) = split_numbers(predictions(), {f"s{k}": f"P{k}" for k in range(6)})
    assert classes["task"].to_pylist() == ["er"]
    assert (row["task"], row["n"], row["unit"]) == ("ki67-index", 6, "%")
    assert row["c_index"]["value"] == 1
    assert row["mae"]["value"] == pytest.approx(1)
    assert 0.98 < row["r2"]["low"] <= row["r2"]["value"] < 1


def test_a_run_without_numbers_keeps_all_its_predictions() -> None:
    empty = run_schema("predictions").empty_table()
    assert split_numbers(empty, {}) == (empty, [])
