"""Predictions of a bundle for a slide: tasks of its stain, temperature, plausible classes, reasons for review."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.models.bundle import BundleInfo, ModelEntry, check_bundle_fits
from her2batch.models.mil_registry import build_mil_network
from her2batch.models.predictor import BundlePredictor, SlideFeatures, apply_temperature, plausible_classes
from her2batch.settings import MilSettings, Plan
from her2batch.tasks import CLASSES, STAINS, task_applies
from tests.models.bundles import bundle_of

DIM = 12


def entry(task: str, method: str, **more: object) -> ModelEntry:
    usual = {"kind": "mil", "input": "stain", "dim": DIM, "file": f"{task}.{method}.safetensors", "threshold": 0.3}
    return ModelEntry(task=task, method=method, classes=CLASSES[task], **{**usual, **more})


@pytest.fixture
def predictor(tmp_path: Path) -> BundlePredictor:
    entries = (entry("her2-3way", "clam-mb"), entry("er", "dtfd-afs", threshold=None))
    torch.manual_seed(0)
    nets = {one.file: build_mil_network(one.method, DIM, len(one.classes), MilSettings()) for one in entries}
    info = BundleInfo(
        her2batch="0.1.0", tasks=("her2-3way", "er"), encoder="stain", mpp=0.5, tile=224, licence="none", models=entries
    )
    return BundlePredictor(bundle_of(tmp_path / "bundle", info, nets))


BAG = np.random.default_rng(0).normal(size=(9, DIM)).astype(np.float16)


@pytest.mark.parametrize(("stain", "tasks"), [
    ("her2", ["her2-3way"]), ("ihc", ["her2-3way"]), (None, ["her2-3way"]), ("er", ["er"]), ("pr", []), ("he", []),
])  # fmt: skip
def test_only_tasks_of_the_stain_are_predicted(stain: str | None, tasks: list[str], predictor: BundlePredictor) -> None:
    rows, attention = predictor(SlideFeatures(stain, (), {"stain": BAG}))
    assert [row["task"] for row in rows] == tasks
    for key, shares in attention.items():
        assert key[0] in tasks
        assert shares.shape == (9,)
        assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert all(task_applies(task, stain) for task in tasks)


@pytest.mark.parametrize("stain", [*STAINS, None])
def test_a_bundle_gives_the_predictions_that_apply_to_the_stain(stain: str | None, tmp_path: Path) -> None:
    """All tasks, all stains: the same decision as in training."""
    usual = {"kind": "thumbnail", "input": "thumbnail-224", "dim": None}
    entries = tuple(entry(task, "resnet50", file=f"{task}.safetensors", **usual) for task in CLASSES)
    info = BundleInfo(her2batch="0.1.0", tasks=tuple(CLASSES), licence="none", models=entries)
    bundle = bundle_of(tmp_path / "bundle", info, {one.file: torch.nn.Linear(1, 1) for one in entries})
    p = {(one.task, one.method, one.input): np.full(len(one.classes), 0.1, np.float32) for one in entries}
    rows, _ = BundlePredictor(bundle)(SlideFeatures(stain, thumbnails=p))
    assert [row["task"] for row in rows] == [task for task in CLASSES if task_applies(task, stain)]


def test_a_row_has_the_columns_of_the_table(predictor: BundlePredictor) -> None:
    row = predictor(SlideFeatures("her2", (), {"stain": BAG}))[0][0]
    assert row["classes"] == ["0", "low", "high"]
    assert sum(row["p"]) == pytest.approx(1, abs=1e-5)
    assert row["predicted"] == row["classes"][int(np.argmax(row["p"]))]
    assert row["predicted"] in row["plausible"]


@pytest.mark.parametrize(("features", "reason"), [
    (SlideFeatures("her2", ("blurred",), {"stain": BAG}), "blurred"),
    (SlideFeatures("ihc", (), {"stain": BAG}), "marker-presumed"),
    (SlideFeatures("er", (), {"stain": BAG}), "uncalibrated"),
])  # fmt: skip
def test_reasons_for_review_are_given(features: SlideFeatures, reason: str, predictor: BundlePredictor) -> None:
    row = predictor(features)[0][0]
    assert reason in row["reasons"]
    assert row["review"] or reason == "marker-presumed"


def test_a_slide_without_tiles_gets_no_row(predictor: BundlePredictor) -> None:
    assert predictor(SlideFeatures("her2", (), {"stain": BAG[:0]})) == ([], {})
    assert predictor(SlideFeatures("her2")) == ([], {})


def test_a_cohort_of_other_embeddings_is_refused(predictor: BundlePredictor) -> None:
    check_bundle_fits(predictor.bundle, Plan())
    with pytest.raises(InputError, match="--encoder stain"):
        check_bundle_fits(predictor.bundle, Plan(encoders=("uni",)))
    with pytest.raises(InputError, match=r"--mpp 0\.5 --tile 224"):
        check_bundle_fits(predictor.bundle, Plan(tile=256))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.floats(0.1, 10))
def test_temperature_keeps_the_order_and_the_sum(weights: list[float], temperature: float) -> None:
    p = np.array(weights, np.float32) / np.float32(sum(weights))
    out = apply_temperature(p, temperature)
    assert out.sum() == pytest.approx(1, abs=1e-5)
    assert out[int(p.argmax())] == pytest.approx(out.max(), rel=1e-5)
    assert np.allclose(apply_temperature(p, 1.0), p, atol=1e-5)


def test_plausible_classes_are_those_above_the_threshold() -> None:
    p = np.array([0.1, 0.5, 0.4], np.float32)
    assert plausible_classes(p, 0.3) == [1, 2]
    assert plausible_classes(p, 0.9) == [1]
    assert plausible_classes(p, None) == [0, 1, 2]
