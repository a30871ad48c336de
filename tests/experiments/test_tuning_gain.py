"""The gain of a search: paired by fold, its spread, and what counts as an improvement."""

import pyarrow as pa
import pytest

from her2batch.experiments.tuning_gain import is_improvement, tuning_gain
from her2batch.store.tables.runs import run_schema


def metrics(*folds: tuple[float | None, float], method: str = "clam-sb") -> pa.Table:
    """Metrics of folds, each (auc, accuracy)."""
    names = {"task": "her2-3way", "method": method, "input": "stain", "f1": 0.5, "kappa": 0.1, "n": 10}
    rows = [{**names, "fold": k, "auc": auc, "accuracy": accuracy} for k, (auc, accuracy) in enumerate(folds)]
    return pa.Table.from_pylist(rows, run_schema("metrics"))


def test_differences_are_paired_by_fold() -> None:
    tuned, untuned = metrics((0.9, 0.8), (0.8, 0.6)), metrics((0.7, 0.8), (0.7, 0.7))
    rows = {row["metric"]: row for row in tuning_gain(tuned, untuned)}
    assert rows["auc"]["difference"] == pytest.approx(0.15)
    assert rows["auc"]["sd"] == pytest.approx(0.0707, abs=1e-4)
    assert (rows["auc"]["better"], rows["auc"]["worse"], rows["auc"]["folds"]) == (2, 0, 2)
    assert rows["accuracy"]["difference"] == pytest.approx(-0.05)
    assert (rows["accuracy"]["better"], rows["accuracy"]["worse"]) == (0, 1)
    assert is_improvement(rows["auc"])
    assert not is_improvement(rows["accuracy"])
    assert not is_improvement(rows["f1"])  # equal in every fold


def test_a_gain_within_the_spread_of_the_folds_is_no_improvement() -> None:
    (row,) = (row for row in tuning_gain(metrics((0.9, 0), (0.6, 0)), metrics((0.7, 0), (0.7, 0)))
              if row["metric"] == "auc")  # fmt: skip
    assert row["difference"] == pytest.approx(0.05)
    assert is_improvement(row) is False


def test_one_fold_cannot_show_an_improvement() -> None:
    rows = tuning_gain(metrics((0.9, 0.9)), metrics((0.5, 0.5)))
    assert {is_improvement(row) for row in rows} == {None}


def test_other_methods_and_undefined_metrics_are_left_out() -> None:
    tuned = pa.concat_tables([metrics((None, 0.8), (0.8, 0.8)), metrics((0.1, 0.1), (0.1, 0.1), method="fusion")])
    rows = {row["metric"]: row for row in tuning_gain(tuned, metrics((0.9, 0.8), (0.7, 0.8)))}
    assert (rows["auc"]["folds"], rows["accuracy"]["folds"]) == (1, 2)
    assert rows["accuracy"]["difference"] == 0


def test_a_smaller_error_is_better() -> None:
    row = {"metric": "mae", "difference": -2.0, "sd": 1.0}
    assert is_improvement(row) is True
    assert is_improvement({**row, "difference": 2.0}) is False
