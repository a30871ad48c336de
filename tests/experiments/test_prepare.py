"""Tests of run preparation: patches by the paper's rules, labels, folds, and messages for missing input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.experiments.prepare import cut_annotated_patches, prepare_run
from her2batch.experiments.train import TrainingRequest, open_job
from her2batch.experiments.units import TrainingJob
from her2batch.settings import Training
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.labels import read_labels
from her2batch.store.reviews import Review, append_review
from her2batch.training.methods import plan_units
from tests.conftest import Synthetic

PATCHES = Training(methods=("svm",), inputs=("patches-moderate",), folds=3, quick=True)


@pytest.fixture
def job(synthetic: Synthetic, tmp_path: Path) -> TrainingJob:
    return open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), PATCHES)


def test_annotated_patches_have_the_class_of_their_region(synthetic: Synthetic, job: TrainingJob) -> None:
    """The whole slide annotated as 2+: every patch with tissue is 2+; half of it: about half as many."""
    slide_id = next(path.stem for path in sorted(synthetic.annotations.glob("*.geojson")))
    row = job.cohort.rows()[slide_id]
    found = []
    for share in (1.0, 0.5):
        width, height = row["width"] * share, row["height"]
        ring = [[0, 0], [width, 0], [width, height], [0, height], [0, 0]]
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                   "properties": {"classification": {"name": "HER2 2+"}}}  # fmt: skip
        path = job.run.root / "a.geojson"
        path.write_text(json.dumps(feature))
        pixels, table = cut_annotated_patches(job, slide_id, path, "patches-high")
        assert pixels.shape == (len(table), 224, 224, 3)
        assert set(table["truth"].to_pylist()) == {"2+"}
        assert min(table["share"].to_pylist()) >= 0.05
        found.append(len(table))
    assert found[1] <= found[0]


def test_the_sample_of_patches_is_reproducible(synthetic: Synthetic, job: TrainingJob) -> None:
    path = sorted(synthetic.annotations.glob("*.geojson"))[0]
    one, other = (cut_annotated_patches(job, path.stem, path, "patches-high") for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert one[1].equals(other[1])
    assert len(one[1]) <= 24  # the quick profile's limit


def test_patch_methods_require_annotations(synthetic: Synthetic, job: TrainingJob, tmp_path: Path) -> None:
    work = plan_units(job.training, job.plan.encoders)
    with pytest.raises(InputError, match="--annotations"):
        prepare_run(job, work, None, None, None)
    with pytest.raises(InputError, match="no such folder"):
        prepare_run(job, work, None, tmp_path / "nowhere", None)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="has no annotations"):
        prepare_run(job, work, None, empty, None)


def test_annotations_named_after_the_slide_file_are_used_and_others_listed(
    synthetic: Synthetic, job: TrainingJob, tmp_path: Path
) -> None:
    """QuPath's project scripts write S01.svs.geojson."""
    rows = job.cohort.rows()
    for path in synthetic.annotations.glob("*.geojson"):
        shutil.copyfile(path, tmp_path / f"{Path(rows[path.stem]['path']).name}.geojson")
    (tmp_path / "elsewhere.svs.geojson").write_text("[]")
    prepare_run(job, plan_units(job.training, job.plan.encoders), None, tmp_path, None)
    used = set(job.run.read("patches")["slide_id"].to_pylist())
    assert len(used) > 3
    assert job.run.read_notes("annotations") == ["elsewhere.svs.geojson: no slide has this name"]


def test_a_class_without_annotated_patches_is_named(synthetic: Synthetic, job: TrainingJob, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    for path in synthetic.annotations.glob("*.geojson"):
        data = json.loads(path.read_text())
        kept = [one for one in data["features"] if one["properties"]["classification"]["name"] != "3+"]
        (folder / path.name).write_text(json.dumps({**data, "features": kept}))
    with pytest.raises(InputError, match=r"class 3\+ at moderate"):
        prepare_run(job, plan_units(job.training, job.plan.encoders), None, folder, None)


def test_slides_smaller_than_a_patch_are_reported(synthetic: Synthetic, tmp_path: Path) -> None:
    """At low resolution a patch is wider than these slides."""
    training = Training(methods=("svm",), inputs=("patches-low",), folds=3, quick=True)
    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), training)
    with pytest.raises(InputError, match=r"no patch of class 0, 1\+, 2\+, 3\+ at low resolution.* another --input"):
        prepare_run(job, plan_units(training, job.plan.encoders), None, synthetic.annotations, None)


