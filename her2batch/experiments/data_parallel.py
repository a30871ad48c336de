"""One image network on several processes, each with a GPU where there are GPUs: Ray Train's TorchTrainer.

The processes share every batch (see training.fit_image); the first of them writes, the others only compute.
"""

from __future__ import annotations

import tempfile
from typing import Any

from her2batch.experiments.units import TrainingJob, run_unit
from her2batch.runtime.ray_session import RaySession
from her2batch.store.training_run import Unit

MAX_RESTARTS = 2
"""A group that loses a process starts again, from its last checkpoint, so often."""


def run_data_parallel(session: RaySession, job: TrainingJob, unit: Unit, workers: int) -> str | Exception:
    """Train one unit on `workers` processes; its name, or why it failed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = session.gpus >= workers
    with tempfile.TemporaryDirectory(prefix="h2b-train-") as folder:
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"job": job, "unit": unit, "device": "cuda" if gpus else "cpu"},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                storage_path=folder, name=unit.name, failure_config=FailureConfig(max_failures=MAX_RESTARTS)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  (one unit's fault; the run goes on)
            return error
    return unit.name


def _loop(config: dict[str, Any]) -> None:
    """What each process runs. All take part in every batch; all call run_unit, whose files are the first one's."""
    run_unit(config["job"], config["unit"], config["device"])
