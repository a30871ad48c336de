"""Tests of one unit: an image network, a patch network, a count classifier. Each commits its own predictions."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.experiments.prepare import prepare_run
from her2batch.experiments.train import TrainingRequest, open_job
from her2batch.experiments.units import TrainingJob, run_unit, tissue_patches, unit_slides
from her2batch.settings import Training
from her2batch.store.training_run import Unit
from her2batch.training.methods import plan_units
from tests.conftest import Synthetic

INPUT = "patches-high"
TRAINING = Training(
    methods=("vit-base", "svm"), inputs=("thumbnail-224", INPUT), folds=3, quick=True, options=("epochs=2",),
    patches_per_slide=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def job(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    request = TrainingRequest(
        synthetic.cohort, tmp_path_factory.mktemp("units") / "run", annotations=synthetic.annotations
    )
    job = open_job(request, TRAINING)
    prepare_run(job, plan_units(job.training, job.plan.encoders), None, synthetic.annotations, None)
    return job


def test_a_network_is_tested_on_the_test_slides_of_its_fold(job: TrainingJob) -> None:
    unit = Unit("her2-3way", "vit-base", "thumbnail-224", 1)
    epochs = []
    assert run_unit(job, unit, on_epoch=epochs.append) == unit.name
    slides = unit_slides(job.run, unit)
    rows = job.run.read_unit_table(unit, "predictions").to_pylist()
    assert [row["slide_id"] for row in rows] == [slides.slide_ids[k] for k in slides.rows("test")]
    assert [one.epoch for one in epochs] == [1, 2]
    assert not job.run.checkpoint(unit).exists()
    before = job.run.unit(unit).joinpath("predictions.parquet").stat().st_mtime_ns
    run_unit(job, unit)  # committed: skipped
    assert job.run.unit(unit).joinpath("predictions.parquet").stat().st_mtime_ns == before


def test_patch_networks_train_on_the_training_slides_of_their_fold_only(job: TrainingJob) -> None:
    """No patch of a test or validation slide is in the training split."""
    from her2batch.experiments.units import _patch_data

    unit = Unit("her2-4way", "convnext-small", INPUT, 0)
    slides = unit_slides(job.run, unit)
    inputs = _patch_data(job, unit, slides)
    assert set(slides.split[inputs.positions[inputs.fold.train]]) == {"train"}
    assert set(slides.split[inputs.positions[inputs.fold.val]]) == {"val"}
    patients = {row["slide_id"]: row["patient_id"] for row in job.run.read("labels").to_pylist()}
    trained = {patients[slides.slide_ids[k]] for k in inputs.positions[inputs.fold.train]}
    tested = {patients[slides.slide_ids[k]] for k in slides.rows("test")}
    assert not trained & tested


def test_count_classifiers_use_the_patch_network_of_their_fold(job: TrainingJob) -> None:
    patch_unit, unit = Unit("her2-4way", "convnext-small", INPUT, 0), Unit("her2-3way", "svm", INPUT, 0)
    run_unit(job, patch_unit)
    counts = job.run.read_unit_table(patch_unit, "counts").to_pylist()
    assert len(counts) == len(unit_slides(job.run, patch_unit).slide_ids)
    assert all(sum(row["features"][:4]) == pytest.approx(1) for row in counts)
    patches = job.run.read_unit_table(patch_unit, "predictions").to_pylist()
    assert {row["task"] for row in patches} == {"her2-4way"}
    run_unit(job, unit)
    rows = job.run.read_unit_table(unit, "predictions").to_pylist()
    slides = unit_slides(job.run, unit)
    assert [row["slide_id"] for row in rows] == [slides.slide_ids[k] for k in slides.rows("test")]
    assert (job.run.unit(unit) / "model.skops").is_file()


def test_cached_tissue_patches_equal_those_of_the_pyramid(job: TrainingJob, tmp_path: Path) -> None:
    slide_id = unit_slides(job.run, Unit("her2-4way", "convnext-small", INPUT, 0)).slide_ids[0]
    cached = np.concatenate(list(tissue_patches(job, INPUT, slide_id)))
    kept = job.run.cache(INPUT) / f"{slide_id}.tissue.npy"
    kept.rename(tmp_path / "away.npy")
    try:
        every = np.concatenate(list(tissue_patches(job, INPUT, slide_id)))
    finally:
        (tmp_path / "away.npy").rename(kept)
    assert len(cached) == min(6, len(every))
    assert all(any(np.array_equal(one, other) for other in every) for one in cached)
