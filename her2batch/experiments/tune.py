"""Ray Tune over a method's documented search space, inside the folds: no test part is read before the search is over.

For each outer fold, trials train on its training part and are judged on its validation part; ASHA ends those that fall
behind. The best trial's settings are then trained and tested there like any unit, and the best of all go into a bundle.
ASHA decides by the order in which trials report, so which of them end early is not the same in every run; their
settings (seeded) and what each computes are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.experiments.prepare import check_libraries, prepare_run
from her2batch.experiments.train import (
    TrainingRequest,
    TrainingSummary,
    UnitCallback,
    collect_results,
    open_job,
    run_unit_in_worker,
)
from her2batch.experiments.units import TrainingJob, train_only
from her2batch.models.mil_registry import LogUniform
from her2batch.plugins import registered_rows, restore_rows
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Training, TrainingResources
from her2batch.store.schemas import run_schema
from her2batch.store.training_run import FINAL_FOLD, Unit
from her2batch.tasks import COUNTS_METHODS
from her2batch.training.fit_loop import Progress
from her2batch.training.make_bundle import make_bundle
from her2batch.training.methods import method_kind, method_settings, plan_units, search_space, units_of_cells
from her2batch.training.metrics import metrics_summary

REDUCTION_FACTOR: Final = 3
"""ASHA keeps a third at each rung."""

GRACE_EPOCHS: Final = 3
"""Epochs that every trial gets."""


@dataclass
class TuningSummary:
    """What a search found. trials: of all outer folds.  best: the settings of the least validation loss."""

    trained: TrainingSummary
    trials: pa.Table
    best: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """As of the training."""
        return self.trained.exit_code


def tune(
    study: TrainingRequest,
    training: Training,
    samples: int,
    outer: int,
    resources: TrainingResources,
    report: UnitCallback = lambda *_: None,
) -> TuningSummary:
    """Search with `samples` trials in each of the first `outer` folds; test the best of each there; bundle the best.

    Resumes: trials that ended stay, others go on.  Raises InputError for more than one method, task or input, and for
    a method whose search is inside its folds already.
    """
    job = open_job(study, training)
    cell = _single_cell(job, resources)
    work = units_of_cells([cell], [*range(min(outer, training.folds)), FINAL_FOLD])
    searched = [one for one in work.units if one.fold != FINAL_FOLD]
    check_libraries(job, work)
    with job.run.lock(), connect(resources) as session:
        prepare_run(job, work, study.labels, study.annotations, session)
        trials = [row for unit in searched for row in _search(session, job, unit, samples, resources)]
        trials.sort(key=lambda row: (row["fold"], str(row["trial"])))
        table = pa.Table.from_pylist(trials, run_schema("trials"))
        job.run.write("trials", table)
        jobs = {unit: _with_settings(job, _best_settings(trials, unit.fold)) for unit in searched}
        jobs |= {Unit(*cell, FINAL_FOLD): _with_settings(job, _best_settings(trials, None))}
        failed = _train_with_best(session, jobs, resources, report)
        found = metrics_summary(collect_results(job.run, work))
        if not failed:
            final = units_of_cells([cell], [FINAL_FOLD])
            make_bundle(job.run, final, jobs[final.units[0]].training, job.plan)
        stopped = session.stopped.is_set()
    return TuningSummary(
        TrainingSummary(job.run, found, job.run.read("excluded"), failed, stopped), table, _best_settings(trials, None)
    )


def _single_cell(job: TrainingJob, resources: TrainingResources) -> tuple[str, str, str]:
    counting = [one for one in job.training.methods if one in COUNTS_METHODS]
    if counting:
        raise InputError(f"{counting[0]} searches its grid inside each fold already", None, "use her2batch train")
    cells = {(one.task, one.method, one.input) for one in plan_units(job.training, job.plan.encoders).units}
    if len(cells) != 1 or len(job.training.methods) != 1:
        given = ", ".join(sorted("/".join(one) for one in cells))
        raise InputError(f"a search is over one task, method and input, not {given}", None, "name one of each")
    if resources.workers == 0:
        raise InputError("a search needs Ray", None, "give --workers 1 or more")
    return next(iter(cells))


def _train_with_best(
    session: RaySession, jobs: dict[Unit, TrainingJob], resources: TrainingResources, report: UnitCallback
) -> dict[str, str]:
    """Train and test with the best settings."""
    failed: dict[str, str] = {}
    todo = [(unit, job) for unit, job in jobs.items() if not job.run.is_done(unit)]
    for count, (item, result) in enumerate(map_unordered(session, _run_item, todo, resources.unit_gpus), start=1):
        why = str(result) if isinstance(result, Exception) else None
        report(len(jobs) - len(todo) + count, len(jobs), item[0], why)
        if why is not None:
            failed[item[0].name] = why
    return failed


def _run_item(item: tuple[Unit, TrainingJob], device: str) -> str:
    return run_unit_in_worker(item[1], item[0], device)


def _with_settings(job: TrainingJob, best: dict[str, Any]) -> TrainingJob:
    """The job with these settings on top of its own."""
    options = (*job.training.options, *(f"{name}={value}" for name, value in sorted(best.items())))
    return replace(job, training=job.training.model_copy(update={"options": options}))


def _best_settings(trials: list[dict[str, Any]], fold: int | None) -> dict[str, Any]:
    """Settings of the least validation loss, in one fold or in all. Raises InputError when every trial failed."""
    here = [row for row in trials if fold in (None, row["fold"]) and row["val_loss"] is not None]
    if not here:
        raise InputError("every trial failed", None, "see the errors in RUN/tune, then run the same command again")
    found: dict[str, Any] = json.loads(min(here, key=lambda row: (row["val_loss"], row["trial"]))["settings"])
    return found


def _search(
    session: RaySession, job: TrainingJob, unit: Unit, samples: int, resources: TrainingResources
) -> Iterator[dict[str, Any]]:
    """The trials of one outer fold, one row each."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    kind = method_kind(unit.method, unit.input)
    epochs = method_settings(unit.method, kind, job.training).model_dump()["epochs"]
    place = job.run.root / "tune" / unit.name
    gpus = resources.unit_gpus if session.gpus > 0 else 0
    trial = ray_tune.with_parameters(_run_trial, job=job, unit=unit, place=place, registered=registered_rows())
    trainable = ray_tune.with_resources(trial, {"cpu": 1, "gpu": gpus})
    if ray_tune.Tuner.can_restore(str(place)):
        tuner = ray_tune.Tuner.restore(str(place), trainable, resume_unfinished=True, restart_errored=True)
    else:
        asha = ASHAScheduler(
            time_attr="epoch", max_t=epochs, grace_period=min(GRACE_EPOCHS, epochs), reduction_factor=REDUCTION_FACTOR
        )
        tuner = ray_tune.Tuner(
            trainable,
            param_space={name: _search_domain(ray_tune, one) for name, one in search_space(unit.method, kind).items()},
            tune_config=ray_tune.TuneConfig(
                metric="best_loss",
                mode="min",
                num_samples=samples,
                scheduler=asha,
                search_alg=BasicVariantGenerator(random_state=job.training.seed),
                max_concurrent_trials=session.workers,
            ),
            run_config=ray_tune.RunConfig(name=unit.name, storage_path=str(place.parent), verbose=0),
        )
    results = tuner.fit()
    for result in (results[k] for k in range(len(results))):
        figures = result.metrics or {}
        yield {
            "task": unit.task, "method": unit.method, "input": unit.input, "fold": unit.fold,
            "trial": figures.get("trial_id"), "settings": json.dumps(result.config, sort_keys=True),
            "val_loss": figures.get("best_loss"), "best_epoch": figures.get("best_epoch"),
            "epochs": figures.get("epoch"), "status": "failed" if result.error else "done",
        }  # fmt: skip


def _search_domain(ray_tune: Any, one: Any) -> Any:
    return ray_tune.loguniform(one.low, one.high) if isinstance(one, LogUniform) else ray_tune.choice(list(one.values))


def _run_trial(
    config: dict[str, Any], job: TrainingJob, unit: Unit, place: Path, registered: Mapping[str, Mapping[str, Any]]
) -> None:
    """One trial, in a process of its own; it goes on from its own checkpoint."""
    from ray import tune as ray_tune

    from her2batch.models.device import best_device

    restore_rows(registered)

    def tell(at: Progress) -> None:
        ray_tune.report({"epoch": at.epoch, "best_loss": at.best_loss, "best_epoch": at.best_epoch})

    checkpoint = place / f"{ray_tune.get_context().get_trial_id()}.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    train_only(_with_settings(job, config), unit, best_device(), tell, checkpoint)
