"""Acceptance criteria in TOML: what is accepted, and errors that name the place."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.validation.criteria import (
    DEFAULT_CRITERIA,
    criteria_sha256,
    default_criteria,
    parse_criteria,
    read_criteria,
)
from her2batch.tasks import CLASSES

ONE = 'task = "{task}"\n[[criteria]]\nname = "a"\nmeasure = "{measure}"\nat_least = {least}\n{more}\n'


@pytest.mark.parametrize("task", CLASSES)
def test_default_criteria_fit_every_task(task: str) -> None:
    criteria = parse_criteria(default_criteria(task))
    assert criteria.task == task
    assert [one.at_least for one in criteria.criteria] == [0.90, 0.90, 0.90, 0.81, 0.95]
    assert all(one.source for one in criteria.criteria)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"measure": "accuracy"}, "criteria.1.measure"),
        ({"least": 90}, "criteria.1.at_least"),
        ({"more": "least_slides = 0"}, "criteria.1.least_slides"),
        ({"more": 'of = "3+"'}, "`of` belongs to"),
        ({"measure": "positive-agreement", "more": 'of = "4+"'}, "1+, 2+, 3+"),
        ({"measure": "positive-agreement", "more": 'of = "0"'}, "1+, 2+, 3+"),
        ({"more": "least_slide = 3"}, "least_slide"),
        ({"task": "er", "measure": "category-agreement"}, "her2-4way"),
        ({"more": ONE.format(task="x", measure="kappa", least=0.5, more="").partition("\n")[2]}, "two criteria"),
    ],
)
def test_wrong_criteria_are_refused_with_the_place(values: dict[str, str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text(ONE.format(**{"task": "her2-4way", "measure": "agreement", "least": 0.9, "more": "", **values}))
    with pytest.raises(InputError, match=r"criteria\.toml: is not valid") as caught:
        read_criteria(path)
    assert named in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[[criteria]\n", b"", b"title = 'a'\n"])
def test_files_without_criteria_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "criteria.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"criteria\.toml"):
        read_criteria(path)
    with pytest.raises(InputError, match="missing"):
        read_criteria(tmp_path / "missing.toml")


def test_checksum_is_that_of_the_text() -> None:
    assert criteria_sha256(DEFAULT_CRITERIA) != criteria_sha256(DEFAULT_CRITERIA + " ")
    assert len(criteria_sha256("")) == 64


def test_documentation_shows_the_default_criteria() -> None:
    page = Path(__file__).parents[3] / "docs" / "validation.md"
    assert f"```toml\n{DEFAULT_CRITERIA}```" in page.read_text()
