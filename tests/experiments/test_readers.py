"""Training on the labels of several readers: what the networks learn from, and what a run keeps."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from her2batch.experiments.train import TrainingRequest, open_job, train
from her2batch.experiments.units import UnitSlides, _training_data, unit_slides
from her2batch.settings import Training, TrainingResources
from her2batch.store.training_run import TrainingRun, Unit
from her2batch.tasks import BUILTIN_TASKS, IHC_SCORES
from her2batch.training.readers.targets import estimate_disagreement
from tests.conftest import Synthetic


def write_readers(labels: Path, path: Path) -> Path:
    """Write the labels of three readers: one of them calls every second slide a class lower."""
    with labels.open() as file:
        rows = list(csv.DictReader(file))
    written = []
    for k, row in enumerate(rows):
        for reader in "ABC":
            lower = reader == "C" and k % 2 and row["her2"] in IHC_SCORES[1:]
            her2 = IHC_SCORES[IHC_SCORES.index(row["her2"]) - 1] if lower else row["her2"]
            written.append({**row, "her2": her2, "reader": reader})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "reader"])
        writer.writeheader()
        writer.writerows(written)
    return path


@pytest.mark.slow
def test_networks_learn_from_the_shares_of_the_readers(synthetic: Synthetic, tmp_path: Path) -> None:
    sheet = write_readers(synthetic.labels, tmp_path / "readers.csv")
    training = Training(folds=3, quick=True, options=("epochs=1",), readers="soft")
    out = tmp_path / "run"
    found = train(TrainingRequest(synthetic.cohort, out, sheet), training, TrainingResources(workers=0))
    assert found.exit_code == 0, found.failed
    run = TrainingRun(out)
    readings = run.read("readings").to_pylist()
    labelled = {row["slide_id"]: row["truth"] for row in run.read("labels").to_pylist()}
    assert {row["slide_id"] for row in readings} == set(labelled)
    job, unit = (
        open_job(TrainingRequest(synthetic.cohort, out, sheet), training),
        Unit("her2-3way", "clam-sb", "stain", 0),
    )
    slides: UnitSlides = unit_slides(run, unit)
    inputs = _training_data(job, unit, slides)
    for k, slide_id in zip(inputs.positions, slides.slide_ids, strict=True):
        own = [row["truth"] for row in readings if row["slide_id"] == slide_id]
        shares = [own.count(name) / len(own) for name in ("0", "low", "high")]
        assert inputs.fold.targets[k].tolist() == pytest.approx(shares)
    assert (inputs.fold.targets[inputs.positions].max(axis=1) < 1).any()

    smoothed = _training_data(replace(job, training=Training(folds=3, disagreement="readers")), unit, slides).fold
    parts = {slides.slide_ids[k] for k in slides.rows("train")}
    matrix = estimate_disagreement(run.read("readings"), BUILTIN_TASKS["her2-3way"], parts)
    assert 0 < matrix[1, 0] < matrix[1, 1]
    assert smoothed.targets[inputs.positions].tolist() == matrix[slides.labels].tolist()
