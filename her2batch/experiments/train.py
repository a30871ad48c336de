"""Training run: folds × methods × tasks as independent units on Ray, their metrics, and the bundle for new slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from her2batch.errors import STOPPED
from her2batch.experiments.data_parallel import run_data_parallel
from her2batch.experiments.external_test import (
    TestCohort,
    check_test_cohorts,
    read_test_metrics,
    score_test_cohorts,
)
from her2batch.experiments.given_folds import with_given_folds
from her2batch.experiments.prepare import check_libraries, prepare_run, read_checked_labels
from her2batch.experiments.rule_predictions import read_rule_predictions
from her2batch.experiments.units import TrainingJob, run_unit
from her2batch.files.locations import to_location
from her2batch.files.parquet import read_parquet
from her2batch.job_settings import TrainJob
from her2batch.reports.cohort_page import write_report
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Training, TrainingResources
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit, tasks_of_table, with_tasks
from her2batch.tasks import FUSION, Task
from her2batch.training.fusion.stacking import with_fusion
from her2batch.training.make_bundle import make_bundle
from her2batch.training.methods import UnitPlan, method_kind, plan_units
from her2batch.training.metrics import metrics_summary, metrics_table
from her2batch.training.readers.disagreement import with_smoothing
from her2batch.training.recipes.profiles import with_run_defaults

UnitCallback = Callable[[int, int, Unit, str | None], None]
"""Called for every finished unit: number of finished units, number of all units, the unit, and the error or None."""


@dataclass(frozen=True)
class TrainingRequest:
    """The paths of a training run: cohort, output folder, and files of the user.

    columns: of the labels.  folds_file: the fold of each slide or patient.  tests: other cohorts for the bundle.
    """

    cohort: Path
    out: Path
    labels: Path | None = None
    annotations: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    folds_file: Path | None = None
    tests: tuple[TestCohort, ...] = ()


def training_request(job: TrainJob) -> TrainingRequest:
    """Return the paths that a TOML file of a training run names."""
    files = (job.labels, job.annotations, job.folds_file)
    labels, annotations, folds_file = (Path(path) if path is not None else None for path in files)
    return TrainingRequest(to_location(job.cohort), Path(job.out), labels, annotations, job.columns, folds_file)


@dataclass
class TrainingSummary:
    """The result of a training run.

    summary: metrics over the folds.  excluded: excluded slides with reasons.  failed: unit → error.
    """

    run: TrainingRun
    summary: pa.Table
    excluded: pa.Table
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """0 all units are done, 3 some failed, 130 stopped."""
        return STOPPED if self.stopped else 3 if self.failed else 0


def training_result(summary: TrainingSummary) -> dict[str, Any]:
    """The result of training as plain values: where run, bundle and report are, metrics, slides left out, failures."""
    run = summary.run
    return {
        "run": str(run.root),
        "bundle": str(run.bundle) if run.bundle.is_dir() else None,
        "report": str(run.report) if run.report.is_file() else None,
        "summary": summary.summary.to_pylist(),
        "excluded": summary.excluded.to_pylist(),
        "failed": summary.failed,
        "annotation_notes": run.read_notes("annotations"),
        "label_notes": run.read_notes("labels"),
        "tests": read_test_metrics(run),
        "exit_code": summary.exit_code,
    }


def train(
    request: TrainingRequest, training: Training, resources: TrainingResources, report: UnitCallback = lambda *_: None
) -> TrainingSummary:
    """Train all units of the run that are not trained yet, test the bundle on other cohorts, and write the report.

    Raises InputError, StoreError, WeightsError before the training starts.
    """
    with TrainingRun(request.out.absolute()).removed_if_refused():
        job = open_job(request, training)
        if request.tests:
            labels = read_checked_labels(job, request.labels, request.columns)
            check_test_cohorts(job, request.tests, labels)
        trained = run_units(job, plan_units(job.training, job.plan.encoders), request, resources, report)
    if request.tests and trained.exit_code == 0:
        score_test_cohorts(job, request.tests, resources)
    write_run_report(job)
    return trained


def write_run_report(job: TrainingJob) -> None:
    """Write RUN/report.html: the results of the run and the cohort it was trained on."""
    write_report(job.cohort, job.run.report, job.run, pages=0)


def open_job(request: TrainingRequest, training: Training) -> TrainingJob:
    """Create the run's folder, or open an existing one with the same settings. Raises InputError, StoreError."""
    cohort = Cohort(to_location(request.cohort))
    plan_of_cohort = cohort.plan()
    training = with_smoothing(with_run_defaults(training))
    plan_units(training, plan_of_cohort.encoders)  # raises InputError for unknown methods before a folder is created
    run = TrainingRun(request.out.absolute())
    if request.folds_file is not None or training.folds_by is not None:
        draft = TrainingJob(run, cohort, plan_of_cohort, training)
        labels = read_checked_labels(draft, request.labels, request.columns)
        training = with_given_folds(training, request.folds_file, labels)
    settings = {
        "cohort": str(cohort.root),
        "plan": plan_of_cohort.model_dump(mode="json", exclude_none=True),
        "training": training.model_dump(mode="json", exclude_none=True),
        **{name: str(path.absolute()) for name, path in _input_files(request).items()},
        **({"columns": dict(request.columns)} if request.columns else {}),
    }
    run.open_or_create(settings)
    return TrainingJob(run, cohort, plan_of_cohort, training, request.folds_file)


def _input_files(request: TrainingRequest) -> dict[str, Path]:
    paths = {"labels": request.labels, "annotations": request.annotations, "folds_file": request.folds_file}
    return {name: path for name, path in paths.items() if path is not None}


