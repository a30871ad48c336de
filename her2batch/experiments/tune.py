"""Hyperparameter search with Ray Tune over a method's search space, inside the folds: no test data is used by a search.

In each outer fold, trials train on the training part and are evaluated on the validation part; ASHA stops poor trials
early. A unit with the best trial's settings is then trained and tested in the fold, and beside it one with the settings
without the search, which shows what the search gains. The settings that are best over all folds go into a bundle. Which
trials ASHA stops depends on the order in which they report, so it may differ between runs; the settings of the trials
(seeded) and the result of each trial do not.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import statistics
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
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
    fused_tasks,
    open_job,
    run_unit_in_worker,
)
from her2batch.experiments.tuning_gain import tuning_gain
from her2batch.experiments.units import TrainingJob, train_only
from her2batch.files.parquet import read_parquet
from her2batch.models.mil_registry import LogUniform
from her2batch.plugins import registered_rows, restore_rows
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Training, TrainingResources
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit, tasks_of_table, with_tasks
from her2batch.tasks import COUNTS_METHODS, FUSION
from her2batch.training.fit_loop import Progress
from her2batch.training.make_bundle import make_bundle
from her2batch.training.methods import method_kind, method_settings, plan_units, search_space, units_of_cells
from her2batch.training.metrics import metrics_summary, metrics_table

REDUCTION_FACTOR: Final = 3
"""Reduction factor of ASHA: a third of the trials continues at each rung."""

GRACE_EPOCHS: Final = 3
"""Epochs before ASHA may stop a trial."""

STOP_CHECK_S: Final = 0.5
"""Seconds between two looks at whether a search is to stop."""

UNTUNED: Final = "untuned"
"""Folder of the units that are trained with the settings without the search."""


@dataclass
class TuningSummary:
    """The result of a search.

    trials: of all outer folds.  best: the settings with the least mean validation loss.  gain: see `tuning_gain`.
    """

    trained: TrainingSummary
    trials: pa.Table
    best: dict[str, Any]
    gain: list[dict[str, Any]]

    @property
    def exit_code(self) -> int:
        """The exit code of the training."""
        return self.trained.exit_code


def tune(
    request: TrainingRequest,
    training: Training,
    samples: int,
    outer: int,
    resources: TrainingResources,
    report: UnitCallback = lambda *_: None,
) -> TuningSummary:
    """Search with `samples` trials in each of the first `outer` folds, test the best of each, and bundle the best of
    all.

    A resumed search keeps finished trials and continues the others.  Raises InputError for more than one method, task
    or input, and for a count classifier, which has its own search.
    """
    with TrainingRun(request.out.absolute()).removed_if_refused():
        return _tune(request, training, samples, outer, resources, report)


def _tune(
    request: TrainingRequest,
    training: Training,
    samples: int,
    outer: int,
    resources: TrainingResources,
    report: UnitCallback,
) -> TuningSummary:
    job = open_job(request, training)
    cell = _single_cell(job, resources)
    if FUSION in job.training.methods and outer < 2:
        what = f"{FUSION} learns from the predictions of at least two outer folds"
        raise InputError(what, None, "give --outer 2 or more, or omit the method")
    work = units_of_cells([cell], [*range(min(outer, job.training.folds)), FINAL_FOLD])
    searched = [unit for unit in work.units if unit.fold != FINAL_FOLD]
    check_libraries(job, work)
    with job.run.lock(), connect(resources) as session:
        prepare_run(job, work, request.labels, request.annotations, session, request.columns)
        trials = [row for unit in searched for row in _search(session, job, unit, samples, resources)]
        trials.sort(key=lambda row: (row["fold"], str(row["trial"])))
        table = pa.Table.from_pylist(trials, run_schema("trials"))
        job.run.write("trials", table)
        if session.stopped.is_set():
            empty = metrics_summary(run_schema("metrics").empty_table())
            return TuningSummary(TrainingSummary(job.run, empty, job.run.read("excluded"), {}, True), table, {}, [])
        best, untuned = _best_settings(trials, None), replace(job, run=replace(job.run, unit_folder=UNTUNED))
        final = units_of_cells([cell], [FINAL_FOLD])
        final_job = _with_settings(job, best)
        tuned = [(unit, _with_settings(job, _best_settings(trials, unit.fold))) for unit in searched]
        items = [*tuned, *((unit, untuned) for unit in searched), (final.units[0], final_job)]
        failed = _train_items(session, items, resources, report)
        metrics = collect_results(job, work, fused_tasks(job))
        gain = tuning_gain(metrics, _write_untuned_metrics(untuned, searched))
        if not failed:
            make_bundle(job.run, final, final_job.training, job.plan)
        stopped = session.stopped.is_set()
    trained = TrainingSummary(job.run, metrics_summary(metrics), job.run.read("excluded"), failed, stopped)
    return TuningSummary(trained, table, best, gain)


def _write_untuned_metrics(untuned: TrainingJob, units: list[Unit]) -> pa.Table:
    """Write and return the metrics of the units that were trained with the settings without the search."""
    done = [unit for unit in units if untuned.run.is_done(unit)]
    tables = [read_parquet(untuned.run.unit(unit) / "predictions.parquet") for unit in done]
    tasks = {name: task for table in tables for name, task in tasks_of_table(table).items()}
    predictions = with_tasks(pa.concat_tables([run_schema("predictions").empty_table(), *tables]), tasks.values())
    metrics = metrics_table(predictions)
    untuned.run.write("untuned_metrics", metrics)
    return metrics


def _single_cell(job: TrainingJob, resources: TrainingResources) -> tuple[str, str, str]:
    """Return the task, method and input of the search. Raises InputError unless there is exactly one of each.

    The method `fusion` beside it has nothing to search for: it stacks the tuned method and the rules.
    """
    count_methods = [method for method in job.training.methods if method in COUNTS_METHODS]
    if count_methods:
        what = f"{count_methods[0]} already searches its settings inside each fold"
        raise InputError(what, None, "use her2batch train")
    cells = {(unit.task, unit.method, unit.input) for unit in plan_units(job.training, job.plan.encoders).units}
    if len(cells) != 1 or len({*job.training.methods} - {FUSION}) != 1:
        names = ", ".join(sorted("/".join(cell) for cell in cells))
        raise InputError(f"a search needs one task, one method and one input, not {names}", None, "name one of each")
    if resources.workers == 0:
        raise InputError("a search needs Ray", None, "give --workers 1 or more")
    return next(iter(cells))


def _train_items(
    session: RaySession, items: list[tuple[Unit, TrainingJob]], resources: TrainingResources, report: UnitCallback
) -> dict[str, str]:
    """Train and test units, each with its own job; return unit → error of those that fail."""
    failed: dict[str, str] = {}
    todo = [(unit, job) for unit, job in items if not job.run.is_done(unit)]
    for count, (item, result) in enumerate(map_unordered(session, _run_item, todo, resources.unit_gpus), start=1):
        unit, job = item
        error = str(result) if isinstance(result, Exception) else None
        report(len(items) - len(todo) + count, len(items), unit, error)
        if error is not None:
            failed[unit.name if job.run.unit_folder != UNTUNED else f"{UNTUNED}/{unit.name}"] = error
    return failed


def _run_item(item: tuple[Unit, TrainingJob], device: str) -> str:
    """Train one unit with its own job; the function that a Ray worker calls."""
    return run_unit_in_worker(item[1], item[0], device)


def _with_settings(job: TrainingJob, best: dict[str, Any]) -> TrainingJob:
    """Return the job with these settings added to its own."""
    options = (*job.training.options, *(f"{name}={value}" for name, value in sorted(best.items())))
    return replace(job, training=job.training.model_copy(update={"options": options}))


def _best_settings(trials: list[dict[str, Any]], fold: int | None) -> dict[str, Any]:
    """Return the settings with the least validation loss, of one fold or in the mean over all.

    All folds try the same settings, because they have the same seed. Losses of different folds are of different slides:
    the least of all of them would be that of the easiest fold.  Raises InputError if all failed.
    """
    losses: dict[str, list[float]] = {}
    for row in trials:
        if fold in (None, row["fold"]) and row["val_loss"] is not None:
            losses.setdefault(row["settings"], []).append(row["val_loss"])
    if not losses:
        raise InputError("every trial failed", None, "see the errors in RUN/tune, then run the same command again")
    most = max(map(len, losses.values()))
    means = {text: statistics.fmean(values) for text, values in losses.items() if len(values) == most}
    settings: dict[str, Any] = json.loads(min(means, key=lambda text: (means[text], text)))
    return settings


def _search(
    session: RaySession, job: TrainingJob, unit: Unit, samples: int, resources: TrainingResources
) -> Iterator[dict[str, Any]]:
    """Run the trials of one outer fold; yield a row of the run's table `trials` for each. None in a stopped run."""
    if session.stopped.is_set():
        return
    tuner = _make_tuner(session, job, unit, samples, resources)
    with _silence_tune(), _stop_with(session):
        results = tuner.fit()
    for result in (results[k] for k in range(len(results))):
        metrics = result.metrics or {}
        if not session.stopped.is_set() and not result.error:
            _checkpoint(_search_folder(job, unit), str(metrics.get("trial_id"))).unlink(missing_ok=True)
        yield {
            "task": unit.task, "method": unit.method, "input": unit.input, "fold": unit.fold,
            "trial": metrics.get("trial_id"), "settings": json.dumps(result.config, sort_keys=True),
            "val_loss": metrics.get("best_loss"), "best_epoch": metrics.get("best_epoch"),
            "epochs": metrics.get("epoch"), "status": "failed" if result.error else "done",
        }  # fmt: skip


