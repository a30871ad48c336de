"""Scoring a cohort from its tables: what the bundle's networks need is read from the store and stored there."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from her2batch.errors import InputError
from her2batch.experiments.train import TrainingRequest, train
from her2batch.pipeline.calibration.apply import CalibratedSlides
from her2batch.runtime import score as score_module
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.score import CohortScores, ScoreSummary, score, score_cohort
from her2batch.settings import Plan, Resources, Training, TrainingResources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import RETIRED, Cohort
from her2batch.store.labels import store_labels
from her2batch.store.pseudonyms import Pseudonymizer
from tests.conftest import Synthetic, write_slide
from tests.models.bundles import untrained
from tests.runtime.test_ingest import store_contents

METHODS = ("clam-mb", "resnet50", "random-forest", "majority-vote")


@pytest.fixture(scope="module")
def bundle(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory, ray_session: RaySession) -> Path:
    """One of each kind: a MIL head, a thumbnail network, a patch network with two classifiers on its counts."""
    training = Training(
        tasks=("her2-4way",), methods=METHODS, inputs=("stain", "thumbnail-224", "patches-high"), folds=3, quick=True,
        options=("epochs=1",), patches_per_slide=4,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("bundle") / "run"
    found = train(
        TrainingRequest(synthetic.cohort, out, None, synthetic.annotations), training, TrainingResources(workers=0)
    )
    assert found.exit_code == 0, found.failed
    return out / "bundle"


@pytest.fixture(scope="module")
def ingested(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two slides of the cohort in `scans`, and what an ingest makes of them in `cohort`."""
    folder = tmp_path_factory.mktemp("ingested")
    (folder / "scans").mkdir()
    for path in sorted(synthetic.scans.glob("*-1.svs"))[:2]:
        (folder / "scans" / path.name).symlink_to(path)
    request = IngestRequest(folder / "scans", folder / "cohort", labels=synthetic.labels)
    assert ingest(request, Plan(), Resources(workers=0)).exit_code == 0
    return folder


@pytest.fixture
def cohort(ingested: Path, tmp_path: Path) -> Path:
    """A copy of the two ingested slides, to be scored."""
    shutil.copytree(ingested, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "cohort"


@pytest.mark.slow
def test_every_kind_of_model_gives_predictions(bundle: Path, cohort: Path, synthetic: Synthetic) -> None:
    found = score(cohort, bundle, Resources(workers=0))
    assert (found.scored, found.failures) == (2, {})
    rows = pq.read_table(cohort / "tables" / "predictions" / found.bundle.id).to_pylist()
    assert {row["method"] for row in rows} == set(METHODS)
    for row in rows:
        assert sum(row["p"]) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] in row["plausible"]
    names = Cohort(cohort).table_names()
    for table in ("patches", "thumbnails", "saliency", "attention", "predictions"):
        assert f"{table}/{found.bundle.id}" in names
    assert list(verify_cohort(Cohort(cohort))) == []


@pytest.mark.slow
def test_score_agrees_with_ingest_with_the_bundle(bundle: Path, cohort: Path, synthetic: Synthetic) -> None:
    """Ingest reads patches from the slide file, score from the pyramid, which has its own lower levels."""
    found = score(cohort, bundle, Resources(workers=0))
    direct = cohort.parent / "direct"
    request = IngestRequest(cohort.parent / "scans", direct, bundle=bundle, labels=synthetic.labels)
    assert ingest(request, Plan(), Resources(workers=0)).exit_code == 0
    for slide_id in Cohort(cohort).rows():
        one, other = (
            Cohort(root).read(f"predictions/{found.bundle.id}", slide_id).to_pylist() for root in (cohort, direct)
        )
        for a, b in zip(one, other, strict=True):
            assert (a["method"], a["task"]) == (b["method"], b["task"])
            tolerance = 0.2 if a["method"] in ("random-forest", "majority-vote") else 1e-6
            assert max(abs(x - y) for x, y in zip(a["p"], b["p"], strict=True)) <= tolerance


@pytest.mark.slow
def test_score_on_ray_gives_the_same_bytes(bundle: Path, cohort: Path, tmp_path: Path, ray_session: RaySession) -> None:
    other = tmp_path / "other"
    shutil.copytree(cohort, other)
    found = score(cohort, bundle, Resources(workers=0))
    score(other, bundle, Resources(workers=1))
    for slide_id in Cohort(cohort).rows():
        for table in (f"predictions/{found.bundle.id}", f"patches/{found.bundle.id}"):
            assert (
                Cohort(cohort).table(table, slide_id).read_bytes() == Cohort(other).table(table, slide_id).read_bytes()
            )


@pytest.mark.slow
def test_slide_whose_tables_are_missing_fails_by_name(bundle: Path, cohort: Path) -> None:
    slide_id = sorted(Cohort(cohort).rows())[0]
    Cohort(cohort).table("embeddings/stain", slide_id).unlink()
    found = score(cohort, bundle, Resources(workers=0))
    assert found.scored == 1
    assert found.exit_code == 3
    assert slide_id in found.failures[slide_id]
    assert "ingest again" in found.failures[slide_id]


