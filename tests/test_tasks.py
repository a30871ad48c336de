"""Tasks: the class of a label, and the slides that a task applies to, in training as in scoring."""

import pyarrow as pa
import pytest

from her2batch.store.labels import COLUMNS, LABELS_SCHEMA, label_slides
from her2batch.tasks import CLASSES, STAINS, her2_class, ihc_score, task_applies

HER2 = {"her2-4way", "her2-5way", "her2-3way", "her2-binary"}
APPLIES = {
    "her2": HER2, "er": {"er"}, "pr": {"pr"}, "ki67": set(), "he": set(), "ihc": HER2, None: HER2,
}  # fmt: skip
"""Stain → tasks."""

CASES = [(task, stain) for task in CLASSES for stain in APPLIES]


def test_every_stain_is_decided() -> None:
    assert APPLIES.keys() == {*STAINS, None}


@pytest.mark.parametrize(("task", "stain"), CASES)
def test_a_task_applies_to_slides_of_its_own_stain(task: str, stain: str | None) -> None:
    assert task_applies(task, stain) == (task in APPLIES[stain])


@pytest.mark.parametrize("by", ["labels", "slides table", "labels against the slides table"])
@pytest.mark.parametrize(("task", "stain"), CASES)
def test_training_takes_the_slides_that_a_task_applies_to(task: str, stain: str | None, by: str) -> None:
    """The stain of the labels counts; the slides table's where the labels give none."""
    label = {**dict.fromkeys(COLUMNS), "slide_id": "s", "her2": "3+", "er": "+", "pr": "-"}
    row = {"status": "done", "n_tiles": 5, "stain": stain}
    if by != "slides table":
        label["stain"] = stain
    if by == "labels against the slides table" and stain is not None:
        row["stain"] = next(one for one in STAINS if task_applies(task, one) != task_applies(task, stain))
    used, excluded = label_slides(pa.Table.from_pylist([label], LABELS_SCHEMA), task, {"s": row})
    assert (len(used) == 1) == task_applies(task, stain)
    assert excluded["reason"].to_pylist() == ([] if task_applies(task, stain) else ["other-stain"])


@pytest.mark.parametrize(("ihc", "ish", "binary", "three"), [
    ("0", None, "negative", "0"), ("1+", None, "negative", "low"), ("2+", "-", "negative", "low"),
    ("2+", "+", "positive", "high"), ("2+", None, None, None), ("3+", None, "positive", "high"),
])  # fmt: skip
def test_ihc_and_ish_give_the_class(ihc: str, ish: str | None, binary: str | None, three: str | None) -> None:
    assert her2_class("her2-4way", ihc, ish) == ihc
    assert her2_class("her2-binary", ihc, ish) == binary
    assert her2_class("her2-3way", ihc, ish) == three


@pytest.mark.parametrize(("ihc", "detail", "five"), [
    ("0", "null", "null"), ("0", "ultralow", "ultralow"), ("0", None, None), ("1+", None, "1+"), ("2+", None, "2+"),
    ("3+", None, "3+"),
])  # fmt: skip
def test_the_sub_score_divides_0_and_nothing_else(ihc: str, detail: str | None, five: str | None) -> None:
    assert her2_class("her2-5way", ihc, None, detail) == five
    for task in ("her2-4way", "her2-3way", "her2-binary"):
        assert her2_class(task, ihc, "-", detail) == her2_class(task, ihc, "-")


def test_every_class_of_scores_has_an_ihc_score() -> None:
    assert [ihc_score(name) for name in CLASSES["her2-5way"]] == ["0", "0", "1+", "2+", "3+"]
    assert all(ihc_score(name) == name for name in CLASSES["her2-4way"])


def test_other_tasks_have_no_her2_class() -> None:
    with pytest.raises(ValueError, match="er is no HER2 task"):
        her2_class("er", "3+", None)
