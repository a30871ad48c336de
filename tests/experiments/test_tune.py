"""Tests of a hyperparameter search: trials on validation slides, a table of them, the best tested and bundled."""

import json
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.experiments.train import TrainingRequest
from her2batch.experiments.tune import tune
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Training, TrainingResources
from her2batch.store.training_run import TrainingRun
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
    again = tune(request, SEARCH, 2, 1, TrainingResources(workers=1))  # resumes: no trial is repeated
    assert again.trials.equals(result.trials)
    printed = capfd.readouterr()
    assert printed.out == ""  # `--json` has stdout for itself
    assert "Tune" not in printed.err
    assert "Tensorboard" not in printed.err


def test_a_search_does_not_use_test_slides(synthetic: Synthetic, tmp_path: Path) -> None:
    """train_only() uses the unit's training and validation slides; its inputs contain no other rows."""
    from her2batch.experiments.prepare import prepare_run
    from her2batch.experiments.train import open_job
    from her2batch.experiments.units import _training_data, unit_slides
    from her2batch.store.training_run import Unit
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
