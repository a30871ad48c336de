"""Training runs in MLflow and TensorBoard. Both may be written again: what is there already is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError, install_extra
from her2batch.store.training_run import TrainingRun, encoder_folder
from her2batch.training.publishing.tracked_run import TrackedRun, TrackedUnit, read_tracked_run

EXPERIMENT: Final = "her2batch"
"""Experiment of MLflow in which runs are created; MLFLOW_EXPERIMENT_NAME names another."""

KEY_TAG: Final = "her2batch.key"
UNIT_TAG: Final = "her2batch.unit"

MOST_METRICS: Final = 1000
"""Metrics that MLflow takes in one request."""

MOST_PARAMETERS: Final = 100
"""Parameters that MLflow takes in one request."""


def write_tensorboard(run: TrainingRun, out: Path) -> list[str]:
    """Write event files, one folder for each unit: losses by epoch, and the metrics with their parameters.

    Returns the names of the units that were not there before. Raises InputError when tensorboard is not installed, or
    when there is no run.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("the package tensorboard is not installed", None, install_extra("tensorboard")) from error
    added = []
    for unit in read_tracked_run(run).units:
        folder = out / encoder_folder(unit.name)
        if any(folder.glob("events.*")):
            continue
        part = folder.with_name(f".{folder.name}.part")
        with SummaryWriter(str(part)) as writer:
            for epoch, (train, val) in enumerate(unit.losses, start=1):
                writer.add_scalar("loss/train", train, epoch)
                writer.add_scalar("loss/validation", val, epoch)
            metrics = {f"metrics/{name}": value for name, value in unit.metrics.items()}
            writer.add_hparams(dict(unit.parameters), metrics, run_name=".")
        part.rename(folder)
        added.append(unit.name)
    return added


def write_mlflow(run: TrainingRun) -> list[str]:
    """Write a run to the MLflow server of MLFLOW_TRACKING_URI: one run, with a nested run for each unit.

    Returns the names of the units that were not there before. Raises InputError when mlflow is not installed, no server
    is named, the server can't be reached or refuses, or there is no training run.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the laboratory that nobody asked for
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise InputError("the package mlflow is not installed", None, install_extra("mlflow")) from error
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        remedy = "set MLFLOW_TRACKING_URI to its address, such as http://localhost:5000 (`mlflow server` starts one)"
        raise InputError("no MLflow server is named", None, remedy)
    tracked = read_tracked_run(run)
    try:
        return list(_send(MlflowClient(address), tracked))
    except MlflowException as error:
        what = f"the MLflow server {address} failed: {str(error).strip().splitlines()[0][:200]}"
        raise InputError(what, None, "check that it runs, then run the same command again: it continues") from error


def _send(client: Any, tracked: TrackedRun) -> Iterator[str]:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found is not None else client.create_experiment(name)
    parents = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{tracked.key}'")
    parent = parents[0].info.run_id if parents else None
    if parent is None:
        tags = {KEY_TAG: tracked.key}
        parent = client.create_run(experiment, tags=tags, run_name=tracked.name).info.run_id
        _log(client, parent, tracked.parameters, {})
    finished = _finished_units(client, experiment, parent)
    for unit in tracked.units:
        if unit.name in finished:
            continue
        _send_unit(client, experiment, parent, unit)
        yield unit.name
    _log(client, parent, {}, tracked.metrics)
    for path in tracked.files:
        client.log_artifact(parent, str(path))
    client.set_terminated(parent)


def _finished_units(client: Any, experiment: str, parent: str) -> set[str]:
    """Return the units whose nested run is complete. One that was cut off is deleted, to be sent again."""
    finished: set[str] = set()
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", page_token=token)
        for one in page:
            if one.info.status == "FINISHED":
                finished.add(one.data.tags[UNIT_TAG])
            else:
                client.delete_run(one.info.run_id)
        token = page.token
        if not token:
            return finished


def _send_unit(client: Any, experiment: str, parent: str, unit: TrackedUnit) -> None:
    from mlflow.entities import Metric

    tags = {"mlflow.parentRunId": parent, UNIT_TAG: unit.name}
    run_id = client.create_run(experiment, tags=tags, run_name=unit.name).info.run_id
    _log(client, run_id, unit.parameters, unit.metrics)
    now = int(time.time() * 1000)
    losses = [
        Metric(name, value, now, epoch)
        for epoch, pair in enumerate(unit.losses, start=1)
        for name, value in zip(("train_loss", "val_loss"), pair, strict=True)
    ]
    for start in range(0, len(losses), MOST_METRICS):
        client.log_batch(run_id, metrics=losses[start : start + MOST_METRICS])
    client.set_terminated(run_id)


def _log(client: Any, run_id: str, parameters: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    params = [Param(name, value[:500]) for name, value in parameters.items()]
    values = [Metric(name.replace(":", "-").replace("+", "plus"), value, now, 0) for name, value in metrics.items()]
    for start in range(0, len(params), MOST_PARAMETERS):
        client.log_batch(run_id, params=params[start : start + MOST_PARAMETERS])
    for start in range(0, len(values), MOST_METRICS):
        client.log_batch(run_id, metrics=values[start : start + MOST_METRICS])
