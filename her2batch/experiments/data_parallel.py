"""Data-parallel training of one image network on several processes, each with a GPU if available, by Ray Train.

The processes share every batch (see training.fit_image). Only the first process writes files.
"""

from __future__ import annotations

import tempfile
from typing import Any

from her2batch.experiments.units import TrainingJob, run_unit
from her2batch.runtime.ray_session import RaySession
from her2batch.store.training_run import Unit

MAX_RESTARTS = 2
"""Number of times that a group which loses a process is restarted from its last checkpoint."""


def run_data_parallel(session: RaySession, job: TrainingJob, unit: Unit, workers: int) -> str | Exception:
    """Train one unit on `workers` processes. Returns its name, or the error that ended it."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = session.gpus >= workers
    with tempfile.TemporaryDirectory(prefix="h2b-train-") as folder:
        trainer = TorchTrainer(
            _train_in_process,
            train_loop_config={"job": job, "unit": unit, "device": "cuda" if gpus else "cpu"},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                storage_path=folder, name=unit.name, failure_config=FailureConfig(max_failures=MAX_RESTARTS)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  (the error of one unit; the run continues)
            return error
    return unit.name


def _train_in_process(config: dict[str, Any]) -> None:
    """Train the unit in one process of the group; run_unit writes files in the first process only."""
    run_unit(config["job"], config["unit"], config["device"])
