"""Reproduction of the paper: train every row of its tables on the same folds and compare the metrics with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.experiments.prepare import (
    MissingPatchClassError,
    label_task_slides,
    load_labels,
    read_checked_labels,
)
from her2batch.experiments.train import (
    TrainingRequest,
    TrainingSummary,
    UnitCallback,
    open_job,
    run_units,
    write_run_report,
)
from her2batch.experiments.training_cost import CostRow, RunSize, describe_settings, estimate_cost
from her2batch.experiments.units import TrainingJob
from her2batch.files.locations import to_location
from her2batch.models.encoders import embedding_dim
from her2batch.reports.paper_tables import PaperRow, compare_with_paper, further_rows, fusion_rows, paper_rows
from her2batch.settings import Training, TrainingResources
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import FINAL_FOLD, TrainingRun
from her2batch.tasks import FURTHER_NETWORKS, FUSION, PATCH_INPUTS, THUMBNAIL_INPUTS, Task, classifies_patches
from her2batch.training.methods import (
    PATCH_NET,
    Cell,
    UnitPlan,
    method_kind,
    method_settings,
    patch_network,
    units_of_cells,
)
from her2batch.training.recipes.profiles import with_run_defaults


@dataclass
class ReproductionSummary:
    """The result of a reproduction. tables: the paper's rows, with its metrics and ours."""

    trained: TrainingSummary
    tables: pa.Table

    @property
    def exit_code(self) -> int:
        """The exit code of the training. Rows without data are not failures; the table gives the reason."""
        return self.trained.exit_code


def reproduce(
    request: TrainingRequest, training: Training, resources: TrainingResources, report: UnitCallback = lambda *_: None
) -> ReproductionSummary:
    """Train and test every row for which the cohort has data. Raises InputError when it has data for none."""
    with TrainingRun(request.out.absolute()).removed_if_refused():
        return _reproduce(request, training, resources, report)


def _reproduce(
    request: TrainingRequest, training: Training, resources: TrainingResources, report: UnitCallback
) -> ReproductionSummary:
    job = open_job(request, training)
    rows = _wanted_rows(job)
    missing = _cells_without_data(job, request, rows)
    trained = None
    while trained is None:
        cells = [cell for _, cell in rows if cell not in missing]
        if not cells:
            raise InputError(
                "the cohort has data for none of the paper's rows", request.cohort, next(iter(missing.values()))
            )
        network = patch_network(job.training)
        work = units_of_cells(cells, range(job.training.folds), network)
        try:
            choose = partial(choose_best_units, network=network)
            trained = run_units(job, work, request, resources, report, choose, _fused_tasks(job, cells))
        except MissingPatchClassError as error:  # found before any training: the rows of this resolution have no data
            missing |= {cell: str(error) for cell in cells if cell[2] == error.input_name}
    own = fusion_rows(dict.fromkeys(row.task for row, _ in rows))
    reasons = {cell[0]: why for cell, why in missing.items() if not classifies_patches(*cell[1:])}
    fusions = [(row, (row.task, row.method, row.input)) for row in own]
    missing |= {cell: reasons[cell[0]] for _, cell in fusions if cell[0] in reasons}
    settings = {cell: _settings_text(job.training, cell) for _, cell in rows}
    tables = compare_with_paper([*rows, *fusions], trained.summary, missing, settings, job.training.folds)
    job.run.write("tables", tables)
    write_run_report(job)
    return ReproductionSummary(trained, tables)


def _wanted_rows(job: TrainingJob) -> list[tuple[PaperRow, Cell]]:
    """Return the paper's rows, and with a profile rows of ours, each with its cell in this run.

    The MIL methods read the run's first encoder. With the profile `laptop` they read all of them: the paper's rows
    read EfficientNet-Lite0 where the cohort has it, the rows of ours the others.
    """
    inputs, profile = job.training.inputs, job.training.profile
    encoders = [name for name in inputs if name not in {**PATCH_INPUTS, **THUMBNAIL_INPUTS}] or [*job.plan.encoders]
    thumbnail = next((name for name in inputs if name in THUMBNAIL_INPUTS), "thumbnail-224")
    if profile == "laptop":
        encoders.sort(key=lambda name: name not in FURTHER_NETWORKS)
    further = further_rows(encoders[1:] if profile == "laptop" else ()) if profile is not None else []
    return [(row, row.cell(encoders[0], thumbnail)) for row in [*paper_rows(), *further]]


