"""Labels of several readers as soft labels, and the matrix of their disagreement."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.settings import Training
from her2batch.store.labels import apply_reviews, label_slides, read_labels, reader_truths
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import BUILTIN_TASKS
from her2batch.training.readers.targets import check_readers, estimate_disagreement, soft_targets

TASK = BUILTIN_TASKS["her2-3way"]


def readings(**slides: str) -> pa.Table:
    rows = [
        {"task": TASK.name, "slide_id": slide_id, "reader": f"r{k}", "truth": truth}
        for slide_id, truths in slides.items()
        for k, truth in enumerate(truths.split())
    ]
    return pa.Table.from_pylist(rows, run_schema("readings"))


def test_soft_labels_are_the_shares_of_the_readers() -> None:
    found = soft_targets(readings(a="0 low low", b="high"), TASK, ["a", "b", "c", "d"], np.array([1, 2, 0, -1]))
    assert found.dtype == np.float32
    assert np.allclose(found[:3], [[1 / 3, 2 / 3, 0], [0, 0, 1], [1, 0, 0]])


def test_the_matrix_compares_each_reader_with_the_others_on_the_training_slides() -> None:
    table = readings(a="0 low low", b="0 0", c="high", d="high high")
    found = estimate_disagreement(table, TASK, {"a", "b", "c"})
    # a: 0 against low; low against 0 and low, by half, twice.  b: twice 0 against 0.  One agreeing reading a row.
    counts = np.array([[1 + 2, 1, 0], [1, 1 + 1, 0], [0, 0, 1]])
    assert np.allclose(found, counts / counts.sum(axis=1, keepdims=True))


def test_slides_with_one_reader_are_not_enough() -> None:
    for training in (Training(readers="soft"), Training(disagreement="readers")):
        with pytest.raises(InputError, match="needs slides that several readers have read, and her2-3way has none"):
            check_readers(training, readings(a="0", b="high"))
        check_readers(training, readings(a="0 0"))
    check_readers(Training(), readings())


def test_a_reader_has_the_class_that_his_labels_give_with_the_ish_result_of_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,reader,her2,ish\na,A,2+,+\na,B,1+,\na,C,,\na,D,2+,\nb,A,0,\nc,A,2+,\nc,B,3+,\n")
    labels = read_labels(path)
    labelled, _ = label_slides(labels, TASK, {})
    assert dict(zip(labelled["slide_id"].to_pylist(), labelled["truth"].to_pylist(), strict=True)) == {
        "a": "high", "b": "0"
    }  # fmt: skip
    found = [(row["slide_id"], row["reader"], row["truth"]) for row in reader_truths(labels, TASK, {"a", "b"})]
    assert found == [("a", "A", "high"), ("a", "B", "low"), ("a", "D", "high"), ("b", "A", "0")]


def test_a_review_takes_the_place_of_the_readers(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,reader,her2,er\na,A,2+,+\na,B,1+,+\n")
    review = {"number": 1, "slide_id": "a", "task": "her2-4way", "label": "3+", "verdict": "corrected",
              "reviewer": "R", "time": "2026-01-01T00:00:00+00:00", "supersedes": None}  # fmt: skip
    labels, _ = apply_reviews(read_labels(path), [review], {"a": {"patient_id": None}})
    assert labels["her2"].to_pylist() == ["3+"]
    assert reader_truths(labels, "her2-4way", {"a"}) == []
    assert [row["truth"] for row in reader_truths(labels, "er", {"a"})] == ["positive", "positive"]
