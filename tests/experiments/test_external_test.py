"""A bundle is tested on other cohorts in the command that trains it; nobody is in training and test."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import her2batch as h2
from her2batch.errors import InputError
from her2batch.experiments.external_test import TestCohort, pair_test_cohorts
from her2batch.experiments.train import TrainingRequest, train
from her2batch.settings import Training, TrainingResources
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.tables.runs import run_schema
from tests.experiments.test_own_tasks import TASKS, ki67_cohort, sheet
from tests.training import stores

SERIAL = TrainingResources(workers=0)
IHC = ("0", "1+", "3+")


def labelled(folder: Path, n: int, seed: int, prefix: str = "P") -> TestCohort:
    """A cohort of planted bags with its labels; its patients are PREFIX0, PREFIX1, …"""
    bags, labels = stores.planted(n, seed, strength=8)
    made = stores.cohort(folder / "cohort", bags)
    rows = [f"{name},{prefix}{k},{IHC[label]},her2" for k, (name, label) in enumerate(zip(bags, labels, strict=True))]
    (folder / "labels.csv").write_text("\n".join(["slide_id,patient_id,her2,stain", *rows]))
    return TestCohort(made.root, folder / "labels.csv")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> TestCohort:
    return labelled(tmp_path_factory.mktemp("own"), 18, 0)


def run(own: TestCohort, out: Path, tests: Sequence[TestCohort], epochs: int = 1) -> object:
    request = TrainingRequest(own.cohort, out, own.labels, tests=tuple(tests))
    return train(request, Training(folds=3, options=(f"epochs={epochs}", "k=2", "lr=0.001")), SERIAL)


@pytest.mark.slow
def test_a_bundle_is_tested_on_two_cohorts_in_one_command(own: TestCohort, tmp_path: Path) -> None:
    tests = [labelled(tmp_path / name, 30 if name == "B" else 9, seed, name) for seed, name in ((1, "B"), (2, "C"))]
    result = h2.train(
        own.cohort, tmp_path / "run", labels=own.labels, folds=3, options=["epochs=2", "k=2", "lr=0.001"], workers=0,
        tests={test.cohort: test.labels for test in tests},
    )  # fmt: skip
    assert result["exit_code"] == 0
    table = pq.read_table(tmp_path / "run" / "test_predictions.parquet").to_pylist()
    assert [row["cohort"] for row in table] == [str(tests[0].cohort)] * 30 + [str(tests[1].cohort)] * 9
    found = {(row["cohort"], row["metric"]): row for row in result["tests"] if row["class"] is None}
    large, small = str(tests[0].cohort), str(tests[1].cohort)
    right = np.mean([row["predicted"] == row["truth"] for row in table if row["cohort"] == large])
    assert found[large, "accuracy"]["value"] == pytest.approx(right)
    assert found[large, "auc"]["low"] <= found[large, "auc"]["value"] <= found[large, "auc"]["high"]
    assert (found[large, "auc"]["n"], found[small, "auc"]["n"]) == (30, 9)
    assert found[small, "auc"]["value"] is None  # three slides of a class
    assert found[small, "f1"]["value"] is not None
    words = re.sub(r"<[^>]+>|\s+", " ", (tmp_path / "run" / "report.html").read_text())
    for name, auc in ((large, f"{100 * found[large, 'auc']['value']:.2f} ("), (small, "too few")):
        part = words.split(f"Test on another cohort: {name}")[1].split("RUN/test_metrics.parquet")[0]
        assert f"clam-sb stain {auc}" in re.sub(r"\s+", " ", part)


def test_a_finished_run_can_be_tested_later(own: TestCohort, tmp_path: Path) -> None:
    run(own, tmp_path / "run", [])
    before = (tmp_path / "run" / "predictions.parquet").read_bytes()
    run(own, tmp_path / "run", [labelled(tmp_path / "B", 9, 1, "B")])
    assert (tmp_path / "run" / "predictions.parquet").read_bytes() == before
    for name in ("test_predictions", "test_metrics"):
        table = pq.read_table(tmp_path / "run" / f"{name}.parquet")
        assert table.num_rows > 0
        assert table.schema.equals(run_schema(name))


@pytest.mark.slow
def test_an_own_task_and_a_number_are_tested(tmp_path: Path) -> None:
    made, index = ki67_cohort(tmp_path / "cohort", 18, 0)
    other, values = ki67_cohort(tmp_path / "other", 12, 1)
    labels = sheet(tmp_path / "labels.csv", index)
    text = sheet(tmp_path / "other.csv", values).read_text().replace(",Ps", ",Qs")
    (tmp_path / "other.csv").write_text(text)
    result = h2.train(
        made.root, tmp_path / "run", labels=labels, task_file=TASKS, tasks=["ki67-3way", "ki67-index"], folds=3,
        options=["epochs=1", "k=2"], workers=0, tests={other.root: tmp_path / "other.csv"},
    )  # fmt: skip
    metrics = {(row["task"], row["metric"]) for row in result["tests"]}
    assert {
        ("ki67-3way", "accuracy"),
        ("ki67-index", "c_index"),
        ("ki67-index", "r2"),
        ("ki67-index", "mae"),
    } <= metrics


def refused(own: TestCohort, folder: Path, test: TestCohort) -> str:
    with pytest.raises(InputError) as caught:
        run(own, folder / "run", [test])
    assert not (folder / "run" / "units").exists()
    return str(caught.value)


def test_what_cannot_be_tested_is_refused_before_the_training(own: TestCohort, tmp_path: Path) -> None:
    same = labelled(tmp_path / "same", 9, 1, "P")
    assert "patient P0 is in training and test (9 patients)" in refused(own, tmp_path, same)
    other = labelled(tmp_path / "other", 9, 1, "Q")
    made, first = Cohort(other.cohort), Cohort(own.cohort)
    assert "has no labels; give --test-labels FILE" in refused(own, tmp_path, TestCohort(other.cohort))
    for cohort, slide_id in ((made, "s004"), (first, "s007")):
        write_row(cohort, {**cohort.rows()[slide_id], "sha256": "ab" * 32})
    assert "slide s004 is the slide s007 that the run trains on" in refused(own, tmp_path, other)
    for row in made.rows().values():
        write_row(made, {**row, "sha256": None, "stain": "he"})
    assert "her2-3way applies to none of its slides" in refused(own, tmp_path, other)


def test_labels_belong_to_their_cohorts_in_order() -> None:
    pairs = pair_test_cohorts([Path("B"), Path("C")], [Path("b.csv"), Path("c.csv")])
    assert [(test.cohort.name, test.labels) for test in pairs] == [("B", Path("b.csv")), ("C", Path("c.csv"))]
    assert pair_test_cohorts([Path("B")], [])[0].labels is None
    with pytest.raises(InputError, match="--test-labels is given 1 times, --test 2 times"):
        pair_test_cohorts([Path("B"), Path("C")], [Path("b.csv")])
