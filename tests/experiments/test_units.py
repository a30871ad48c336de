"""One unit: an image network, a patch network, the counts on top. Each commits its predictions, and only its own."""

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

GIVEN = "patches-high"
STUDY = Training(
    methods=("vit-base", "svm"), inputs=("thumbnail-224", GIVEN), folds=3, quick=True, options=("epochs=2",),
    patches_per_slide=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def job(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    study = TrainingRequest(
        synthetic.cohort, tmp_path_factory.mktemp("units") / "run", annotations=synthetic.annotations
    )
    job = open_job(study, STUDY)
    prepare_run(job, plan_units(job.training, job.plan.encoders), None, synthetic.annotations, None)
    return job


def test_a_network_is_tested_on_its_folds_slides(job: TrainingJob) -> None:
    unit = Unit("her2-3way", "vit-base", "thumbnail-224", 1)
    seen = []
    assert run_unit(job, unit, watch=seen.append) == unit.name
    part = unit_slides(job.run, unit)
    rows = job.run.read_unit_table(unit, "predictions").to_pylist()
    assert [row["slide_id"] for row in rows] == [part.slide_ids[k] for k in part.rows("test")]
    assert [one.epoch for one in seen] == [1, 2]
    assert not job.run.checkpoint(unit).exists()
    before = job.run.unit(unit).joinpath("predictions.parquet").stat().st_mtime_ns
    run_unit(job, unit)  # committed: left alone
    assert job.run.unit(unit).joinpath("predictions.parquet").stat().st_mtime_ns == before


def test_patch_nets_learn_from_their_folds_training_slides_alone(job: TrainingJob) -> None:
    """No patch of a slide that is tested or validated is trained on: its slide is in another split."""
    from her2batch.experiments.units import _patch_data

    unit = Unit("her2-4way", "convnext-small", GIVEN, 0)
    part = unit_slides(job.run, unit)
    lesson = _patch_data(job, unit, part)
    assert set(part.split[lesson.at[lesson.fold.train]]) == {"train"}
    assert set(part.split[lesson.at[lesson.fold.val]]) == {"val"}
    patients = {row["slide_id"]: row["patient_id"] for row in job.run.read("labels").to_pylist()}
    trained = {patients[part.slide_ids[k]] for k in lesson.at[lesson.fold.train]}
    tested = {patients[part.slide_ids[k]] for k in part.rows("test")}
    assert not trained & tested


def test_counts_stand_on_their_folds_own_patch_net(job: TrainingJob) -> None:
    net, unit = Unit("her2-4way", "convnext-small", GIVEN, 0), Unit("her2-3way", "svm", GIVEN, 0)
    run_unit(job, net)
    counts = job.run.read_unit_table(net, "counts").to_pylist()
    assert len(counts) == len(unit_slides(job.run, net).slide_ids)
    assert all(sum(row["features"][:4]) == pytest.approx(1) for row in counts)
    patches = job.run.read_unit_table(net, "predictions").to_pylist()
    assert {row["task"] for row in patches} == {"her2-4way"}
    run_unit(job, unit)
    rows = job.run.read_unit_table(unit, "predictions").to_pylist()
    part = unit_slides(job.run, unit)
    assert [row["slide_id"] for row in rows] == [part.slide_ids[k] for k in part.rows("test")]
    assert (job.run.unit(unit) / "model.skops").is_file()


def test_tissue_patches_are_the_same_from_cache_and_pyramid(job: TrainingJob, tmp_path: Path) -> None:
    slide_id = unit_slides(job.run, Unit("her2-4way", "convnext-small", GIVEN, 0)).slide_ids[0]
    cached = np.concatenate(list(tissue_patches(job, GIVEN, slide_id)))
    kept = job.run.cache(GIVEN) / f"{slide_id}.tissue.npy"
    kept.rename(tmp_path / "away.npy")
    try:
        every = np.concatenate(list(tissue_patches(job, GIVEN, slide_id)))
    finally:
        (tmp_path / "away.npy").rename(kept)
    assert len(cached) == min(6, len(every))
    assert all(any(np.array_equal(one, other) for other in every) for one in cached)
