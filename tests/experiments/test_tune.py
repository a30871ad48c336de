"""Tests of a hyperparameter search: trials on validation slides, a table of them, the best tested and bundled."""

import json
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from her2batch.errors import InputError
from her2batch.experiments.train import TrainingRequest
from her2batch.experiments.tune import STOP_CHECK_S, _best_settings, _search, _stop_with, tune
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Training, TrainingResources
from her2batch.store.training_run import TrainingRun, Unit
from tests.conftest import Synthetic

SEARCH = Training(methods=("clam-sb",), folds=3, quick=True, options=("epochs=2",))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_makes_a_bundle(
    synthetic: Synthetic, tmp_path: Path, ray_session: RaySession, capfd: pytest.CaptureFixture[str]
) -> None:
    request = TrainingRequest(synthetic.cohort, tmp_path / "run")
    result = tune(request, SEARCH, 2, 1, TrainingResources(workers=1))
    assert result.exit_code == 0, result.trained.failed
    rows = TrainingRun(tmp_path / "run").read("trials").to_pylist()
    assert len(rows) == 2
    assert all(set(json.loads(row["settings"])) >= {"lr", "dropout"} for row in rows)
    best = min(rows, key=lambda row: row["val_loss"])
    assert json.loads(best["settings"]) == result.best
    assert (tmp_path / "run" / "bundle" / "bundle.toml").is_file()
    tuned, untuned = (TrainingRun(tmp_path / "run").read(name).to_pylist() for name in ("metrics", "untuned_metrics"))
    assert [row["fold"] for row in tuned] == [row["fold"] for row in untuned] == [0]
    (accuracy,) = (row for row in result.gain if row["metric"] == "accuracy")
    assert accuracy["difference"] == pytest.approx(tuned[0]["accuracy"] - untuned[0]["accuracy"])
    again = tune(request, SEARCH, 2, 1, TrainingResources(workers=1))  # resumes: no trial is repeated
    assert again.trials.equals(result.trials)
    printed = capfd.readouterr()
    assert printed.out == ""  # `--json` has stdout for itself
    assert "Tune" not in printed.err
    assert "Tensorboard" not in printed.err


def trial(fold: int, lr: float, loss: float | None) -> dict:
    return {"fold": fold, "settings": json.dumps({"lr": lr}), "val_loss": loss, "trial": f"{fold}-{lr}"}


def test_the_bundle_has_the_settings_with_the_least_mean_loss() -> None:
    """The least loss of all is that of the fold whose validation slides are the easiest."""
    trials = [trial(0, 0.1, 0.20), trial(0, 0.2, 0.30), trial(1, 0.1, 0.90), trial(1, 0.2, 0.60)]
    assert _best_settings(trials, 0) == {"lr": 0.1}
    assert _best_settings(trials, 1) == {"lr": 0.2}
    assert _best_settings(trials, None) == {"lr": 0.2}


def test_settings_that_failed_in_a_fold_are_not_chosen_for_the_bundle() -> None:
    trials = [trial(0, 0.1, 0.10), trial(0, 0.2, 0.30), trial(1, 0.1, None), trial(1, 0.2, 0.60)]
    assert _best_settings(trials, None) == {"lr": 0.2}
    with pytest.raises(InputError, match="every trial failed"):
        _best_settings([trial(0, 0.1, None)], 0)


def test_a_stopped_run_ends_its_search() -> None:
    session = SimpleNamespace(stopped=threading.Event())
    ended = threading.Event()
    with _stop_with(session):
        signal.signal(signal.SIGUSR1, lambda *_: ended.set())  # as Ray Tune does
        assert not ended.wait(2 * STOP_CHECK_S)
        session.stopped.set()
        assert ended.wait(20 * STOP_CHECK_S)


def test_a_stopped_run_starts_no_further_search() -> None:
    session = SimpleNamespace(stopped=threading.Event())
    session.stopped.set()
    assert list(_search(session, None, None, 1, None)) == []


@pytest.mark.parametrize("stopped", [False, True])
def test_checkpoints_of_finished_trials_are_removed(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SimpleNamespace(stopped=threading.Event())
    job, unit = SimpleNamespace(run=TrainingRun(tmp_path)), Unit("her2-3way", "clam-sb", "stain", 0)
    folder = tmp_path / "tune" / unit.name
    folder.mkdir(parents=True)
    results = [
        SimpleNamespace(metrics={"trial_id": name}, error=error, config={})
        for name, error in (("good", None), ("bad", "no memory"))
    ]
    for name in ("good", "bad"):
        (folder / f"{name}.safetensors").touch()

    def fit() -> list:
        if stopped:
            session.stopped.set()
        return results

    monkeypatch.setattr("her2batch.experiments.tune._make_tuner", lambda *_: SimpleNamespace(fit=fit))
    rows = list(_search(session, job, unit, 2, None))
    assert [row["status"] for row in rows] == ["done", "failed"]
    left = {path.stem for path in folder.glob("*.safetensors")}
    assert left == ({"good", "bad"} if stopped else {"bad"})  # a failed trial continues with the next start


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stopped_search_continues(
    synthetic: Synthetic, tmp_path: Path, ray_session: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, stopped = TrainingRequest(synthetic.cohort, tmp_path / "run"), threading.Event()
    monkeypatch.setattr("her2batch.experiments.tune.connect", lambda resources: connect(resources, stopped))
    started = lambda: any((tmp_path / "run" / "tune").glob("*/_run_trial*"))  # noqa: E731

    def stop() -> None:
        while not started():
            time.sleep(0.1)
        stopped.set()

    threading.Thread(target=stop, daemon=True).start()
    first = tune(request, SEARCH, 2, 2, TrainingResources(workers=1))
    assert first.exit_code == 130
    assert not (tmp_path / "run" / "bundle").exists()
    stopped.clear()
    second = tune(request, SEARCH, 2, 2, TrainingResources(workers=1))
    assert second.exit_code == 0, second.trained.failed
    assert [row["fold"] for row in second.trials.to_pylist()] == [0, 0, 1, 1]
    assert all(row["val_loss"] is not None for row in second.trials.to_pylist())


def test_a_search_does_not_use_test_slides(synthetic: Synthetic, tmp_path: Path) -> None:
    """train_only() uses the unit's training and validation slides; its inputs contain no other rows."""
    from her2batch.experiments.prepare import prepare_run
    from her2batch.experiments.train import open_job
    from her2batch.experiments.units import _training_data, unit_slides
    from her2batch.training.methods import plan_units

    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), SEARCH)
    prepare_run(job, plan_units(job.training, job.plan.encoders), None, None, None)
    unit = Unit("her2-3way", "clam-sb", "stain", 0)
    slides = unit_slides(job.run, unit)
    inputs = _training_data(job, unit, slides)
    used = {inputs.data.slide_ids[k] for k in (*inputs.fold.train, *inputs.fold.val)}
    assert not used & {slides.slide_ids[k] for k in slides.rows("test")}


@pytest.mark.parametrize("methods", [("svm",), ("clam-sb", "clam-mb"), ("clam-sb", "fusion")])
def test_unsuitable_methods_are_refused(methods: tuple[str, ...], synthetic: Synthetic, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"inside each fold|one task|at least two outer folds"):
        tune(
            TrainingRequest(synthetic.cohort, tmp_path / "run"),
            Training(methods=methods, folds=3),
            2,
            1,
            TrainingResources(workers=1),
        )
