"""What a run needs before its first unit: patches by the paper's rules, and clear words when something is missing."""

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
from her2batch.store.cohort import Cohort
from her2batch.store.labels import read_labels
from her2batch.store.reviews import Review, append_review
from her2batch.training.methods import plan_units
from tests.conftest import Synthetic

PATCHES = Training(methods=("svm",), inputs=("patches-moderate",), folds=3, quick=True)


@pytest.fixture
def job(synthetic: Synthetic, tmp_path: Path) -> TrainingJob:
    return open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), PATCHES)


def test_annotated_patches_have_the_class_they_lie_in(synthetic: Synthetic, job: TrainingJob) -> None:
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


def test_the_same_patches_are_drawn_again(synthetic: Synthetic, job: TrainingJob) -> None:
    path = sorted(synthetic.annotations.glob("*.geojson"))[0]
    one, other = (cut_annotated_patches(job, path.stem, path, "patches-high") for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert one[1].equals(other[1])
    assert len(one[1]) <= 24  # the quick profile's limit


def test_patch_methods_ask_for_annotations(synthetic: Synthetic, job: TrainingJob, tmp_path: Path) -> None:
    work = plan_units(job.training, job.plan.encoders)
    with pytest.raises(InputError, match="--annotations"):
        prepare_run(job, work, None, None, None)
    with pytest.raises(InputError, match="no folder"):
        prepare_run(job, work, None, tmp_path / "nowhere", None)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="has no annotations"):
        prepare_run(job, work, None, empty, None)


def test_a_class_without_annotated_patches_is_named(synthetic: Synthetic, job: TrainingJob, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    for path in synthetic.annotations.glob("*.geojson"):
        data = json.loads(path.read_text())
        kept = [one for one in data["features"] if one["properties"]["classification"]["name"] != "3+"]
        (folder / path.name).write_text(json.dumps({**data, "features": kept}))
    with pytest.raises(InputError, match=r"class 3\+ at moderate"):
        prepare_run(job, plan_units(job.training, job.plan.encoders), None, folder, None)


def test_slides_too_small_for_a_single_patch_are_said_so(synthetic: Synthetic, tmp_path: Path) -> None:
    """At low resolution a patch is wider than these slides."""
    training = Training(methods=("svm",), inputs=("patches-low",), folds=3, quick=True)
    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), training)
    with pytest.raises(InputError, match=r"no patch of class 0, 1\+, 2\+, 3\+ at low resolution.* another --input"):
        prepare_run(job, plan_units(training, job.plan.encoders), None, synthetic.annotations, None)


def test_labels_that_change_in_mid_run_are_refused(synthetic: Synthetic, tmp_path: Path) -> None:
    job = open_job(TrainingRequest(synthetic.cohort, tmp_path / "run"), Training(folds=3, quick=True))
    work = plan_units(job.training, job.plan.encoders)
    prepare_run(job, work, synthetic.labels, None, None)
    lines = synthetic.labels.read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(line for line in lines if not line.startswith("P001-1,")) + "\n")
    with pytest.raises(InputError, match="have changed"):
        prepare_run(job, work, tmp_path / "labels.csv", None, None)


def test_contradictions_are_listed_and_left_out(synthetic: Synthetic, tmp_path: Path) -> None:
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


def test_a_cohort_without_labels_says_so(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort / "tables", tmp_path / "cohort" / "tables")
    shutil.copy(synthetic.cohort / "cohort.toml", tmp_path / "cohort" / "cohort.toml")
    job = open_job(TrainingRequest(tmp_path / "cohort", tmp_path / "run"), Training(folds=3))
    with pytest.raises(InputError, match="--labels"):
        prepare_run(job, plan_units(job.training, job.plan.encoders), None, None, None)


def test_reviews_become_labels_where_they_are_asked_for(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    slide_id = next(one for one, row in sorted(cohort.rows().items()) if row["stain"] == "her2")
    truth = read_labels(synthetic.labels).to_pylist()
    before = next(one["her2"] for one in truth if one["slide_id"] == slide_id)
    said = "0" if before != "0" else "1+"
    append_review(cohort, Review("A", slide_id, "membrane", "her2-4way", "membrane", before, "change", said))
    found = {}
    for name, asked in (("plain", False), ("reviewed", True)):
        settings = PATCHES.model_copy(update={"methods": ("clam-sb",), "inputs": ("stain",), "reviews": asked})
        job = open_job(TrainingRequest(cohort.root, tmp_path / name), settings)
        prepare_run(job, plan_units(settings, job.plan.encoders), None, None, None)
        labels = {one["slide_id"]: one["truth"] for one in job.run.read("labels").to_pylist()}
        found[name] = labels
        assert job.run.table("reviews").is_file() == asked
    assert found["reviewed"][slide_id] == ("0" if said == "0" else "low")
    assert {one for one in found["plain"] if found["plain"][one] != found["reviewed"].get(one)} <= {slide_id}
    words = job.run.read("reviews").to_pylist()[0]
    assert (words["was"], words["now"], words["words"]) == (before, said, f"the labels said {before}")
