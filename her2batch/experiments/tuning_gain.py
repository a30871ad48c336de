"""The gain of a search: tuned settings and the settings without a search on the test slides of the same outer folds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from her2batch.training.metrics import CELL, FIGURES, NUMBER_FIGURES

LESS_IS_BETTER: Final = ("mae",)
"""Metrics of which the smaller value is the better one."""


def tuning_gain(tuned: pa.Table, untuned: pa.Table) -> list[dict[str, Any]]:
    """Return a row for each metric that both tables of metrics have: the tuned settings less those without a search.

    tuned: may have further rows, such as those of the method `fusion`.  Rows: metric; tuned, untuned and difference,
    means over the folds where both are defined; sd of the differences, null for fewer than two folds; better, worse:
    numbers of folds; folds.  Fractions, as in the tables.
    """
    by_fold = {_key(row): row for row in tuned.to_pylist()}
    pairs = [(by_fold[_key(row)], row) for row in untuned.to_pylist() if _key(row) in by_fold]
    rows = [_gain(name, pairs) for name in (*FIGURES, *NUMBER_FIGURES)]
    return [row for row in rows if row is not None]


def is_improvement(row: Mapping[str, Any]) -> bool | None:
    """Return whether a gain is larger than the spread (standard deviation) of the folds; None: one fold shows none."""
    if row["sd"] is None:
        return None
    gain = -row["difference"] if row["metric"] in LESS_IS_BETTER else row["difference"]
    return bool(gain > row["sd"])


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in CELL), row["fold"])


def _gain(name: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the row of one metric; None where no fold has it for both settings."""
    values = [(a[name], b[name]) for a, b in pairs if a.get(name) is not None and b.get(name) is not None]
    if not values:
        return None
    differences = [a - b for a, b in values]
    sign = -1 if name in LESS_IS_BETTER else 1
    return {
        "metric": name,
        "tuned": math.fsum(a for a, _ in values) / len(values),
        "untuned": math.fsum(b for _, b in values) / len(values),
        "difference": math.fsum(differences) / len(values),
        "sd": statistics.stdev(differences) if len(values) > 1 else None,
        "better": sum(sign * one > 0 for one in differences),
        "worse": sum(sign * one < 0 for one in differences),
        "folds": len(values),
    }
