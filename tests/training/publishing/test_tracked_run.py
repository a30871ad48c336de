"""A training run as trackers get it: what is measured, and nothing that names a slide, a patient or a folder."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit
from her2batch.training.publishing.tracked_run import read_tracked_run

SETTINGS = {
    "cohort": "/scans/OUT-jane-doe",
    "labels": "/labels/jane-doe.csv",
    "plan": {"mpp": 0.5, "tile": 224, "encoders": ["stain"]},
    "training": {"tasks": ["her2-binary"], "methods": ["clam-sb"], "folds": 10, "options": ["lr=0.001"]},
}


def make_run(root: Path, folds: int = 2) -> TrainingRun:
    """A run with one trained method, whose first slide of each fold is predicted rightly and whose second is not."""
    run = TrainingRun(root)
    run.open_or_create(SETTINGS)
    for fold in [*range(folds), FINAL_FOLD]:
        add_unit(run, fold)
    return run


def add_unit(run: TrainingRun, fold: int) -> None:
    unit = Unit("her2-binary", "clam-sb", "stain", fold)
    columns = {"epoch": [1, 2, 3], "train_loss": [0.9, 0.6, 0.5], "val_loss": [0.8, 0.7, 0.75]}
    run.write_unit_table(unit, "history", pa.table(columns))
    rows = [
        {**_key(fold), "slide_id": f"jane-doe-{k}", "truth": truth, "p": [0.9, 0.1], "predicted": "negative"}
        for k, truth in enumerate(("negative", "positive"))
    ]
    run.commit(unit, pa.Table.from_pylist(rows if fold != FINAL_FOLD else [], run_schema("predictions")))


def _key(fold: int) -> dict:
    return {"task": "her2-binary", "method": "clam-sb", "input": "stain", "fold": fold}


def test_every_unit_has_its_losses_parameters_and_metrics(tmp_path: Path) -> None:
    tracked = read_tracked_run(make_run(tmp_path / "run"))
    first, _, final = tracked.units
    assert first.losses == [(0.9, 0.8), (0.6, 0.7), (0.5, 0.75)]
    assert first.metrics["accuracy"] == 0.5
    assert first.metrics["n"] == 2
    assert first.parameters == {
        "task": "her2-binary", "method": "clam-sb", "input": "stain", "fold": "00", "lr": "0.001"
    }  # fmt: skip
    assert final.metrics == {}
    assert len(final.losses) == 3
    assert tracked.metrics["her2-binary.clam-sb.stain.accuracy_mean"] == 0.5
    assert tracked.parameters["folds"] == "10"
    assert tracked.parameters["plan.encoders"] == "stain"


def test_trials_of_a_search_are_units(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", folds=1)
    done = {**_key(0), "trial": "a1", "settings": json.dumps({"lr": 0.01}), "val_loss": 0.4, "status": "done"}
    failed = {**done, "trial": "a2", "val_loss": None, "status": "failed"}
    run.write("trials", pa.Table.from_pylist([done, failed], run_schema("trials")))
    trial = read_tracked_run(run).units[-1]
    assert (trial.name, trial.parameters["lr"], trial.metrics) == ("trial.a1", "0.01", {"val_loss": 0.4})


def test_no_slide_patient_or_folder_is_named(tmp_path: Path) -> None:
    assert "jane" not in repr(read_tracked_run(make_run(tmp_path / "run")))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training run"):
        read_tracked_run(TrainingRun(tmp_path))
