"""A training run as experiment trackers show runs: parameters, losses of each epoch, and metrics of each unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from her2batch.files.parquet import read_parquet
from her2batch.store.training_run import TrainingRun
from her2batch.training.metrics import metrics_table

METRICS: Final = ("auc", "f1", "accuracy", "kappa", "c_index", "r2", "mae", "n")
"""Metrics of a fold that trackers get, where the table of metrics has them."""


@dataclass(frozen=True)
class TrackedUnit:
    """A fold of a method, or a trial of a search.

    losses: the mean losses over the training and validation parts, one pair for each epoch from 1.
    metrics: of its test slides; of a trial, of its validation slides.
    """

    name: str
    parameters: Mapping[str, str]
    losses: Sequence[tuple[float, float]]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A training run. key: is the same for the same settings in the same folder.  files: small files to attach."""

    name: str
    key: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    units: Sequence[TrackedUnit]
    files: Sequence[Path]


def read_tracked_run(run: TrainingRun) -> TrackedRun:
    """Read all units and trials of a run that are finished. Raises InputError when there is no run.

    Slides, patients and paths of the cohort are left out: a tracker may stand outside the laboratory's protection.
    """
    settings = run.read_settings()
    units = [_read_unit(path, settings) for path in sorted(run.root.glob("units/*/predictions.parquet"))]
    files = [path for path in (run.table("metrics"), run.bundle / "README.md") if path.is_file()]
    key = hashlib.sha256(run.settings.read_bytes() + str(run.root.absolute()).encode()).hexdigest()[:32]
    return TrackedRun(
        run.root.absolute().name, key, _parameters(settings), _means(units), [*units, *_trials(run)], files
    )


def _means(units: Sequence[TrackedUnit]) -> dict[str, float]:
    """Mean and sample standard deviation of each metric over the folds: TASK.METHOD.INPUT.METRIC_mean, …_sd."""
    values: dict[str, list[float]] = {}
    for unit in units:
        cell = ".".join(unit.parameters[name] for name in ("task", "method", "input"))
        for name, value in unit.metrics.items():
            values.setdefault(f"{cell}.{name}", []).append(value)
    means = {f"{name}_mean": mean(folds) for name, folds in values.items()}
    return means | {f"{name}_sd": stdev(folds) for name, folds in values.items() if len(folds) > 1}


def _parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of training, and those of the cohort's plan that decide the inputs."""
    plan = settings["plan"]
    chosen = {name: plan[name] for name in ("mpp", "tile", "encoders") if name in plan}
    values = {**settings["training"], **{f"plan.{name}": value for name, value in chosen.items()}}
    left_out = ("definitions", "smoothing", "fold_names", "disagreement")  # long, or names of sites and files
    return {name: _text(value) for name, value in values.items() if name not in left_out}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_unit(predictions: Path, settings: Mapping[str, Any]) -> TrackedUnit:
    table = read_parquet(predictions)  # of the final fold, which tests no slide, it is empty
    row: dict[str, Any] = metrics_table(table).to_pylist()[0] if table.num_rows else {}
    task, method, input_name, fold = predictions.parent.name.rsplit(".", 3)
    parameters = {"task": task, "method": method, "input": input_name, "fold": fold}
    parameters |= {name: str(row[name]) for name in ("method", "input") if name in row}
    parameters |= dict(option.partition("=")[::2] for option in settings["training"].get("options", ()))
    metrics = {name: float(row[name]) for name in METRICS if row.get(name) is not None}
    path = predictions.parent / "history.parquet"
    rows = read_parquet(path).to_pylist() if path.is_file() else []
    losses = [(epoch["train_loss"], epoch["val_loss"]) for epoch in rows]
    return TrackedUnit(predictions.parent.name, parameters, losses, metrics)


def _trials(run: TrainingRun) -> Iterator[TrackedUnit]:
    """Yield the trials of a search that are done."""
    for row in run.read_or_empty("trials").to_pylist():
        if row["val_loss"] is None:
            continue
        settings = {name: _text(value) for name, value in json.loads(row["settings"]).items()}
        names = ("task", "method", "input", "fold")
        metrics = {name: float(row[name]) for name in ("val_loss", "best_epoch", "epochs") if row[name] is not None}
        yield TrackedUnit(f"trial.{row['trial']}", {name: str(row[name]) for name in names} | settings, (), metrics)
