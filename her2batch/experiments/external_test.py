"""Test of a run's bundle on other cohorts, none of whose patients it was trained on.

It writes RUN/test_predictions.parquet and RUN/test_metrics.parquet (docs/tables.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.experiments.units import TrainingJob
from her2batch.files.atomic import atomic_write
from her2batch.files.locations import to_location
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.models.bundle import Bundle, read_bundle
from her2batch.runtime.score import score
from her2batch.settings import Resources
from her2batch.store.cohort import Cohort, Row
from her2batch.store.label_sheets.stored import stored_label_table
from her2batch.store.labels import check_labels, label_slides, read_labels
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import TrainingRun, tasks_of_table, with_tasks
from her2batch.tasks import further_columns, task_applies
from her2batch.training.metrics import CELL, check_predictions, grouped_rows
from her2batch.training.statistics import MIN_AUC_SLIDES, bootstrap_intervals, smallest_class

TABLES: Final = ("test_predictions", "test_metrics")


@dataclass(frozen=True)
class TestCohort:
    """A cohort to test on.  labels: a label sheet; None: the labels that were given to its ingest."""

    __test__ = False  # no test of pytest

    cohort: Path
    labels: Path | None = None


def pair_test_cohorts(cohorts: Sequence[Path], labels: Sequence[Path]) -> tuple[TestCohort, ...]:
    """Return the test cohorts of repeated options. Raises InputError unless each, or none, has labels."""
    if labels and len(labels) != len(cohorts):
        what = f"--test-labels is given {len(labels)} times, --test {len(cohorts)} times"
        raise InputError(what, None, "give one --test-labels for each --test, in their order, or none")
    sheets: Sequence[Path | None] = labels or [None] * len(cohorts)
    return tuple(TestCohort(to_location(cohort), sheet) for cohort, sheet in zip(cohorts, sheets, strict=True))


def check_test_cohorts(job: TrainingJob, tests: Sequence[TestCohort], labels: pa.Table) -> None:
    """Refuse cohorts that the bundle of a run cannot be tested on, before it is trained.

    labels: of the run.  Raises InputError for labels that cannot be read, another mpp or tile, embeddings that are
    missing, slides to which no task applies, and slides or patients that the run trains on.
    """
    rows = job.cohort.rows()
    own = {row["slide_id"]: row["patient_id"] for row in labels.to_pylist() if row["slide_id"] in rows}
    patients = set(own.values()) - {None}
    files = {rows[slide_id]["sha256"]: slide_id for slide_id in own if rows[slide_id]["sha256"]}
    for test in tests:
        cohort = Cohort(test.cohort)
        plan = cohort.plan()
        if (plan.mpp, plan.tile) != (job.plan.mpp, job.plan.tile):
            what = f"has tiles of {plan.tile} px at {plan.mpp} µm/px; the run has {job.plan.tile} px at {job.plan.mpp}"
            raise InputError(what, cohort.root, f"ingest it with --mpp {job.plan.mpp} --tile {job.plan.tile}")
        others = {row["slide_id"]: row for row in _labels(job, test).to_pylist()}
        if shared := sorted(patients & {row["patient_id"] for row in others.values()}):
            what = f"patient {shared[0]} is in training and test ({len(shared)} patients)"
            raise InputError(what, cohort.root, "remove the patient's slides from one of the two label sheets")
        there = cohort.rows()
        for slide_id, row in there.items():
            if slide_id in others and row["sha256"] in files:
                what = f"slide {slide_id} is the slide {files[row['sha256']]} that the run trains on"
                raise InputError(what, cohort.root, "remove it from one of the two label sheets")
        tasks = [job.training.task(name) for name in job.training.tasks]
        if not any(task_applies(task, row["stain"]) for task in tasks for row in there.values()):
            what = f"{', '.join(task.name for task in tasks)} applies to none of its slides"
            raise InputError(what, cohort.root, "state the stain in the labels, and give them to its ingest")


def _labels(job: TrainingJob, test: TestCohort) -> pa.Table:
    """Return the labels of a test cohort. Raises InputError where there are none, or they do not fit."""
    cohort = Cohort(test.cohort)
    further = further_columns(job.training.task(name) for name in job.training.tasks)
    if test.labels is not None:
        table = read_labels(test.labels, cohort, further=further)
        check_labels(table, cohort.rows(), test.labels)
        return table
    if further or not cohort.labels.is_file():
        what = f"has no labels with the column {further[0]}" if further else "has no labels"
        raise InputError(what, cohort.root, "give --test-labels FILE")
    return stored_label_table(cohort)


def score_test_cohorts(job: TrainingJob, tests: Sequence[TestCohort], resources: Resources) -> pa.Table:
    """Score the test cohorts with the run's bundle, write the two tables, and return the metrics.

    Raises InputError, StoreError as `score` does.
    """
    bundle = read_bundle(job.run.bundle)
    predictions, metrics = [], []
    for test in tests:
        score(test.cohort, bundle.path, resources)
        rows, patients = _tested(job, bundle, test)
        if not rows:
            what = "none of its labelled slides has a prediction of the bundle"
            raise InputError(what, test.cohort, "state the stain in the labels, and give them to its ingest")
        table = pa.Table.from_pylist(rows, run_schema("predictions"))
        table = with_tasks(table, map(bundle.info.task, bundle.info.tasks))
        predictions += [{"cohort": str(test.cohort), **row} for row in rows]
        metrics += _metrics(str(test.cohort), table, patients)
    tables = [
        pa.Table.from_pylist(rows, run_schema(name)) for name, rows in zip(TABLES, (predictions, metrics), strict=True)
    ]
    for name, table in zip(TABLES, tables, strict=True):
        with atomic_write(job.run.table(name)) as part:
            write_parquet(table, part)
    return tables[1]


def _metrics(name: str, predictions: pa.Table, patients: dict[str, str]) -> list[Row]:
    """Return the metrics of one cohort with their intervals. A class of few slides leaves no AUC."""
    tasks, facts = tasks_of_table(predictions), {}
    for keys, part in grouped_rows(predictions, CELL):
        few = False
        if not tasks[keys["task"]].is_number:
            checked = check_predictions(part)
            few = smallest_class(checked.truth, checked.p.shape[1]) < MIN_AUC_SLIDES
        facts[tuple(keys.values())] = (part.num_rows, few)
    rows = []
    for row in bootstrap_intervals(predictions, patients).to_pylist():
        n, few = facts[tuple(row[key] for key in CELL)]
        unknown = dict.fromkeys(("value", "low", "high")) if few and row["metric"] == "auc" else {}
        rows.append({"cohort": name, **row, **unknown, "n": n})
    return rows


def _tested(job: TrainingJob, bundle: Bundle, test: TestCohort) -> tuple[list[Row], dict[str, str]]:
    """Return rows of the predictions of a run for the labelled slides of a cohort, and slide_id → patient."""
    cohort, labels = Cohort(test.cohort), _labels(job, test)
    slides, rows, patients = cohort.rows(), [], {}
    for name in bundle.info.tasks:
        labelled, _ = label_slides(labels, bundle.info.task(name), slides, job.training.keep_contradictions)
        for label in labelled.to_pylist():
            patients[label["slide_id"]] = label["patient_id"]
            table = cohort.read(f"predictions/{bundle.id}", label["slide_id"]).to_pylist()
            rows += [
                {**prediction, "task": name, "input": source, "fold": 0, "slide_id": label["slide_id"],
                 "truth": label["truth"], "p": prediction["p"] or [prediction["score"]]}
                for prediction, source in _with_inputs(bundle, table) if prediction["task"] == name
            ]  # fmt: skip
    return [{key: row[key] for key in run_schema("predictions").names} for row in rows], patients


def _with_inputs(bundle: Bundle, predictions: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Yield each prediction of a slide with the input of its model: they are in the order of the bundle's models."""
    inputs: dict[tuple[str, str], list[str]] = {}
    for entry in bundle.info.models:
        if entry.kind != "patch":
            inputs.setdefault((entry.task, entry.method), []).append(entry.input)
    for prediction in predictions:
        left = inputs[prediction["task"], prediction["method"]]
        yield prediction, left.pop(0) if len(left) > 1 else left[0]


def read_test_metrics(run: TrainingRun) -> list[dict[str, Any]]:
    """Return the metrics of the test cohorts as plain values; empty without a test."""
    return read_parquet(run.table(TABLES[1])).to_pylist() if run.table(TABLES[1]).is_file() else []
