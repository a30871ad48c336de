"""The paper's whole comparison in one command: every row of its tables, on the same folds, ours beside its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.experiments.prepare import label_task_slides, load_labels
from her2batch.experiments.train import (
    TrainingRequest,
    TrainingSummary,
    UnitCallback,
    open_job,
    run_units,
    write_run_report,
)
from her2batch.experiments.units import TrainingJob
from her2batch.reports.paper_tables import PaperRow, compare_with_paper, paper_rows
from her2batch.settings import Training, TrainingResources
from her2batch.store.training_run import FINAL_FOLD
from her2batch.tasks import PATCH_INPUTS, THUMBNAIL_INPUTS
from her2batch.training.methods import Cell, UnitPlan, units_of_cells


@dataclass
class ReproductionSummary:
    """What became of the paper's rows."""

    trained: TrainingSummary
    tables: pa.Table

    @property
    def exit_code(self) -> int:
        """As of the training; rows without data are no failure: they say so."""
        return self.trained.exit_code


def reproduce(
    study: TrainingRequest, training: Training, resources: TrainingResources, report: UnitCallback = lambda *_: None
) -> ReproductionSummary:
    """Train and test every row that the cohort has data for. Raises InputError when it has data for none."""
    job = open_job(study, training)
    encoder = next((one for one in training.inputs if one not in {**PATCH_INPUTS, **THUMBNAIL_INPUTS}), None)
    thumbnail = next((one for one in training.inputs if one in THUMBNAIL_INPUTS), "thumbnail-224")
    rows = [(row, row.cell(encoder or job.plan.encoders[0], thumbnail)) for row in paper_rows()]
    missing = _cells_without_data(job, study, rows)
    cells = [cell for _, cell in rows if cell not in missing]
    if not cells:
        raise InputError("has data for none of the paper's rows", study.cohort, next(iter(missing.values())))
    work = units_of_cells(cells, range(training.folds))
    trained = run_units(job, work, study, resources, report, choose_best_units)
    tables = compare_with_paper(rows, trained.summary, missing)
    job.run.write("tables", tables)
    write_run_report(job)
    return ReproductionSummary(trained, tables)


def _cells_without_data(job: TrainingJob, study: TrainingRequest, rows: list[tuple[PaperRow, Cell]]) -> dict[Cell, str]:
    """Cells that can't be run on this cohort, and why."""
    (table, _), slides = load_labels(job, study.labels), job.cohort.rows()
    found: dict[Cell, str] = {}
    problems: dict[str, str | None] = {}
    for _, cell in rows:
        task, _, given = cell
        if task not in problems:
            problems[task] = _label_problem(job, task, table, slides)
        if (why := problems[task]) is not None:
            found[cell] = why
        elif given in PATCH_INPUTS and study.annotations is None:
            found[cell] = "no annotated regions: give --annotations"
    return found


def _label_problem(job: TrainingJob, task: str, table: pa.Table, slides: Mapping[str, Mapping[str, Any]]) -> str | None:
    try:
        label_task_slides(job, task, table, slides)
    except InputError as error:
        return str(error)
    return None


def choose_best_units(summary: pa.Table) -> UnitPlan:
    """What goes into the bundle: for each task the slide method of the highest mean accuracy over the folds."""
    best: dict[str, dict[str, Any]] = {}
    for row in summary.to_pylist():
        slides = not (row["method"] == "convnext-small" and row["input"] in PATCH_INPUTS)
        if slides and row["accuracy_mean"] > best.get(row["task"], {"accuracy_mean": -1})["accuracy_mean"]:
            best[row["task"]] = row
    return units_of_cells([(row["task"], row["method"], row["input"]) for row in best.values()], [FINAL_FOLD])