def _settings_text(training: Training, cell: Cell) -> str:
    """Return the settings of a cell in this run, as text."""
    _, method, input_name = cell
    return describe_settings(method, method_settings(method, method_kind(method, input_name), training))


def estimate_reproduction(request: TrainingRequest, training: Training) -> list[CostRow]:
    """Return the estimated CPU time of each method on each input; nothing is written. Raises InputError.

    The models of the bundle, which are chosen when the folds are done, are not included.
    """
    cohort = Cohort(to_location(request.cohort))
    training = with_run_defaults(training)
    job = TrainingJob(TrainingRun(request.out.absolute()), cohort, cohort.plan(), training)
    table, rows = read_checked_labels(job, request.labels, request.columns), cohort.rows()
    slides: dict[str, int] = {}
    cells = []
    for _, cell in _wanted_rows(job):
        task, _, input_name = cell
        if task not in slides:
            problem = _label_problem(job, task, table, rows)
            slides[task] = 0 if problem else label_task_slides(job, task, table, rows)[0].num_rows
        if slides[task] and (input_name not in PATCH_INPUTS or request.annotations is not None):
            cells.append(cell)
    tiles = [row["n_tiles"] for row in rows.values() if row["n_tiles"]]
    dims = {name: embedding_dim(name) for name in job.plan.encoders}
    size = RunSize(slides, sum(tiles) / max(len(tiles), 1), dims)
    work = units_of_cells(cells, range(training.folds), patch_network(training))
    return estimate_cost(work, training, size)


def _fused_tasks(job: TrainingJob, cells: Iterable[Cell]) -> list[Task]:
    """Return the tasks for which a method predicts slides, which a fusion can stack."""
    names = dict.fromkeys(task for task, method, input_name in cells if not classifies_patches(method, input_name))
    return [job.training.task(name) for name in names]


def _cells_without_data(
    job: TrainingJob, request: TrainingRequest, rows: list[tuple[PaperRow, Cell]]
) -> dict[Cell, str]:
    """Return the cells that cannot be trained on this cohort, with the reasons."""
    (table, _), slides = load_labels(job, request.labels, request.columns), job.cohort.rows()
    missing: dict[Cell, str] = {}
    problems: dict[str, str | None] = {}
    for _, cell in rows:
        task, _, input_name = cell
        if task not in problems:
            problems[task] = _label_problem(job, task, table, slides)
        if (problem := problems[task]) is not None:
            missing[cell] = problem
        elif input_name in PATCH_INPUTS and request.annotations is None:
            missing[cell] = "no annotated regions: give --annotations"
    return missing


def _label_problem(job: TrainingJob, task: str, table: pa.Table, slides: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return why the labels do not suffice for a task, or None."""
    try:
        label_task_slides(job, task, table, slides)
    except InputError as error:
        return str(error)
    return None


def choose_best_units(summary: pa.Table, network: str = PATCH_NET) -> UnitPlan:
    """Return the units for the bundle: for each task the slide method with the highest mean accuracy over the folds.
    A fusion is none of them: it would need all others.

    network: classifies patches.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in summary.to_pylist():
        scores_slides = row["method"] != FUSION and not classifies_patches(row["method"], row["input"])
        if scores_slides and row["accuracy_mean"] > best.get(row["task"], {"accuracy_mean": -1})["accuracy_mean"]:
            best[row["task"]] = row
    return units_of_cells([(row["task"], row["method"], row["input"]) for row in best.values()], [FINAL_FOLD], network)
