"""Tests of training: the same metrics on any number of workers, with and without kills; the bundle; bad input."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from her2batch.cli.app import _run, app
from her2batch.errors import InputError, WeightsError
from her2batch.experiments.train import TrainingRequest, collect_results, read_request, train
from her2batch.experiments.units import TrainingJob
from her2batch.models.bundle import read_bundle
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.score import score
from her2batch.settings import Plan, Resources, Training, TrainingResources
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.training_run import TrainingRun
from her2batch.tasks import as_task
from her2batch.training.methods import plan_units
from tests.conftest import Synthetic

TABLES = ("folds", "labels", "excluded", "predictions", "metrics")
QUICK = Training(methods=("clam-sb", "dtfd-afs"), folds=3, quick=True, options=("epochs=3",))


def tables(run: Path) -> dict[str, bytes]:
    return {name: TrainingRun(run).table(name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def trained(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory, ray_session: RaySession) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    found = train(TrainingRequest(synthetic.cohort, out), QUICK, TrainingResources(workers=1))
    assert found.exit_code == 0, found.failed
    return out


@pytest.mark.slow
def test_a_run_has_the_files_of_the_contract(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"run.toml", "bundle", *(f"{name}.parquet" for name in TABLES)} <= names
    predictions = pq.read_table(trained / "predictions.parquet").to_pylist()
    assert all(abs(sum(row["p"]) - 1) < 1e-4 for row in predictions)
    for method in ("clam-sb", "dtfd-afs"):  # every slide is tested once
        tested = [row["slide_id"] for row in predictions if row["method"] == method]
        labelled = pq.read_table(trained / "labels.parquet")["slide_id"].to_pylist()
        assert sorted(tested) == sorted(labelled)


@pytest.mark.slow
def test_a_stopped_run_fuses_nothing_and_names_no_wrong_cause(
    trained: Path, synthetic: Synthetic, tmp_path: Path
) -> None:
    run = TrainingRun(shutil.copytree(trained, tmp_path / "run"))
    training = QUICK.model_copy(update={"tasks": ("her2-3way",), "methods": ("clam-sb", "dtfd-afs", "clam-mb")})
    job = TrainingJob(run, Cohort(synthetic.cohort), Plan(), training)
    found = collect_results(job, plan_units(training, ("stain",)), [as_task("her2-3way")])  # clam-mb is not trained
    assert set(found["method"].to_pylist()) == {"clam-sb", "dtfd-afs"}
    assert not run.table("rules").exists()


@pytest.mark.slow
def test_training_without_ray_gives_the_same_bytes(synthetic: Synthetic, trained: Path, tmp_path: Path) -> None:
    found = train(TrainingRequest(synthetic.cohort, tmp_path / "run"), QUICK, TrainingResources(workers=0))
    assert found.exit_code == 0
    assert tables(tmp_path / "run") == tables(trained)
    plain, ray = read_bundle(tmp_path / "run" / "bundle"), read_bundle(trained / "bundle")
    assert plain.id == ray.id


@pytest.mark.slow
def test_sub_scores_of_0_are_learned_scored_and_reported(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "cohort", copy_function=os.link)
    cohort = Cohort(tmp_path / "cohort")
    for row in cohort.rows().values():
        write_row(cohort, {**row, "patient_id": None})
    values = ("null", "0 (ultralow)", "1+", "2+", "Score 3+")
    lines = [f"{name}.tiff;{values[k % 5]};her2" for k, name in enumerate(sorted(cohort.rows()))]
    (tmp_path / "labels.csv").write_text("Slide;Score;Stain\n" + "\n".join(lines), encoding="utf-16")
    columns = {"slide_id": "Slide", "her2": "Score"}
    request = TrainingRequest(cohort.root, tmp_path / "run", tmp_path / "labels.csv", columns=columns)
    training = Training(tasks=("her2-5way",), methods=("clam-sb",), folds=3, quick=True, options=("epochs=1",))
    found = train(request, training, TrainingResources(workers=0))
    assert found.exit_code == 0, found.failed
    run = TrainingRun(tmp_path / "run")
    assert set(run.read("labels")["truth"].to_pylist()) == {"null", "ultralow", "1+", "2+", "3+"}
    assert {len(p) for p in run.read("predictions")["p"].to_pylist()} == {5}
    assert found.summary["auc_mean"][0].as_py() is not None
    assert "ultralow" in run.report.read_text()
    assert read_bundle(run.bundle).info.tasks == ("her2-5way",)
    assert read_request(run.root)[0].columns == columns
    scored = score(cohort.root, run.bundle, Resources(workers=0))
    assert (scored.scored > 0, scored.failures) == (True, {})


@pytest.mark.slow
def test_attention_is_kept_for_every_tile(synthetic: Synthetic, trained: Path) -> None:
    unit = trained / "units" / "her2-3way.clam-sb.stain.00"
    shares = pq.read_table(unit / "attention.parquet").to_pandas()
    for slide_id, part in shares.groupby("slide_id"):
        n = Cohort(synthetic.cohort).read("tiles", slide_id).num_rows
        assert part["tile"].tolist() == list(range(n))
        assert part["attention"].sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(synthetic: Synthetic, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "units").rglob("predictions.parquet")}
    reports: list[object] = []
    request, training = read_request(trained)
    train(request, training, TrainingResources(workers=2), lambda *one: reports.append(one))
    assert reports == []
    assert {path: path.stat().st_mtime_ns for path in (trained / "units").rglob("predictions.parquet")} == before


@pytest.mark.slow
def test_changed_settings_are_refused(synthetic: Synthetic, trained: Path) -> None:
    with pytest.raises(InputError, match=r"training\.seed"):
        train(
            TrainingRequest(synthetic.cohort, trained),
            QUICK.model_copy(update={"seed": 1}),
            TrainingResources(workers=0),
        )


@pytest.mark.slow
def test_a_damaged_unit_is_trained_again(synthetic: Synthetic, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "units" / "her2-3way.clam-sb.stain.01")
    request, training = read_request(tmp_path / "run")
    train(request, training, TrainingResources(workers=0))
    assert tables(tmp_path / "run") == tables(trained)


@pytest.mark.long
@pytest.mark.timeout(900)  # processes that import torch, on a machine that may be busy
def test_resume_after_kills_gives_identical_tables(synthetic: Synthetic, trained: Path, tmp_path: Path) -> None:
    """A worker is killed, then the driver; the run that the serial loop resumes has the same tables, byte for byte."""
    command = [sys.executable, "-c", "from her2batch.cli.app import main; main()", "train"]
    args = [str(synthetic.cohort), "--out", str(tmp_path / "run"), "--folds", "3", "--quick", "--option", "epochs=3"]
    args += ["--method", "clam-sb", "--method", "dtfd-afs", "--workers", "2"]
    with (tmp_path / "err").open("w") as err:
        driver = subprocess.Popen([*command, *args], stdout=subprocess.DEVNULL, stderr=err)
    units = tmp_path / "run" / "units"
    wait_for(lambda: len(list(units.glob("*/predictions.parquet"))) >= 1, driver)
    workers = [
        one for one in psutil.Process(driver.pid).children(recursive=True) if "ray::_call" in " ".join(one.cmdline())
    ]
    assert workers
    workers[0].kill()
    wait_for(lambda: len(list(units.glob("*/predictions.parquet"))) >= 3, driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(children, timeout=30)
    for left in children:
        if left.is_running():
            left.kill()
    assert not (tmp_path / "run" / "metrics.parquet").exists()
    assert _run(lambda: app(["train", "--resume", str(tmp_path / "run"), "--workers", "0", "--quiet"])) == 0
    assert tables(tmp_path / "run") == tables(trained)


def wait_for(condition: object, driver: subprocess.Popen, seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the driver ended too soon"
        assert time.monotonic() < ends
        time.sleep(0.05)


# -- the bundle ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ingest_with_a_bundle_gives_the_predictions_of_score(
    synthetic: Synthetic, trained: Path, tmp_path: Path
) -> None:
    """Two slides are ingested with the bundle, and scored later in a cohort that was ingested without it."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted(synthetic.scans.glob("*-1.svs"))[:2]:
        (scans / path.name).symlink_to(path)
    plain, direct = tmp_path / "plain", tmp_path / "direct"
    ingest(IngestRequest(scans, plain, labels=synthetic.labels), Plan(), Resources(workers=0))
    ingest(
        IngestRequest(scans, direct, bundle=trained / "bundle", labels=synthetic.labels), Plan(), Resources(workers=0)
    )
    found = score(plain, trained / "bundle", Resources(workers=0))
    assert (found.scored, found.failures) == (2, {})
    for table in (f"predictions/{found.bundle.id}", f"attention/{found.bundle.id}"):
        for row in Cohort(plain).rows():
            assert Cohort(plain).read(table, row).equals(Cohort(direct).read(table, row))
    again = score(plain, trained / "bundle", Resources(workers=0))
    assert (again.scored, again.already) == (0, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "words"), [(Plan(encoders=("timm:resnet18",)), "--encoder stain"), (Plan(mpp=1.0), "--mpp 0.5")]
)
def test_a_bundle_for_other_embeddings_is_refused(plan: Plan, words: str, trained: Path, tmp_path: Path) -> None:
    Cohort(tmp_path / "cohort").create(plan)
    with pytest.raises(InputError, match=words):
        score(tmp_path / "cohort", trained / "bundle", Resources(workers=0))


