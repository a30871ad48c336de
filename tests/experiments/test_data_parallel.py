"""Tests of data-parallel training of one network on two processes of Ray Train."""

from dataclasses import replace
from pathlib import Path

import pytest

from her2batch.experiments import data_parallel
from her2batch.experiments.data_parallel import run_data_parallel
from her2batch.experiments.prepare import prepare_run
from her2batch.experiments.train import TrainingRequest, open_job
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Training
from her2batch.store.training_run import Unit
from her2batch.training.methods import plan_units
from tests.conftest import Synthetic


@pytest.mark.long
def test_two_processes_train_one_network(synthetic: Synthetic, tmp_path: Path, ray_session: RaySession) -> None:
    training = Training(methods=("convnext-small",), folds=3, quick=True, options=("epochs=1",))
    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), training)
    prepare_run(job, plan_units(job.training, job.plan.encoders), None, None, None)
    unit = Unit("her2-3way", "convnext-small", "thumbnail-224", 0)
    result = run_data_parallel(replace(ray_session, gpus=0), job, unit, workers=2)
    assert result == unit.name
    rows = job.run.read_unit_table(unit, "predictions").to_pylist()
    assert rows
    assert all(sum(row["p"]) == pytest.approx(1, abs=1e-4) for row in rows)


@pytest.mark.long
def test_an_error_is_returned_and_ends_only_its_unit(
    synthetic: Synthetic, tmp_path: Path, ray_session: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_parallel, "MAX_RESTARTS", 0)  # each try takes ten seconds
    training = Training(methods=("convnext-small",), folds=3, quick=True, options=("epochs=1",))
    job = open_job(
        TrainingRequest(synthetic.cohort, tmp_path / "run"), training
    )  # nothing prepared: no labels to be read
    unit = Unit("her2-3way", "convnext-small", "thumbnail-224", 0)
    result = run_data_parallel(replace(ray_session, gpus=0), job, unit, workers=2)
    assert isinstance(result, Exception)
    assert "labels" in str(result)
