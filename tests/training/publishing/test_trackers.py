"""MLflow and TensorBoard get each unit of a run once, also when the command is repeated or was cut off."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import InputError
from her2batch.training.publishing import trackers
from tests.training.publishing.test_tracked_run import add_unit, make_run

pytestmark = pytest.mark.slow  # importing mlflow and tensorboard takes seconds

UNITS = ["her2-binary.clam-sb.stain.00", "her2-binary.clam-sb.stain.01", "her2-binary.clam-sb.stain.final"]


def export(*arguments: object) -> list[str]:
    """Run `export-run`, and return the units that it added."""
    result = CliRunner().invoke(app, ["export-run", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return list(json.loads(result.stdout)["added"])


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of MLflow's store of files, which stands in for a server."""
    from mlflow import MlflowClient

    address = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return MlflowClient(address)


def nested_runs(client: Any) -> dict[str, Any]:
    """The finished nested runs of the only run, by unit."""
    experiment = client.get_experiment_by_name(trackers.EXPERIMENT).experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if trackers.KEY_TAG in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return {run.data.tags[trackers.UNIT_TAG]: run for run in nested if run.info.status == "FINISHED"}


def test_mlflow_has_a_run_with_a_nested_run_for_each_unit(tmp_path: Path, client: Any) -> None:
    run = make_run(tmp_path / "run")
    assert export(run.root, "--to", "mlflow") == UNITS
    first = nested_runs(client)[UNITS[0]]
    assert first.data.metrics["accuracy"] == 0.5
    assert first.data.params["lr"] == "0.001"
    losses = client.get_metric_history(first.info.run_id, "val_loss")
    assert [(loss.step, loss.value) for loss in losses] == [(1, 0.8), (2, 0.7), (3, 0.75)]


def test_mlflow_gets_new_units_only(tmp_path: Path, client: Any) -> None:
    run = make_run(tmp_path / "run")
    export(run.root, "--to", "mlflow")
    add_unit(run, 2)
    assert export(run.root, "--to", "mlflow") == ["her2-binary.clam-sb.stain.02"]
    assert sorted(nested_runs(client)) == sorted([*UNITS, "her2-binary.clam-sb.stain.02"])


def test_a_unit_that_was_cut_off_is_sent_again(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    send, calls = trackers._log, []

    def stop_at_the_third(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        send(*arguments)

    monkeypatch.setattr(trackers, "_log", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        trackers.write_mlflow(run)
    monkeypatch.setattr(trackers, "_log", send)
    assert export(run.root, "--to", "mlflow") == UNITS[1:]
    assert sorted(nested_runs(client)) == UNITS


def test_mlflow_without_an_address_or_with_a_server_that_is_away_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", folds=1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="no MLflow server is named"):
        trackers.write_mlflow(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 failed"):
        trackers.write_mlflow(run)


def test_tensorboard_shows_losses_by_epoch_and_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, out = make_run(tmp_path / "run"), tmp_path / "events"
    assert export(run.root, "--to", "tensorboard", "--out", out) == UNITS
    assert export(run.root, "--to", "tensorboard", "--out", out) == []
    events = EventAccumulator(str(out / UNITS[0])).Reload()
    losses = events.Scalars("loss/validation")
    assert [loss.step for loss in losses] == [1, 2, 3]
    assert losses[2].value == pytest.approx(0.75)
    assert events.Scalars("metrics/accuracy")[0].value == pytest.approx(0.5)
    assert not list(out.glob(".*"))
