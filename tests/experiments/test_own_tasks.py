"""Tasks of the user's own, from the TOML file over training and the bundle to the scores of other slides."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tomli_w

import her2batch as h2
from her2batch.errors import InputError
from her2batch.exchange.dicom import coded_answers
from her2batch.experiments.train import TrainingRequest, TrainingSummary, train
from her2batch.models.bundle import read_bundle
from her2batch.nightly.summary import count_results
from her2batch.reports.prediction_counts import summarise_predictions
from her2batch.reports.report_data import assess_slides
from her2batch.reports.worklists import distribution_text
from her2batch.runtime.score import score
from her2batch.settings import Resources, Training, TrainingResources
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.training_run import TrainingRun, tasks_of_table
from her2batch.task_files import training_with_tasks
from her2batch.training.statistics import bootstrap_intervals, compare_methods
from tests.training import stores

TASKS = Path(__file__).parents[2] / "jobs" / "tasks.toml"
CLASSES = ("low", "intermediate", "high")
SERIAL = TrainingResources(workers=0)
OPTIONS = ("epochs=14", "lr=0.001", "k=2")


def ki67_cohort(root: Path, n: int, seed: int) -> tuple[Cohort, dict[str, float]]:
    """A cohort of Ki-67 slides whose share of instances with a mark is their index, and slide_id → index in percent."""
    rng = np.random.default_rng(seed)
    thirds = np.concatenate([np.linspace(0, 4, n // 3), np.linspace(10, 24, n // 3), np.linspace(36, 60, n // 3)])
    index = {f"s{k:03}": round(float(value), 1) for k, value in enumerate(rng.permutation(thirds))}
    bags = {}
    for slide_id, percent in index.items():
        bags[slide_id] = rng.normal(size=(40, stores.DIM), scale=0.3)
        bags[slide_id][: round(0.4 * percent), :4] += 6
    made = stores.cohort(root, bags)
    for row in made.rows().values():
        size = {"width": 1000, "height": 800, "mpp": 0.5, "mpp_source": "file", "path": f"/scans/{row['slide_id']}.svs"}
        write_row(made, {**row, **size, "stain": "ki67"})
    return made, index


def sheet(path: Path, index: dict[str, float], column: str = "ki67") -> Path:
    """A label sheet with one slide a patient."""
    rows = [f"{slide_id},P{slide_id},{value} %,ki67" for slide_id, value in index.items()]
    path.write_text("\n".join([f"slide_id,patient_id,{column},stain", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingSummary]:
    """The two Ki-67 tasks of jobs/tasks.toml, trained on 24 slides."""
    folder = tmp_path_factory.mktemp("ki67")
    made, index = ki67_cohort(folder / "cohort", 24, 0)
    settings = Training(tasks=("ki67-3way", "ki67-index"), methods=("clam-sb",), folds=3, options=OPTIONS)
    request = TrainingRequest(made.root, folder / "run", sheet(folder / "labels.csv", index))
    return folder, train(request, training_with_tasks(settings, TASKS), SERIAL)


@pytest.mark.slow
def test_the_tasks_of_a_file_are_trained_and_measured(trained: tuple[Path, TrainingSummary]) -> None:
    folder, found = trained
    assert found.exit_code == 0
    three, index = found.summary.to_pylist()
    assert (three["task"], index["task"]) == ("ki67-3way", "ki67-index")
    assert three["auc_mean"] > 80
    assert three["c_index_mean"] is three["r2_mean"] is index["auc_mean"] is index["kappa_mean"] is None
    assert index["c_index_mean"] > 85
    assert index["r2_mean"] > 0.5
    assert 0 < index["mae_mean"] < 12
    run = TrainingRun(folder / "run")
    assert {row["truth"] for row in run.read("labels").to_pylist() if row["task"] == "ki67-3way"} == {
        "low", "intermediate", "high"
    }  # fmt: skip
    assert run.report.is_file()
    assert "ki67-3way" in run.report.read_text()


@pytest.mark.slow
def test_a_table_of_predictions_defines_its_tasks(trained: tuple[Path, TrainingSummary]) -> None:
    """Statistics need nothing but the table."""
    predictions = pq.read_table(trained[0] / "run" / "predictions.parquet")
    assert tasks_of_table(predictions)["ki67-3way"].classes == ("low", "intermediate", "high")
    patients = {slide_id: slide_id for slide_id in predictions["slide_id"].to_pylist()}
    rows = bootstrap_intervals(predictions, patients, 50).to_pylist()
    assert {(row["task"], row["metric"]) for row in rows} == {
        *(("ki67-3way", name) for name in ("auc", "f1", "accuracy", "kappa", "recall")),
        *(("ki67-index", name) for name in ("c_index", "r2", "mae")),
    }
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert compare_methods(predictions, patients, 10).num_rows == 0


@pytest.mark.slow
def test_a_bundle_carries_its_tasks_and_scores_without_the_file(
    trained: tuple[Path, TrainingSummary], tmp_path: Path
) -> None:
    bundle = read_bundle(trained[0] / "run" / "bundle")
    assert (bundle.info.format, bundle.info.tasks) == (2, ("ki67-3way", "ki67-index"))
    made, index = ki67_cohort(tmp_path / "other", 12, 1)
    row = made.rows()["s000"]
    write_row(made, {**row, "stain": "her2"})
    found = score(made.root, bundle.path, Resources(workers=0))
    assert (found.exit_code, found.scored, found.not_applicable) == (0, 12, {"her2": 1})
    assert made.read(f"predictions/{bundle.id}", "s000").num_rows == 0
    tables = {slide_id: made.read(f"predictions/{bundle.id}", slide_id).to_pylist() for slide_id in sorted(index)[1:]}
    right, errors, inside = [], [], []
    for slide_id, (three, number) in tables.items():
        expected = "low" if index[slide_id] <= 5 else "high" if index[slide_id] >= 30 else "intermediate"
        assert three["classes"] == ["low", "intermediate", "high"]
        right.append(three["predicted"] == expected)
        assert (number["classes"], number["p"]) == ([], [])
        assert number["predicted"] == f"{number['score']:.4g}"
        low, high = map(float, number["plausible"])
        assert 0 <= low <= number["score"] <= high <= 100
        inside.append(low <= index[slide_id] <= high)
        errors.append(abs(number["score"] - index[slide_id]))
    assert np.mean(right) > 0.5
    assert np.mean(errors) < 10
    assert np.mean(inside) > 0.7


@pytest.mark.slow
def test_report_counts_and_night_show_own_tasks(trained: tuple[Path, TrainingSummary], tmp_path: Path) -> None:
    """They read classes from the predictions, and show a number as a number."""
    bundle = trained[0] / "run" / "bundle"
    made, index = ki67_cohort(tmp_path / "cohort", 6, 3)
    score(made.root, bundle, Resources(workers=0))
    three, number = summarise_predictions(made, list(index)).counts
    assert (three.task, list(three.classes), sum(three.classes.values())) == ("ki67-3way", list(CLASSES), 6)
    assert (number.task, number.classes) == ("ki67-index", {"predicted": 6})
    page = h2.report(made.root, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("ki67-index") >= 6
    assert all(name in page for name in CLASSES)
    assessed = assess_slides(made, list(made.rows().values()))
    assert set(count_results(assessed.values())) <= {f"ki67-3way {name}" for name in CLASSES}
    assert {found.main["task"] for found in assessed.values() if found.main} == {"ki67-3way"}
    assert "ki67-3way" in distribution_text(list(assessed.values()))
    codes = [coded_answers(row) for row in made.read(f"predictions/{read_bundle(bundle).id}", "s000").to_pylist()]
    assert codes[0][0][0][0] == "ki67-3way"
    assert all(question[0] != "ki67-index" for question, _ in codes[1])


@pytest.mark.slow
def test_a_bundle_without_the_definition_of_its_task_is_refused(
    trained: tuple[Path, TrainingSummary], tmp_path: Path
) -> None:
    import shutil
    import tomllib

    shutil.copytree(trained[0] / "run" / "bundle", tmp_path / "bundle")
    toml = tmp_path / "bundle" / "bundle.toml"
    content = tomllib.loads(toml.read_text())
    del content["definitions"]
    toml.write_text(tomli_w.dumps(content))
    with pytest.raises(InputError, match="no task is called 'ki67-3way'"):
        read_bundle(tmp_path / "bundle")


@pytest.mark.slow
def test_a_run_of_own_tasks_resumes_and_refuses_another_definition(
    trained: tuple[Path, TrainingSummary], tmp_path: Path
) -> None:
    folder, _ = trained
    before = (folder / "run" / "predictions.parquet").read_bytes()
    settings = Training(tasks=("ki67-3way", "ki67-index"), methods=("clam-sb",), folds=3, options=OPTIONS)
    request = TrainingRequest(folder / "cohort", folder / "run", folder / "labels.csv")
    assert train(request, training_with_tasks(settings, TASKS), SERIAL).exit_code == 0
    assert (folder / "run" / "predictions.parquet").read_bytes() == before
    other = tmp_path / "tasks.toml"
    other.write_text(TASKS.read_text().replace(">= 30", ">= 20"))
    with pytest.raises(InputError, match=r"other settings \(training\.definitions\)"):
        train(request, training_with_tasks(settings, other), SERIAL)


@pytest.mark.slow
def test_a_missing_column_and_a_wrong_value_are_named(tmp_path: Path) -> None:
    made, index = ki67_cohort(tmp_path / "cohort", 12, 2)
    settings = training_with_tasks(Training(tasks=("ki67-3way",), folds=3), TASKS)
    labels = sheet(tmp_path / "labels.csv", index, column="mib1")
    with pytest.raises(
        InputError, match=r"labels\.csv: has no column ki67, which a task reads; its columns are: slide"
    ):
        train(TrainingRequest(made.root, tmp_path / "run", labels), settings, SERIAL)
    text = sheet(labels, index).read_text().replace(f"s004,Ps004,{index['s004']} %", "s004,Ps004,ca. 20 %")
    labels.write_text(text)
    with pytest.raises(InputError, match=r"task ki67-3way, slide s004: ki67 is 'ca\. 20 %'; write a number"):
        train(TrainingRequest(made.root, tmp_path / "run2", labels), settings, SERIAL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dtfd-afs", "resnet50", "random-forest"])
def test_a_method_that_cannot_predict_a_number_is_refused(tmp_path: Path, method: str) -> None:
    made, index = ki67_cohort(tmp_path / "cohort", 12, 2)
    settings = training_with_tasks(Training(tasks=("ki67-index",), methods=(method,), folds=3), TASKS)
    labels = sheet(tmp_path / "labels.csv", index)
    with pytest.raises(
        InputError, match=f"{method} does not predict a number, as ki67-index asks; choose from clam-sb"
    ):
        train(TrainingRequest(made.root, tmp_path / "run", labels), settings, SERIAL)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_runs_and_bundles_of_built_in_tasks_keep_their_format(tmp_path: Path) -> None:
    bags, labels = stores.planted(18)
    made = stores.cohort(tmp_path / "cohort", bags)
    ihc = ("0", "1+", "3+")
    rows = [f"{slide_id},P{k},{ihc[label]},her2" for k, (slide_id, label) in enumerate(zip(bags, labels, strict=True))]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,patient_id,her2,stain", *rows]))
    request = TrainingRequest(made.root, tmp_path / "run", tmp_path / "labels.csv")
    assert train(request, Training(folds=3, options=("epochs=1",)), SERIAL).exit_code == 0
    run = TrainingRun(tmp_path / "run")
    assert "definitions" not in run.settings.read_text()
    assert "format = 1\n" in (run.bundle / "bundle.toml").read_text()
    assert {"scale", "interval", "definitions"}.isdisjoint((run.bundle / "bundle.toml").read_text().split())
    assert run.read("metrics").column_names == [
        "task",
        "method",
        "input",
        "fold",
        "auc",
        "f1",
        "accuracy",
        "kappa",
        "n",
    ]
    for name in ("predictions", "labels", "metrics"):
        assert b"her2batch.tasks" not in (run.read(name).schema.metadata or {})