@pytest.mark.slow
def test_empty_cohort_is_refused(bundle: Path, tmp_path: Path) -> None:
    Cohort(tmp_path / "cohort").create(Plan())
    with pytest.raises(InputError, match="no slide"):
        score(tmp_path / "cohort", bundle, Resources(workers=0))


@pytest.fixture
def cohort_with_blank_slide(synthetic: Synthetic, tmp_path: Path) -> Path:
    """Two slides with tissue and one of bare glass, which is done and has no tiles."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted(synthetic.scans.glob("*-1.svs"))[:2]:
        (scans / path.name).symlink_to(path)
    glass = np.random.default_rng(0).normal(240, 1, (1200, 1400, 3)).astype(np.uint8)
    write_slide(scans / "blank.tiff", glass)
    ingest(IngestRequest(scans, tmp_path / "cohort"), Plan(), Resources(workers=0))
    assert Cohort(tmp_path / "cohort").rows()["blank"]["status"] == "done"
    return tmp_path / "cohort"


@pytest.mark.slow
def test_slide_without_tiles_is_scored_as_ingest_with_the_bundle_scores_it(
    bundle: Path, cohort_with_blank_slide: Path
) -> None:
    cohort = Cohort(cohort_with_blank_slide)
    found = score(cohort.root, bundle, Resources(workers=0))
    assert (found.scored, found.failures, found.exit_code) == (3, {}, 0)
    direct = Cohort(cohort.root.parent / "direct")
    request = IngestRequest(cohort.root.parent / "scans", direct.root, bundle=bundle)
    assert ingest(request, Plan(), Resources(workers=0)).exit_code == 0
    tables = [name for name in cohort.table_names() if name.endswith(found.bundle.id)]
    kinds = {"patches", "thumbnails", "saliency", "attention", "predictions"}
    assert {name.split("/")[0] for name in tables} == kinds
    for name in tables:
        paths = [store.table(name, "blank") for store in (cohort, direct)]
        assert [path.exists() for path in paths] == [name.split("/")[0] != "attention"] * 2
        if paths[0].exists():
            assert paths[0].read_bytes() == paths[1].read_bytes()
    again = score(cohort.root, bundle, Resources(workers=0))
    assert (again.already, again.scored, again.failures) == (3, 0, {})


@pytest.mark.slow
def test_one_failing_slide_does_not_fail_the_others_of_its_share(
    bundle: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = sorted(Cohort(cohort).rows())

    def fails(cohort: Cohort, plan: Plan, predictor: object, networks: object, row: dict) -> dict:
        if row["slide_id"] == bad:
            raise ValueError("cannot reshape array")
        return original(cohort, plan, predictor, networks, row)

    original = score_module.score_slide
    monkeypatch.setattr(score_module, "score_slide", fails)
    found = score(cohort, bundle, Resources(workers=0))
    assert (found.scored, list(found.failures), found.exit_code) == (1, [bad], 3)
    assert found.failures[bad].count(bad) == 1
    assert f"predictions/{found.bundle.id}" in Cohort(cohort).table_names()
    monkeypatch.setattr(score_module, "score_slide", original)
    again = score(cohort, bundle, Resources(workers=0))
    assert (again.already, again.scored, again.failures) == (1, 1, {})
    assert good


@pytest.mark.long
def test_slide_that_kills_its_worker_does_not_fail_the_others_of_its_share(
    bundle: Path, cohort: Path, ray_session: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.runtime.test_score as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    bad, _ = sorted(Cohort(cohort).rows())
    monkeypatch.setattr(score_module, "_score", here.crash_on_first_slide)
    found = score(cohort, bundle, Resources(workers=2))
    assert (found.scored, list(found.failures), found.exit_code) == (1, [bad], 3)
    assert found.failures[bad].count(bad) == 1


def crash_on_first_slide(cohort: Cohort, bundle: object, plan: Plan, rows: tuple, device: str) -> dict[str, str]:
    """A native library that crashes on the first slide of the cohort."""
    if any(row["slide_id"] == sorted(cohort.rows())[0] for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


# -- slides that a task applies to -------------------------------------------------------------------------------


@pytest.fixture
def unlabelled(synthetic: Synthetic, tmp_path: Path) -> Path:
    """Two HER2 slides and an ER slide, ingested without labels."""
    stains = {slide_id: row["stain"] for slide_id, row in sorted(Cohort(synthetic.cohort).rows().items())}
    chosen = [one for one in stains if stains[one] == "her2"][:2] + [one for one in stains if stains[one] == "er"][:1]
    scans = tmp_path / "scans"
    scans.mkdir()
    for slide_id in chosen:
        (scans / f"{slide_id}.svs").symlink_to(synthetic.scans / f"{slide_id}.svs")
    ingest(IngestRequest(scans, tmp_path / "cohort"), Plan(), Resources(workers=0))
    return tmp_path / "cohort"


def label(cohort: Path, labels: Path) -> None:
    """Give the cohort its labels, by a later ingest."""
    ingest(IngestRequest(cohort.parent / "scans", cohort, labels=labels), Plan(), Resources(workers=0))


@pytest.mark.slow
def test_bundle_that_applies_to_no_slide_is_refused(unlabelled: Path, synthetic: Synthetic, tmp_path: Path) -> None:
    bundle = untrained(tmp_path / "bundle", "er")
    before = store_contents(unlabelled)
    with pytest.raises(
        InputError, match=r"\(er\) applies to a slide of this cohort \(3 of an unknown marker\).*--labels"
    ):
        score(unlabelled, bundle.path, Resources(workers=0))
    assert store_contents(unlabelled) == before
    label(unlabelled, synthetic.labels)
    found = score(unlabelled, bundle.path, Resources(workers=0))
    assert (found.scored, found.not_applicable, found.exit_code) == (3, {"her2": 2}, 0)
    assert found.not_applicable_text == "2 stained for her2"
    rows = pq.read_table(unlabelled / "tables" / "predictions" / bundle.id).to_pylist()
    stains = {slide_id: row["stain"] for slide_id, row in Cohort(unlabelled).rows().items()}
    assert [(stains[row["slide_id"]], row["task"]) for row in rows] == [("er", "er")]


@pytest.mark.slow
def test_score_reads_the_labels_that_the_slides_do_not_have_yet(
    unlabelled: Path, synthetic: Synthetic, tmp_path: Path
) -> None:
    """Earlier versions kept the labels of a later ingest for new slides only."""
    store_labels(Cohort(unlabelled), synthetic.labels, Pseudonymizer())
    found = score(unlabelled, untrained(tmp_path / "bundle", "er").path, Resources(workers=0))
    assert (found.scored, found.not_applicable) == (3, {"her2": 2})
    assert {row["stain"] for row in Cohort(unlabelled).rows().values()} == {"her2", "er"}


@pytest.mark.slow
def test_predictions_of_a_bundle_follow_labels_that_come_later(
    bundle: Path, unlabelled: Path, synthetic: Synthetic, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    ingest(IngestRequest(tmp_path / "scans", first, labels=synthetic.labels), Plan(), Resources(workers=0))
    for cohort in (unlabelled, first):
        score(cohort, bundle, Resources(workers=0))
    assert store_contents(unlabelled) != store_contents(first)
    label(unlabelled, synthetic.labels)
    found = score(unlabelled, bundle, Resources(workers=0))
    assert (found.already, found.scored, found.not_applicable) == (0, 3, {"er": 1})
    assert store_contents(unlabelled) == store_contents(first)
    assert list(verify_cohort(Cohort(unlabelled))) == []


@pytest.mark.slow
def test_predictions_are_made_again_without_the_pyramid_from_stored_patches(bundle: Path, cohort: Path) -> None:
    found, store = score(cohort, bundle, Resources(workers=0)), Cohort(cohort)
    name = f"predictions/{found.bundle.id}"
    before = {slide_id: store.table(name, slide_id).read_bytes() for slide_id in store.rows()}
    for row in store.rows().values():
        shutil.rmtree(store.pyramid(row["slide_id"]))
        retired = {**row, "flags": [*row["flags"], RETIRED]}
        retired["files"] = [file for file in row["files"] if not file["path"].startswith("pyramids/")]
        store.add_tables(retired, {}, [name, f"attention/{found.bundle.id}"])
    again = score(cohort, bundle, Resources(workers=0))
    assert (again.scored, again.failures) == (2, {})
    assert {slide_id: store.table(name, slide_id).read_bytes() for slide_id in store.rows()} == before
    assert list(verify_cohort(store)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "failed", "unreadable", "code"), [
    (False, False, False, 0), (False, True, False, 3), (False, False, True, 3), (True, True, False, 130),
])  # fmt: skip
def test_bundle_and_calibration_together_have_one_exit_code(
    stopped: bool, failed: bool, unreadable: bool, code: int, tmp_path: Path
) -> None:
    by_bundle = ScoreSummary(untrained(tmp_path / "bundle"), failures={"S1": "cut"} if failed else {}, stopped=stopped)
    by_calibration = CalibratedSlides("cal-1", failures={"S2": "cut"} if unreadable else {})
    found = CohortScores(by_bundle, None if stopped else by_calibration)
    assert found.as_json()["exit_code"] == found.exit_code == code
    assert ("calibration" in found.as_json()) != stopped


@pytest.mark.slow
def test_scoring_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a trained bundle, a calibration, or both"):
        score_cohort(tmp_path, None, None, Resources(workers=0))