def test_labels_that_change_during_a_run_are_refused(synthetic: Synthetic, tmp_path: Path) -> None:
    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), Training(folds=3, quick=True))
    work = plan_units(job.training, job.plan.encoders)
    prepare_run(job, work, synthetic.labels, None, None)
    lines = synthetic.labels.read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(line for line in lines if not line.startswith("P001-1,")) + "\n")
    with pytest.raises(InputError, match="have changed"):
        prepare_run(job, work, tmp_path / "labels.csv", None, None)


def test_contradictory_labels_are_listed_and_excluded(synthetic: Synthetic, tmp_path: Path) -> None:
    lines = [line.split(",") for line in synthetic.labels.read_text().splitlines()]
    three = next(row for row in lines if row[2] == "3+")
    three[3] = "-"
    (tmp_path / "labels.csv").write_text("\n".join(",".join(row) for row in lines) + "\n")
    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), Training(folds=3, quick=True))
    prepare_run(job, plan_units(job.training, job.plan.encoders), tmp_path / "labels.csv", None, None)
    excluded = [row for row in job.run.read("excluded").to_pylist() if row["reason"] == "contradiction"]
    assert [(row["slide_id"], row["task"]) for row in excluded] == [(three[0], "her2-3way")]
    assert "3+ with ISH -" in excluded[0]["words"]
    assert three[0] not in job.run.read("folds")["slide_id"].to_pylist()
    assert len(read_labels(synthetic.labels)) > len(job.run.read("labels"))


def test_a_task_that_applies_to_no_labelled_slide_says_so(synthetic: Synthetic, tmp_path: Path) -> None:
    lines = [line.rsplit(",", 1)[0] for line in synthetic.labels.read_text().splitlines()]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")  # without the column stain
    shutil.copytree(synthetic.cohort / "tables", tmp_path / "cohort" / "tables")
    shutil.copy(synthetic.cohort / "cohort.toml", tmp_path / "cohort" / "cohort.toml")
    cohort = Cohort(tmp_path / "cohort")
    for row in cohort.rows().values():
        write_row(cohort, {**row, "stain": "ihc"})
    job = open_job(TrainingRequest(cohort.root, tmp_path / "run"), Training(tasks=("er",), folds=3))
    with pytest.raises(InputError, match=r"er applies to none of the .* slides: the marker of .* is not known"):
        prepare_run(job, plan_units(job.training, job.plan.encoders), tmp_path / "labels.csv", None, None)


def test_a_cohort_without_labels_is_refused(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort / "tables", tmp_path / "cohort" / "tables")
    shutil.copy(synthetic.cohort / "cohort.toml", tmp_path / "cohort" / "cohort.toml")
    job = open_job(TrainingRequest(tmp_path / "cohort", tmp_path / "run"), Training(folds=3))
    with pytest.raises(InputError, match="--labels"):
        prepare_run(job, plan_units(job.training, job.plan.encoders), None, None, None)


def test_reviews_become_labels_if_the_settings_say_so(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    slide_id = next(one for one, row in sorted(cohort.rows().items()) if row["stain"] == "her2")
    truth = read_labels(synthetic.labels).to_pylist()
    old_class = next(one["her2"] for one in truth if one["slide_id"] == slide_id)
    new_class = "0" if old_class != "0" else "1+"
    append_review(cohort, Review("A", slide_id, "membrane", "her2-4way", "membrane", old_class, "change", new_class))
    found = {}
    for name, use_reviews in (("plain", False), ("reviewed", True)):
        settings = PATCHES.model_copy(update={"methods": ("clam-sb",), "inputs": ("stain",), "reviews": use_reviews})
        job = open_job(TrainingRequest(cohort.root, tmp_path / name), settings)
        prepare_run(job, plan_units(settings, job.plan.encoders), None, None, None)
        labels = {one["slide_id"]: one["truth"] for one in job.run.read("labels").to_pylist()}
        found[name] = labels
        assert job.run.table("reviews").is_file() == use_reviews
    assert found["reviewed"][slide_id] == ("0" if new_class == "0" else "low")
    assert {one for one in found["plain"] if found["plain"][one] != found["reviewed"].get(one)} <= {slide_id}
    words = job.run.read("reviews").to_pylist()[0]
    assert (words["was"], words["now"], words["words"]) == (old_class, new_class, f"the label was {old_class}")