# -- bad input -------------------------------------------------------------------------------------------------


def assert_refused(cohort: Path, out: Path, labels: str, match: str, **training: object) -> None:
    path = out.parent / "labels.csv"
    path.write_text(labels)
    with pytest.raises(InputError, match=match):
        train(TrainingRequest(cohort, out, path), QUICK.model_copy(update=training), TrainingResources(workers=0))
    assert not (out / "units").exists()


@pytest.mark.slow
def test_bad_labels_stop_before_any_training(synthetic: Synthetic, tmp_path: Path) -> None:
    lines = synthetic.labels.read_text().splitlines()
    head, rows = lines[0], [line.split(",") for line in lines[1:]]
    her2 = [row for row in rows if row[2]]

    def text(rows: list[list[str]]) -> str:
        return "\n".join([head, *(",".join(row) for row in rows)]) + "\n"

    out = tmp_path / "run"
    assert_refused(synthetic.cohort, out, text([row for row in her2 if row[2] != "0"]), "no slide")
    one_patient = text([[row[0], "P", *row[2:]] for row in her2])
    assert_refused(synthetic.cohort, out, one_patient, "of patient P here, but of patient P001 in the cohort")
    assert_refused(synthetic.cohort, out, text(her2), "folds", folds=50)
    assert_refused(synthetic.cohort, out, text([*her2, ["elsewhere", "P", *her2[0][2:]]]), "elsewhere")
    assert_refused(synthetic.cohort, out, text([*her2, her2[0]]), "are of one slide")