def _search_folder(job: TrainingJob, unit: Unit) -> Path:
    """Return the folder of the search of one outer fold, with the state of Ray Tune and the checkpoints of trials."""
    return job.run.root / "tune" / unit.name


def _checkpoint(folder: Path, trial: str) -> Path:
    """Return the path of a trial's checkpoint; it is removed once its search has ended, as it is as large as 1 GB."""
    return folder / f"{trial}.safetensors"


def _make_tuner(session: RaySession, job: TrainingJob, unit: Unit, samples: int, resources: TrainingResources) -> Any:
    """Return the Ray tuner of one outer fold; one that was interrupted continues from its folder."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    kind = method_kind(unit.method, unit.input)
    epochs = method_settings(unit.method, kind, job.training).model_dump()["epochs"]
    folder = _search_folder(job, unit)
    gpus = resources.unit_gpus if session.gpus > 0 else 0
    trial = ray_tune.with_parameters(_run_trial, job=job, unit=unit, folder=folder, registered=registered_rows())
    trainable = ray_tune.with_resources(trial, {"cpu": 1, "gpu": gpus})
    if ray_tune.Tuner.can_restore(str(folder)):
        return ray_tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, restart_errored=True)
    asha = ASHAScheduler(
        time_attr="epoch", max_t=epochs, grace_period=min(GRACE_EPOCHS, epochs), reduction_factor=REDUCTION_FACTOR
    )
    return ray_tune.Tuner(
        trainable,
        param_space={
            name: _search_domain(ray_tune, domain)
            for name, domain in search_space(unit.method, kind, job.training.profile).items()
        },
        tune_config=ray_tune.TuneConfig(
            metric="best_loss",
            mode="min",
            num_samples=samples,
            scheduler=asha,
            search_alg=BasicVariantGenerator(max_concurrent=session.workers, random_state=job.training.seed),
            reuse_actors=True,  # otherwise every trial loads torch again, longer than many of them train
        ),
        run_config=ray_tune.RunConfig(name=unit.name, storage_path=str(folder.parent), verbose=0),
    )


@contextmanager
def _stop_with(session: RaySession) -> Iterator[None]:
    """Let the search inside end in order when the run is stopped: Ray Tune saves its trials, which continue later.

    Ray Tune would take SIGINT away from the run and go on with the next fold, and knows nothing of SIGTERM. SIGUSR1 is
    its own signal for the same; like Ray Tune, this does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        yield
        return
    over, before = threading.Event(), signal.signal(signal.SIGUSR1, lambda *_: None)

    def watch() -> None:
        while not over.wait(STOP_CHECK_S):
            if session.stopped.is_set():  # again and again, as Ray Tune listens only once it has started
                os.kill(os.getpid(), signal.SIGUSR1)

    watcher = threading.Thread(target=watch, daemon=True)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _silence_tune() -> Iterator[None]:
    """Suppress the banner that Ray Tune prints on stdout even with verbose=0, and its warnings of optional packages."""
    log = logging.getLogger("ray.tune")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(before)


def _search_domain(ray_tune: Any, domain: Any) -> Any:
    """Return the Ray Tune domain of a setting's search space."""
    if isinstance(domain, LogUniform):
        return ray_tune.loguniform(domain.low, domain.high)
    return ray_tune.choice(list(domain.values))


def _run_trial(
    config: dict[str, Any], job: TrainingJob, unit: Unit, folder: Path, registered: Mapping[str, Mapping[str, Any]]
) -> None:
    """Run one trial in its own process, from its own checkpoint if there is one."""
    from ray import tune as ray_tune

    from her2batch.models.device import best_device

    restore_rows(registered)

    def report_epoch(progress: Progress) -> None:
        values = {"epoch": progress.epoch, "best_loss": progress.best_loss, "best_epoch": progress.best_epoch}
        ray_tune.report(values)

    checkpoint = _checkpoint(folder, str(ray_tune.get_context().get_trial_id()))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    train_only(_with_settings(job, config), unit, best_device(), report_epoch, checkpoint)
