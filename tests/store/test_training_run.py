"""Tests of the run folder: resumed with the same settings only; predictions commit a unit."""

import multiprocessing
from pathlib import Path

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit

UNIT = Unit("her2-3way", "clam-sb", "timm:resnet18.a1_in1k", 3)


def test_a_run_resumes_with_the_same_settings_only(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    run.open_or_create({"training": {"folds": 10, "seed": 0}})
    run.open_or_create({"training": {"folds": 10, "seed": 0}})
    run.unit(UNIT).mkdir(parents=True)
    with pytest.raises(InputError, match=r"other settings \(training\.folds, weights\)"):
        run.open_or_create({"training": {"folds": 5, "seed": 0}, "weights": "w"})


def test_a_run_that_trained_nothing_is_replaced(tmp_path: Path) -> None:
    """It may have stopped on what it was given; the next command gives something else."""
    run = TrainingRun(tmp_path / "run")
    run.open_or_create({"labels": "wrong.csv"})
    run.write("folds", run_schema("folds").empty_table())
    run.open_or_create({"labels": "right.csv"})
    assert run.read_settings()["labels"] == "right.csv"
    assert not run.table("folds").exists()


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(StoreError, match="is not a run"):
        TrainingRun(tmp_path).open_or_create({})
    with pytest.raises(InputError, match="no training run here"):
        TrainingRun(tmp_path).read_settings()
    (tmp_path / "run.toml").write_text("format = 99")
    with pytest.raises(InputError, match="format 99"):
        TrainingRun(tmp_path).read_settings()
    (tmp_path / "run.toml").write_text("format = ")
    with pytest.raises(InputError, match="not valid TOML"):
        TrainingRun(tmp_path).read_settings()


def test_unit_names_are_valid_file_names() -> None:
    assert UNIT.name == "her2-3way.clam-sb.timm-resnet18.a1_in1k.03"
    assert Unit("er", "vit-base", "thumbnail-224", FINAL_FOLD).name == "er.vit-base.thumbnail-224.final"


def test_predictions_commit_a_unit(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    run.open_or_create({})
    run.unit(UNIT).mkdir(parents=True)
    run.checkpoint(UNIT).write_bytes(b"half way")
    run.write_unit_table(UNIT, "attention", run_schema("attention").empty_table())
    assert not run.is_done(UNIT)
    run.commit(UNIT, run_schema("predictions").empty_table())
    assert run.is_done(UNIT)
    assert not run.checkpoint(UNIT).exists()
    assert run.read_unit_table(UNIT, "attention").schema == run_schema("attention")
    (run.unit(UNIT) / "attention.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="then resume"):
        run.read_unit_table(UNIT, "attention")


def hold(root: Path, held: object, done: object) -> None:
    with TrainingRun(root).lock():
        held.set()
        done.wait(20)


def test_a_run_has_one_driver(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", held, done))
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(StoreError, match=f"pid {other.pid}"), TrainingRun(tmp_path / "run").lock():
            pass
    finally:
        done.set()
        other.join()
    with TrainingRun(tmp_path / "run").lock():
        pass


def test_a_table_that_a_run_lacks_is_read_without_rows_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path)
    assert run.read_or_empty("trials").schema == run_schema("trials")
    assert run.read_or_empty("trials").num_rows == 0
    run.table("trials").write_bytes(b"no table")
    with pytest.raises(InputError, match="can't be read"):
        run.read_or_empty("trials")