@pytest.mark.slow
def test_too_few_patients_stop_before_any_training(synthetic: Synthetic, tmp_path: Path) -> None:
    """A cohort ingested without labels has no patients; those of the labels are used."""
    shutil.copytree(synthetic.cohort / "tables", tmp_path / "cohort" / "tables")
    shutil.copy(synthetic.cohort / "cohort.toml", tmp_path / "cohort" / "cohort.toml")
    cohort = Cohort(tmp_path / "cohort")
    for row in cohort.rows().values():
        write_row(cohort, {**row, "patient_id": None})
    lines = synthetic.labels.read_text().splitlines()
    her2 = [line.split(",") for line in lines[1:] if line.split(",")[2]]

    def text(patient: object) -> str:
        rows = [[row[0], str(patient(k)), *row[2:]] for k, row in enumerate(her2)]
        return "\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n"

    assert_refused(cohort.root, tmp_path / "run", text(lambda _: "P"), "one patient")
    assert_refused(cohort.root, tmp_path / "run", text(lambda k: f"P{k % 2}"), "patients")
    assert_refused(cohort.root, tmp_path / "run", text(lambda k: "" if k == 3 else f"P{k}"), "patient_id")


@pytest.mark.slow
def test_bad_embeddings_stop_before_any_training(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort / "tables", tmp_path / "cohort" / "tables")
    for name in ("cohort.toml", "labels.parquet"):
        shutil.copy(synthetic.cohort / name, tmp_path / "cohort" / name)
    path = next((tmp_path / "cohort" / "tables" / "embeddings" / "stain").glob("*-1.parquet"))
    table = pq.read_table(path)
    values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
    values[5] = np.nan
    kept = path.read_bytes()
    spoiled = type(table["embedding"].combine_chunks()).from_arrays(values, table["embedding"].type.list_size)
    pq.write_table(table.set_column(2, "embedding", spoiled), path)
    request = TrainingRequest(tmp_path / "cohort", tmp_path / "run")
    with pytest.raises(InputError, match="not finite"):
        train(request, QUICK, TrainingResources(workers=0))
    path.unlink()
    with pytest.raises(InputError, match=path.stem):
        train(request, QUICK, TrainingResources(workers=0))
    assert not (tmp_path / "run" / "units").exists()
    path.write_bytes(kept)


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("convnext-small",), ("svm",), ("resnet50", "convnext-small")])
def test_missing_weights_are_one_message_before_any_fold(
    methods: tuple[str, ...], synthetic: Synthetic, tmp_path: Path
) -> None:
    """Networks on thumbnails, and the patch networks that counts need."""
    training = Training(methods=methods, folds=3, options=(f"pretrained={tmp_path}",))
    request = TrainingRequest(synthetic.cohort, tmp_path / "run", None, synthetic.annotations)
    with pytest.raises(WeightsError, match=r"has no weights of (convnext-small|resnet50)"):
        train(request, training, TrainingResources(workers=0), lambda *_: pytest.fail("a fold was trained"))
    assert not (tmp_path / "run").exists()