def read_request(root: Path) -> tuple[TrainingRequest, Training]:
    """Read the paths and settings of an existing run, to resume it. Raises InputError."""
    saved = TrainingRun(root).read_settings()
    files: dict[str, Any] = {
        name: Path(saved[name]) for name in ("labels", "annotations", "folds_file") if name in saved
    }
    request = TrainingRequest(to_location(saved["cohort"]), root, **files, columns=saved.get("columns", {}))
    return request, Training.model_validate(saved["training"])


ChooseFinalUnits = Callable[[pa.Table], UnitPlan]
"""Function from the summary of the folds to the final units, which go into the bundle."""


def run_units(
    job: TrainingJob,
    work: UnitPlan,
    request: TrainingRequest,
    resources: TrainingResources,
    report: UnitCallback,
    choose_final: ChooseFinalUnits | None = None,
    fused: Sequence[Task] | None = None,
) -> TrainingSummary:
    """Prepare the run, train every unit that is not done, collect the results and make the bundle.

    choose_final: chooses the final units when the folds are done; None: `work` contains them.  fused: tasks with the
    method `fusion`; None: those of the settings.
    """
    check_libraries(job, work)
    with job.run.lock(), _connect_if_needed(resources, job, work) as session:
        prepare_run(job, work, request.labels, request.annotations, session, request.columns)
        failed = dict(_train_units(session, job, work, resources, report))
        summary = metrics_summary(collect_results(job, work, fused_tasks(job) if fused is None else fused))
        if choose_final is not None and not failed and not _is_stopped(session):
            work = choose_final(summary)
            failed = dict(_train_units(session, job, work, resources, report))
        if not failed and not _is_stopped(session):
            make_bundle(job.run, work, job.training, job.plan)
        return TrainingSummary(job.run, summary, job.run.read("excluded"), failed, _is_stopped(session))


def _is_stopped(session: RaySession | None) -> bool:
    return session is not None and session.stopped.is_set()


@contextmanager
def _connect_if_needed(resources: TrainingResources, job: TrainingJob, work: UnitPlan) -> Iterator[RaySession | None]:
    """Connect to Ray. Yields None for a run without Ray (0 workers) and when no unit is left to train."""
    if resources.workers == 0 or all(job.run.is_done(unit) for unit in work.units):
        yield None
        return
    with connect(resources) as session:
        yield session


def _train_units(
    session: RaySession | None, job: TrainingJob, work: UnitPlan, resources: TrainingResources, report: UnitCallback
) -> Iterator[tuple[str, str]]:
    """Train the units; yield the name and error of each that fails. Count classifiers need the patch networks first."""
    done = sum(job.run.is_done(unit) for unit in work.units)
    for stage in (work.of("patch", "image", "mil"), work.of("counts")):
        todo = [unit for unit in stage if not job.run.is_done(unit)]
        processes = resources.unit_workers if session is not None else 1
        parallel = [
            unit for unit in todo if processes > 1 and method_kind(unit.method, unit.input) in ("patch", "image")
        ]
        single = [unit for unit in todo if unit not in parallel]
        for unit, result in _run_parallel(session, job, parallel, single, resources):
            done += 1
            error = str(result) if isinstance(result, Exception) else None
            report(done, len(work.units), unit, error)
            if error is not None:
                yield unit.name, error


def _run_parallel(
    session: RaySession | None, job: TrainingJob, parallel: list[Unit], single: list[Unit], resources: TrainingResources
) -> Iterator[tuple[Unit, Any]]:
    """Train units of one process side by side, then units of several processes one after the other."""
    yield from map_unordered(session, partial(run_unit_in_worker, job), single, resources.unit_gpus)
    if session is not None:
        for unit in parallel:
            yield unit, run_data_parallel(session, job, unit, resources.unit_workers)


def run_unit_in_worker(job: TrainingJob, unit: Unit, device: str) -> str:
    """Train one unit; the function that a Ray worker calls."""
    return run_unit(job, unit, device)


def fused_tasks(job: TrainingJob) -> tuple[Task, ...]:
    """Return the tasks for which the run has the method `fusion`."""
    return tuple(map(job.training.task, job.training.tasks)) if FUSION in job.training.methods else ()


def collect_results(job: TrainingJob, work: UnitPlan, fused: Sequence[Task] = ()) -> pa.Table:
    """Write the run's predictions and metrics from all finished units; return the metrics.

    fused: tasks for which the predictions of the method `fusion` are added, which also reads the rules of the cohort.
    A task with units that are not trained, in a run that was stopped or has failures, is not fused.
    """
    run = job.run
    untrained = {unit.task for unit in work.units if unit.fold != FINAL_FOLD and not run.is_done(unit)}
    fused = [task for task in fused if task.name not in untrained]
    units = [unit for unit in work.units if unit.fold != FINAL_FOLD and run.is_done(unit)]
    tables = [read_parquet(run.unit(unit) / "predictions.parquet") for unit in sorted(units)]
    from her2batch.store.tables.runs import run_schema

    empty = run_schema("predictions").empty_table()
    keys = [(name, "ascending") for name in ("task", "method", "input", "fold", "slide_id")]
    tasks = {name: task for table in tables for name, task in tasks_of_table(table).items()}
    predictions = with_tasks(pa.concat_tables([empty, *tables]).sort_by(keys), tasks.values())
    if fused:
        rules = read_rule_predictions(job.cohort, fused, run.read("labels")["slide_id"].to_pylist())
        run.write("rules", rules)
        predictions = with_fusion(predictions, fused, rules)
    run.write("predictions", predictions)
    metrics = metrics_table(predictions)
    run.write("metrics", metrics)
    return metrics
