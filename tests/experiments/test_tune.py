"""A search: trials judged on validation parts alone, a table of them, the best tested and bundled."""

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
def test_a_search_ends_in_a_bundle(synthetic: Synthetic, tmp_path: Path, ray_session: RaySession) -> None:
    study = TrainingRequest(synthetic.cohort, tmp_path / "run")
    found = tune(study, SEARCH, 2, 1, TrainingResources(workers=1))
    assert found.exit_code == 0, found.trained.failed
    rows = TrainingRun(tmp_path / "run").read("trials").to_pylist()
    assert len(rows) == 2
    assert all(set(json.loads(row["settings"])) >= {"lr", "dropout"} for row in rows)
    best = min(rows, key=lambda row: row["val_loss"])
    assert json.loads(best["settings"]) == found.best
    assert (tmp_path / "run" / "bundle" / "bundle.toml").is_file()
    again = tune(study, SEARCH, 2, 1, TrainingResources(workers=1))  # resumes: nothing is tried anew
    assert again.trials.equals(found.trials)


def test_the_test_part_is_not_there_while_it_searches(synthetic: Synthetic, tmp_path: Path) -> None:
    """rehearse() trains with the unit's training and validation positions only: its lesson knows no other rows."""
    from her2batch.experiments.prepare import prepare_run
    from her2batch.experiments.train import open_job
    from her2batch.experiments.units import _training_data, unit_slides
    from her2batch.store.training_run import Unit
    from her2batch.training.methods import plan_units

    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), SEARCH)
    prepare_run(job, plan_units(job.training, job.plan.encoders), None, None, None)
    unit = Unit("her2-3way", "clam-sb", "stain", 0)
    part = unit_slides(job.run, unit)
    lesson = _training_data(job, unit, part)
    used = {lesson.data.slide_ids[k] for k in (*lesson.fold.train, *lesson.fold.val)}
    assert not used & {part.slide_ids[k] for k in part.rows("test")}


@pytest.mark.parametrize("methods", [("svm",), ("clam-sb", "clam-mb")])
def test_what_can_not_be_searched_is_refused(methods: tuple[str, ...], synthetic: Synthetic, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"inside each fold|one task"):
        tune(
            TrainingRequest(synthetic.cohort, tmp_path / "run"),
            Training(methods=methods, folds=3),
            2,
            1,
            TrainingResources(workers=1),
        )
