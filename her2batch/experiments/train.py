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
from her2batch.experiments.data_parallel import run_together
from her2batch.experiments.prepare import prepare
from her2batch.experiments.units import Job, run_unit
from her2batch.files.locations import place
from her2batch.files.parquet import read_parquet
from her2batch.reports.cohort_page import write
from her2batch.runtime.parallel import spread
from her2batch.runtime.ray_session import Session, connect
from her2batch.settings import FoldsJob, Spread, Training
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import FINAL, Run, Unit
from her2batch.training.make_bundle import make_bundle
from her2batch.training.methods import QUICK_PATCHES, Work, kind_of, plan
from her2batch.training.metrics import metrics, summary

Report = Callable[[int, int, Unit, str | None], None]
"""Called for every unit that ends: how many have, of how many, which, and why it failed, if it did."""


@dataclass(frozen=True)
class Study:
    """What the user asked for, apart from settings: where, and with which files."""

    cohort: Path
    out: Path
    labels: Path | None = None
    annotations: Path | None = None


def study_of(job: FoldsJob) -> Study:
    """What a job's file asks for."""
    labels, annotations = (Path(one) if one is not None else None for one in (job.labels, job.annotations))
    return Study(place(job.cohort), Path(job.out), labels, annotations)


@dataclass
class Trained:
    """What became of a run."""

    run: Run
    summary: pa.Table
    excluded: pa.Table
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """0 all units done · 3 some failed · 130 stopped."""
        return STOPPED if self.stopped else 3 if self.failed else 0


def train(study: Study, training: Training, resources: Spread, report: Report = lambda *_: None) -> Trained:
    """Train whatever of the run is not trained yet. Raises InputError, StoreError, WeightsError before it starts."""
    job = job_of(study, training)
    trained = carry_out(job, plan(job.training, job.plan.encoders), study, resources, report)
    tell(job)
    return trained


def tell(job: Job) -> None:
    """Write RUN/report.html: what the run found, beside the cohort it was trained on."""
    write(job.cohort, job.run.report, job.run, pages=0)


def job_of(study: Study, training: Training) -> Job:
    """The run's job, its folder begun or found as it was left. Raises InputError, StoreError."""
    cohort = Cohort(place(study.cohort))
    plan_of_cohort = cohort.plan()
    if training.quick and training.patches_per_slide is None:
        training = training.model_copy(update={"patches_per_slide": QUICK_PATCHES})
    plan(training, plan_of_cohort.encoders)  # refuses what is not known before a folder is made
    run = Run(study.out.absolute())
    settings = {
        "cohort": str(cohort.root),
        "plan": plan_of_cohort.model_dump(mode="json", exclude_none=True),
        "training": training.model_dump(mode="json", exclude_none=True),
        **{name: str(path.absolute()) for name, path in _files(study).items()},
    }
    run.begin(settings)
    return Job(run, cohort, plan_of_cohort, training)


def _files(study: Study) -> dict[str, Path]:
    given = {"labels": study.labels, "annotations": study.annotations}
    return {name: path for name, path in given.items() if path is not None}


def resumed(root: Path) -> tuple[Study, Training]:
    """A run's own order and settings, to take it up again. Raises InputError."""
    found = Run(root).read_settings()
    files = {name: Path(found[name]) for name in ("labels", "annotations") if name in found}
    return Study(place(found["cohort"]), root, **files), Training.model_validate(found["training"])


Choose = Callable[[pa.Table], Work]
"""From the summary of the folds to the final units, which go into the bundle."""


def carry_out(
    job: Job, work: Work, study: Study, resources: Spread, report: Report, choose: Choose | None = None
) -> Trained:
    """Prepare, train every unit that is not done, collect, make the bundle.

    choose: which final units follow once the folds are done; None: they are in `work` already.
    """
    with job.run.lock(), _session(resources, job, work) as session:
        prepare(job, work, study.labels, study.annotations, session)
        failed = dict(_units(session, job, work, resources, report))
        found = summary(collect(job.run, work))
        if choose is not None and not failed and not _stopped(session):
            work = choose(found)
            failed = dict(_units(session, job, work, resources, report))
        if not failed and not _stopped(session):
            make_bundle(job.run, work, job.training, job.plan)
        return Trained(job.run, found, job.run.read("excluded"), failed, _stopped(session))


def _stopped(session: Session | None) -> bool:
    return session is not None and session.stopped.is_set()


@contextmanager
def _session(resources: Spread, job: Job, work: Work) -> Iterator[Session | None]:
    """None for the plain loop, and where nothing is left to do."""
    if resources.workers == 0 or all(job.run.done(one) for one in work.units):
        yield None
        return
    with connect(resources) as session:
        yield session


def _units(
    session: Session | None, job: Job, work: Work, resources: Spread, report: Report
) -> Iterator[tuple[str, str]]:
    """Train; yields the units that failed, with the reason. Counts wait for the patch nets that they need."""
    done = sum(job.run.done(one) for one in work.units)
    for wave in (work.of("patch", "image", "mil"), work.of("counts")):
        todo = [one for one in wave if not job.run.done(one)]
        together = resources.unit_workers if session is not None else 1
        wide = [one for one in todo if together > 1 and kind_of(one.method, one.input) in ("patch", "image")]
        alone = [one for one in todo if one not in wide]
        for unit, result in _both(session, job, wide, alone, resources):
            done += 1
            why = str(result) if isinstance(result, Exception) else None
            report(done, len(work.units), unit, why)
            if why is not None:
                yield unit.name, why


def _both(
    session: Session | None, job: Job, wide: list[Unit], alone: list[Unit], resources: Spread
) -> Iterator[tuple[Unit, Any]]:
    yield from spread(session, partial(one_unit, job), alone, resources.unit_gpus)
    if session is not None:
        for unit in wide:
            yield unit, run_together(session, job, unit, resources.unit_workers)


def one_unit(job: Job, unit: Unit, device: str) -> str:
    """A unit, in a worker."""
    return run_unit(job, unit, device)


def collect(run: Run, work: Work) -> pa.Table:
    """The run's predictions and metrics, from all units that are done; returns the metrics."""
    units = [one for one in work.units if one.fold != FINAL and run.done(one)]
    tables = [read_parquet(run.unit(one) / "predictions.parquet") for one in sorted(units)]
    from her2batch.store.schemas import run_schema

    empty = run_schema("predictions").empty_table()
    keys = [(name, "ascending") for name in ("task", "method", "input", "fold", "slide_id")]
    predictions = pa.concat_tables([empty, *tables]).sort_by(keys)
    run.write("predictions", predictions)
    figures = metrics(predictions)
    run.write("metrics", figures)
    return figures
