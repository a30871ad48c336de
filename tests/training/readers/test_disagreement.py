"""Matrices of readers' disagreement: read in any order of the classes, or refused with the place and the remedy."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.experiments.units import TrainingJob, UnitSlides, _smoothed
from her2batch.settings import Training
from her2batch.store.training_run import Unit
from her2batch.tasks import Task
from her2batch.training.fit_loop import Fold
from her2batch.training.methods import plan_units
from her2batch.training.readers.disagreement import read_disagreement, with_smoothing

CLASSES = ("0", "low", "high")


def test_rows_are_reference_classes_and_sum_to_1(tmp_path: Path) -> None:
    path = tmp_path / "readers.csv"
    path.write_text("true,high,0,low\nlow,1,3,6\n0,0,9,1\nhigh,1,0,0\n")
    assert np.allclose(read_disagreement(path, CLASSES), [[0.9, 0.1, 0], [0.3, 0.6, 0.1], [0, 0, 1]])
    training = with_smoothing(Training(disagreement=str(path)))
    assert training.smoothing == {"her2-3way": read_disagreement(path, CLASSES)}


def test_every_task_has_the_matrix_in_the_order_of_its_own_classes(tmp_path: Path) -> None:
    """Two tasks with the same classes in other orders: smoothed labels follow the names of the classes."""
    path = tmp_path / "readers.csv"
    path.write_text("true,a,b\na,9,1\nb,3,7\n")
    tasks = tuple(
        Task(name=name, column="x", classes=classes, stains=("her2",))
        for name, classes in (("up", ("a", "b")), ("down", ("b", "a")))
    )
    training = with_smoothing(Training(tasks=("up", "down"), definitions=tasks, disagreement=str(path)))
    job = TrainingJob(None, None, None, training)  # type: ignore[arg-type]  # only the settings are read
    for task in tasks:
        label = np.array([task.classes.index("a")])
        slides, unit = UnitSlides(("S1",), label, np.array(["train"])), Unit(task.name, "clam-sb", "stain", 0)
        fold = _smoothed(job, unit, slides, Fold(label, label, label, 2, 0))
        assert dict(zip(task.classes, fold.targets[0].tolist(), strict=True)) == pytest.approx({"a": 0.9, "b": 0.1})


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty"),
    ("true,0,low\n0,1,0\nlow,0,1\n", "its columns are 0, low; the classes of the task are 0, low, high"),
    ("true,0,low,high\n0,1,0,0\nlow,0,1,0\nlow,0,0,1\n", "its rows are 0, low, low"),
    ("true,0,low,high\n0,1,0,0\nlow,0,x,0\nhigh,0,0,1\n", "line 3, column low: 'x' is no share"),
    ("true,0,low,high\n0,1,0,0\nlow,0,-1,0\nhigh,0,0,1\n", "line 3, column low: '-1' is no share"),
    ("true,0,low,high\n0,1,0,0\nlow,0,1\nhigh,0,0,1\n", "line 3 has 2 values for 3 classes"),
    ("true,0,low,high\n0,1,0,0\nlow,0,0,0\nhigh,0,0,1\n", "line 3 has no reading"),
])  # fmt: skip
def test_errors_name_the_line_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "readers.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_disagreement(path, CLASSES)


@pytest.mark.parametrize(("settings", "message"), [
    ({"readers": "soft", "disagreement": "readers"}, "both replace the labels"),
    ({"readers": "soft", "disagreement": "file.csv"}, "both replace the labels"),
    ({"readers": "soft", "tasks": ("ki67",)}, "ki67 is a number"),
])  # fmt: skip
def test_options_on_readers_that_cannot_be_fulfilled_are_refused(settings: dict, message: str) -> None:
    number = Task(name="ki67", column="ki67", target="number", stains=("ki67",))
    with pytest.raises(InputError, match=message):
        with_smoothing(Training(**{"definitions": (number,), **settings}))


@pytest.mark.parametrize("task", ["her2-binary", "er"])
def test_ordinal_losses_are_refused_for_classes_without_order(task: str) -> None:
    with pytest.raises(InputError, match="needs ordered classes"):
        plan_units(Training(tasks=(task,), options=("ordinal=corn",)), ["stain"])
