"""Names of tasks and stains for readers."""

import pytest

from her2batch.task_names import stain_name, task_name
from her2batch.tasks import CLASSES, STAINS


def test_every_built_in_task_and_stain_has_a_name() -> None:
    assert all(task_name(task) != task for task in CLASSES)
    assert all(stain_name(stain) != stain for stain in STAINS)


@pytest.mark.parametrize(("task", "name"), [("her2-4way", "IHC score"), ("ki67", "Ki-67"), ("grade", "grade")])
def test_a_task_of_the_users_own_is_called_by_its_key(task: str, name: str) -> None:
    assert task_name(task) == name


def test_a_slide_without_a_stain_has_an_unknown_marker() -> None:
    assert stain_name(None) == stain_name("ihc") == "marker not known"
