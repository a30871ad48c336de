"""Fusion: out-of-fold only, no label of a fold decides its predictions, better than weak bases where they differ."""

import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.experiments.train import TrainingRequest, train
from her2batch.models.bundle import read_bundle
from her2batch.models.fusion.stack import fuse
from her2batch.runtime.score import score
from her2batch.settings import Resources, Training, TrainingResources
from her2batch.store.cohort import Cohort
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import TrainingRun
from her2batch.tasks import BUILTIN_TASKS
from her2batch.training.fusion.stacking import base_predictions, final_stack, with_fusion
from her2batch.training.methods import plan_units
from her2batch.training.metrics import metrics_table
from tests.conftest import Synthetic

TASK = BUILTIN_TASKS["her2-3way"]


def predictions(seed: int, n: int = 60, folds: int = 5) -> pa.Table:
    """Two methods that are right independently of each other, one of which lacks every seventh slide."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    rows = []
    for method in ("clam-sb", "resnet50"):
        logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        rows += [
            {"task": TASK.name, "method": method, "input": "stain", "fold": k % folds, "slide_id": f"s{k:02}",
             "truth": TASK.classes[labels[k]], "p": p[k].tolist(), "predicted": TASK.classes[p[k].argmax()]}
            for k in range(n) if method == "clam-sb" or k % 7
        ]  # fmt: skip
    return pa.Table.from_pylist(rows, run_schema("predictions"))


def fused(table: pa.Table) -> dict[str, dict]:
    rows = with_fusion(table, [TASK]).to_pylist()
    return {row["slide_id"]: row for row in rows if row["method"] == "fusion"}


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_a_fold_do_not_change_its_predictions(seed: int) -> None:
    table = predictions(seed)
    own = fused(table)
    rows = table.to_pylist()
    tested = sorted({row["slide_id"] for row in rows if row["fold"] == 2})
    truths = random.Random(seed).sample([own[slide_id]["truth"] for slide_id in tested], len(tested))
    given = dict(zip(tested, truths, strict=True))
    permuted = [row | {"truth": given.get(row["slide_id"], row["truth"])} for row in rows]
    again = fused(pa.Table.from_pylist(permuted, table.schema))
    assert [again[slide_id]["p"] for slide_id in tested] == [own[slide_id]["p"] for slide_id in tested]
    assert any(again[slide_id]["p"] != own[slide_id]["p"] for slide_id in own if slide_id not in tested)


def test_every_slide_is_predicted_once_and_the_fusion_of_independent_methods_is_better() -> None:
    table = with_fusion(predictions(0, n=200), [TASK])
    assert len([row for row in table.to_pylist() if row["method"] == "fusion"]) == 200
    metrics = metrics_table(table).to_pylist()
    auc = {method: np.mean([row["auc"] for row in metrics if row["method"] == method])
           for method in ("clam-sb", "resnet50", "fusion")}  # fmt: skip
    assert auc["fusion"] > max(auc["clam-sb"], auc["resnet50"])


@pytest.mark.parametrize("kept", [("0",), ("0", "high"), ("0", "low", "high")])
def test_classes_without_a_slide_have_small_finite_probabilities(kept: tuple[str, ...]) -> None:
    rows = [row for row in predictions(0).to_pylist() if row["truth"] in kept]
    for row in fused(pa.Table.from_pylist(rows, run_schema("predictions"))).values():
        assert sum(row["p"]) == pytest.approx(1, abs=1e-5)
        assert np.isfinite(row["p"]).all()


def test_a_prediction_that_is_missing_is_no_zero() -> None:
    data = base_predictions(predictions(0), TASK)
    assert np.isnan(data.p[::7, 1]).all()
    assert np.isfinite(data.p[:, 0]).all()


def test_rules_are_bases_of_the_slides_that_a_method_predicts() -> None:
    table = predictions(0)
    rows = [{"task": TASK.name, "method": "membrane", "slide_id": slide_id, "p": [0.0, 0.25, 0.75]}
            for slide_id in ("s00", "s07", "elsewhere")]  # fmt: skip
    rules = pa.Table.from_pylist(rows, run_schema("rules"))
    data = base_predictions(table, TASK, rules)
    assert data.bases == (("clam-sb", "stain"), ("membrane", "membrane"), ("resnet50", "stain"))
    assert "elsewhere" not in data.slide_ids
    assert {data.slide_ids[k] for k in np.flatnonzero(~np.isnan(data.p[:, 1, 0]))} == {"s00", "s07"}
    stack = final_stack(table, TASK, rules)
    assert fuse(stack, {("membrane", "membrane"): np.array([0, 0.25, 0.75], np.float32)}).sum() == pytest.approx(1)


def test_a_rule_that_knows_the_class_improves_the_fusion() -> None:
    table = predictions(0, n=200)
    truth = {row["slide_id"]: TASK.classes.index(row["truth"]) for row in table.to_pylist()}
    rows = [{"task": TASK.name, "method": "cells", "slide_id": slide_id, "p": np.eye(3)[k] * 0.7 + 0.1}
            for slide_id, k in truth.items()]  # fmt: skip
    rules = pa.Table.from_pylist(rows, run_schema("rules"))
    right = [
        np.mean([row["predicted"] == row["truth"] for row in found.to_pylist() if row["method"] == "fusion"])
        for found in (with_fusion(table, [TASK]), with_fusion(table, [TASK], rules))
    ]
    assert right[1] > 0.97 > right[0]


@pytest.mark.parametrize("methods", [("fusion",), ("fusion", "majority-vote")])
def test_a_fusion_without_a_method_to_read_is_refused_before_training(methods: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="no other method to read"):
        plan_units(Training(methods=methods), ["stain"])


@pytest.mark.slow
def test_a_run_with_fusion_is_bundled_and_scored(synthetic: Synthetic, tmp_path: Path) -> None:
    training = Training(methods=("clam-sb", "fusion", "dtfd-afs"), folds=3, quick=True,
                        options=("epochs=3", "ordinal=corn"))  # fmt: skip
    found = train(TrainingRequest(synthetic.cohort, tmp_path / "run"), training, TrainingResources(workers=0))
    assert found.exit_code == 0, found.failed
    run = TrainingRun(tmp_path / "run")
    assert {row["method"] for row in found.summary.to_pylist()} == {"clam-sb", "dtfd-afs", "fusion"}
    bundle = read_bundle(run.bundle)
    entry = next(entry for entry in bundle.info.models if entry.kind == "fusion")
    assert entry.stack == final_stack(run.read("predictions"), TASK, run.read("rules"))
    assert ("membrane", "membrane") in entry.stack.bases
    assert {entry.ordinal for entry in bundle.info.models if entry.kind == "mil"} == {"corn"}
    shutil.copytree(synthetic.cohort, tmp_path / "scored")  # all tests share the cohort
    assert score(tmp_path / "scored", run.bundle, Resources(workers=0)).exit_code == 0
    cohort = Cohort(tmp_path / "scored")
    slide_id = run.read("labels")["slide_id"][0].as_py()
    rows = cohort.read(f"predictions/{bundle.id}", slide_id).to_pylist()
    assert [row["method"] for row in rows] == ["clam-sb", "dtfd-afs", "fusion"]
    assert sum(rows[-1]["p"]) == pytest.approx(1, abs=1e-5)
