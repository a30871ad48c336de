"""Train: folds × methods × tasks as independent units on Ray; their figures; the bundle for the next slide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from her2batch.errors import STOPPED
from her2batch.experiments.data_parallel import run_data_parallel
from her2batch.experiments.prepare import check_libraries, prepare_run
from her2batch.experiments.units import TrainingJob, run_unit
from her2batch.files.locations import to_location
from her2batch.files.parquet import read_parquet
from her2batch.reports.cohort_page import write_report
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Training, TrainingResources, TrainJob
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit
from her2batch.training.make_bundle import make_bundle
from her2batch.training.methods import QUICK_PATCHES, UnitPlan, method_kind, plan_units
from her2batch.training.metrics import metrics_summary, metrics_table

UnitCallback = Callable[[int, int, Unit, str | None], None]
"""Called for every unit that ends: how many have, of how many, which, and why it failed, if it did."""


@dataclass(frozen=True)
class TrainingRequest:
    """What the user asked for, apart from settings: where, and with which files."""

    cohort: Path
    out: Path
    labels: Path | None = None
    annotations: Path | None = None


def training_request(job: TrainJob) -> TrainingRequest:
    """What a job's file asks for."""
    labels, annotations = (Path(one) if one is not None else None for one in (job.labels, job.annotations))
    return TrainingRequest(to_location(job.cohort), Path(job.out), labels, annotations)


@dataclass
class TrainingSummary:
    """What became of a run."""

    run: TrainingRun
    summary: pa.Table
    excluded: pa.Table
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """0 all units done · 3 some failed · 130 stopped."""
        return STOPPED if self.stopped else 3 if self.failed else 0


def train(
    study: TrainingRequest, training: Training, resources: TrainingResources, report: UnitCallback = lambda *_: None
) -> TrainingSummary:
    """Train whatever of the run is not trained yet. Raises InputError, StoreError, WeightsError before it starts."""
    job = open_job(study, training)
    trained = run_units(job, plan_units(job.training, job.plan.encoders), study, resources, report)
    write_run_report(job)
    return trained


def write_run_report(job: TrainingJob) -> None:
    """Write RUN/report.html: what the run found, beside the cohort it was trained on."""
    write_report(job.cohort, job.run.report, job.run, pages=0)


def open_job(study: TrainingRequest, training: Training) -> TrainingJob:
    """The run's job, its folder begun or found as it was left. Raises InputError, StoreError."""
    cohort = Cohort(to_location(study.cohort))
    plan_of_cohort = cohort.plan()
    if training.quick and training.patches_per_slide is None:
        training = training.model_copy(update={"patches_per_slide": QUICK_PATCHES})
    plan_units(training, plan_of_cohort.encoders)  # refuses what is not known before a folder is made
    run = TrainingRun(study.out.absolute())
    settings = {
        "cohort": str(cohort.root),
        "plan": plan_of_cohort.model_dump(mode="json", exclude_none=True),
        "training": training.model_dump(mode="json", exclude_none=True),
        **{name: str(path.absolute()) for name, path in _input_files(study).items()},
    }
    run.open_or_create(settings)
    return TrainingJob(run, cohort, plan_of_cohort, training)


def _input_files(study: TrainingRequest) -> dict[str, Path]:
    given = {"labels": study.labels, "annotations": study.annotations}
    return {name: path for name, path in given.items() if path is not None}


def read_request(root: Path) -> tuple[TrainingRequest, Training]:
    """A run's own order and settings, to take it up again. Raises InputError."""
    found = TrainingRun(root).read_settings()
    files = {name: Path(found[name]) for name in ("labels", "annotations") if name in found}
    return TrainingRequest(to_location(found["cohort"]), root, **files), Training.model_validate(found["training"])


ChooseFinalUnits = Callable[[pa.Table], UnitPlan]
"""From the summary of the folds to the final units, which go into the bundle."""


def run_units(
    job: TrainingJob,
    work: UnitPlan,
    study: TrainingRequest,
    resources: TrainingResources,
    report: UnitCallback,
    choose: ChooseFinalUnits | None = None,
) -> TrainingSummary:
    """Prepare, train every unit that is not done, collect, make the bundle.

    choose: which final units follow once the folds are done; None: they are in `work` already.
    """
    check_libraries(job, work)
    with job.run.lock(), _connect_if_needed(resources, job, work) as session:
        prepare_run(job, work, study.labels, study.annotations, session)
        failed = dict(_train_units(session, job, work, resources, report))
        found = metrics_summary(collect_results(job.run, work))
        if choose is not None and not failed and not _is_stopped(session):
            work = choose(found)
            failed = dict(_train_units(session, job, work, resources, report))
        if not failed and not _is_stopped(session):
            make_bundle(job.run, work, job.training, job.plan)
        return TrainingSummary(job.run, found, job.run.read("excluded"), failed, _is_stopped(session))


def _is_stopped(session: RaySession | None) -> bool:
    return session is not None and session.stopped.is_set()


@contextmanager
def _connect_if_needed(resources: TrainingResources, job: TrainingJob, work: UnitPlan) -> Iterator[RaySession | None]:
    """None for the plain loop, and where nothing is left to do."""
    if resources.workers == 0 or all(job.run.is_done(one) for one in work.units):
        yield None
        return
    with connect(resources) as session:
        yield session


def _train_units(
    session: RaySession | None, job: TrainingJob, work: UnitPlan, resources: TrainingResources, report: UnitCallback
) -> Iterator[tuple[str, str]]:
    """Train; yields the units that failed, with the reason. Counts wait for the patch nets that they need."""
    done = sum(job.run.is_done(one) for one in work.units)
    for wave in (work.of("patch", "image", "mil"), work.of("counts")):
        todo = [one for one in wave if not job.run.is_done(one)]
        together = resources.unit_workers if session is not None else 1
        wide = [one for one in todo if together > 1 and method_kind(one.method, one.input) in ("patch", "image")]
        alone = [one for one in todo if one not in wide]
        for unit, result in _run_parallel(session, job, wide, alone, resources):
            done += 1
            why = str(result) if isinstance(result, Exception) else None
            report(done, len(work.units), unit, why)
            if why is not None:
                yield unit.name, why


def _run_parallel(
    session: RaySession | None, job: TrainingJob, wide: list[Unit], alone: list[Unit], resources: TrainingResources
) -> Iterator[tuple[Unit, Any]]:
    yield from map_unordered(session, partial(run_unit_in_worker, job), alone, resources.unit_gpus)
    if session is not None:
        for unit in wide:
            yield unit, run_data_parallel(session, job, unit, resources.unit_workers)


def run_unit_in_worker(job: TrainingJob, unit: Unit, device: str) -> str:
    """A unit, in a worker."""
    return run_unit(job, unit, device)


def collect_results(run: TrainingRun, work: UnitPlan) -> pa.Table:
    """The run's predictions and metrics, from all units that are done; returns the metrics."""
    units = [one for one in work.units if one.fold != FINAL_FOLD and run.is_done(one)]
    tables = [read_parquet(run.unit(one) / "predictions.parquet") for one in sorted(units)]
    from her2batch.store.schemas import run_schema

    empty = run_schema("predictions").empty_table()
    keys = [(name, "ascending") for name in ("task", "method", "input", "fold", "slide_id")]
    predictions = pa.concat_tables([empty, *tables]).sort_by(keys)
    run.write("predictions", predictions)
    figures = metrics_table(predictions)
    run.write("metrics", figures)
    return figures
