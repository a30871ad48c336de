"""The data of a report: the tables of a cohort and, where one is given, of a training run, read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from her2batch.assessment import Assessment, assess_slide, ordered_predictions
from her2batch.errors import Her2BatchError, InputError, StoreError
from her2batch.files.parquet import read_parquet
from her2batch.reports.cases import Case, group_into_cases
from her2batch.reports.theme import SortableTable
from her2batch.store.audit import CohortStatus, cohort_status
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.label_sheets.stored import stored_labels
from her2batch.store.pieces.control_runs import flag_failed_runs
from her2batch.store.reviews import read_reviews, reviews_by_slide, unerased_reviews
from her2batch.store.schemas import LATER_COLUMNS, table_schema
from her2batch.store.training_run import TrainingRun
from her2batch.tasks import CLASSES, task_order

READ_THREADS = 8
"""Threads that read tables. On a network share most of the time is waiting."""


@dataclass(frozen=True)
class ReportData:
    """The data of a report on one cohort.

    rows: slide_id → its row of the table `slides`, in order.  predictions: slide_id → its rows of the predictions
    table, each with its `bundle`.  labels: slide_id → its row of the labels.  run_times: times of all runs, with the
    column `run`.  worklists: the tables of the section of that name.  page_links: slide_id → address of its evidence.
    page_folder: folder of the page that shows the links.  notes: files that could not be read.  reviews: slide_id → its
    reviews, in order.  review_budget: share of slides that people can look at, 0–1; None where it is not stated.
    """

    cohort: Cohort
    rows: dict[str, Row]
    predictions: dict[str, list[Row]]
    labels: dict[str, Row]
    status: CohortStatus
    run_times: pa.Table
    run: TrainingRun | None = None
    worklists: tuple[SortableTable, ...] = ()
    page_links: Mapping[str, str] = field(default_factory=dict)
    page_folder: Path | None = None
    notes: tuple[str, ...] = ()
    reviews: Mapping[str, list[Row]] = field(default_factory=dict)
    review_budget: float | None = None

    @cached_property
    def assessments(self) -> dict[str, Assessment]:
        """slide_id → its assessment."""
        return {
            slide_id: assess_slide(
                row, self.predictions.get(slide_id, ()), self.labels.get(slide_id), self.reviews.get(slide_id, ())
            )
            for slide_id, row in self.rows.items()
        }

    @cached_property
    def finished(self) -> dict[str, datetime]:
        """slide_id → when it was processed last, from the times of all runs."""
        times: dict[str, datetime] = {}
        for slide_id, moment in zip(
            *(self.run_times[name].to_pylist() for name in ("slide_id", "finished")), strict=True
        ):
            if moment is not None and (slide_id not in times or moment > times[slide_id]):
                times[slide_id] = moment
        return times

    @property
    def done_rows(self) -> list[Row]:
        """Rows of the slides with the status `done`."""
        return [row for row in self.rows.values() if row["status"] == "done"]

    @cached_property
    def cases(self) -> list[Case]:
        """All slides, grouped by patient."""
        return group_into_cases(self.rows, self.rows, lambda slide_id: self.predictions.get(slide_id, []))

    @cached_property
    def task_classes(self) -> dict[str, tuple[str, ...]]:
        """Tasks of the predictions → their classes, in the order of the report; a task of numbers has none.

        Two bundles may define a task of one name by different classes: those of both are listed.
        """
        found: dict[str, dict[str, None]] = {}
        for prediction in (row for rows in self.predictions.values() for row in rows):
            classes = CLASSES.get(prediction["task"], prediction["classes"] or ())
            found.setdefault(prediction["task"], {}).update(dict.fromkeys(classes))
        return {task: tuple(found[task]) for task in task_order(found)}

    def site_of(self, slide_id: str) -> str | None:
        """Return the site of a slide according to the labels."""
        site: str | None = self.labels.get(slide_id, {}).get("site")
        return site

    def predictions_for(self, slide_id: str, task: str) -> list[Row]:
        """Return the class that each method gives a slide in a task, the rules first."""
        rows = [row for row in self.predictions.get(slide_id, []) if row["task"] == task]
        return ordered_predictions(row for row in rows if row["predicted"] is not None)


def load_report_data(cohort: Cohort, run: TrainingRun | None = None) -> ReportData:
    """Read the tables of a cohort.

    A table of predictions that can't be read is left out, with a note. Raises StoreError and InputError when the
    cohort or the run does not exist, or the labels can't be read.
    """
    status = cohort_status(cohort)
    rows = flag_failed_runs(cohort, cohort.rows())
    if run is not None:
        run.read_settings()
    predictions, unread = _read_predictions(cohort, rows.values())
    notes = [
        f"The table {name} of the slide {slide_id} can't be read. Run her2batch verify, then her2batch ingest."
        for slide_id, name in unread
    ]
    labels, run_times = _read_labels(cohort, rows), read_run_times(cohort)
    reviews = read_slide_reviews(cohort)
    return ReportData(cohort, rows, predictions, labels, status, run_times, run, notes=tuple(notes), reviews=reviews)


def read_slide_reviews(cohort: Cohort) -> dict[str, list[Row]]:
    """Read the reviews of each slide, in order: slide_id → entries. Raises StoreError when the table is damaged."""
    try:
        entries = unerased_reviews(read_reviews(cohort))
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError("has damaged reviews", cohort.root, "run her2batch verify") from error
    return reviews_by_slide(entries)


def assess_slides(cohort: Cohort, rows: Iterable[Row], notes: list[str] | None = None) -> dict[str, Assessment]:
    """Assess some slides of a cohort from their stored tables: slide_id → assessment. rows: of the table slides.

    Tables of predictions that can't be read are left out. Damaged labels and reviews are left out with a line in
    `notes`; without `notes` they raise StoreError or InputError.
    """
    wanted = list(flag_failed_runs(cohort, {row["slide_id"]: row for row in rows}).values())
    predictions, _ = _read_predictions(cohort, wanted)
    labels: dict[str, Row] = {}
    reviews: dict[str, list[Row]] = {}
    try:
        labels = _read_labels(cohort, {row["slide_id"] for row in wanted})
        reviews = read_slide_reviews(cohort)
    except Her2BatchError as error:
        if notes is None:
            raise
        notes.append(str(error))
    return {
        row["slide_id"]: assess_slide(
            row, predictions.get(row["slide_id"], ()), labels.get(row["slide_id"]), reviews.get(row["slide_id"], ())
        )
        for row in wanted
    }


def _read_predictions(cohort: Cohort, rows: Iterable[Row]) -> tuple[dict[str, list[Row]], list[tuple[str, str]]]:
    """Read the predictions of slides: slide_id → rows, each with its `bundle`; and (slide_id, table) of unread ones."""
    predictions: dict[str, list[Row]] = defaultdict(list)
    unread = []
    wanted = [(row, name) for row in rows for name in tables_of(row, "predictions")]
    for (row, name), table in zip(wanted, read_tables(cohort, wanted), strict=True):
        if table is None:
            unread.append((row["slide_id"], name))
        elif table.num_rows:
            bundle = name.split("/", 1)[1]
            predictions[row["slide_id"]] += [{**prediction, "bundle": bundle} for prediction in table.to_pylist()]
    return dict(predictions), unread


def read_tables(cohort: Cohort, wanted: Iterable[tuple[Row, str]]) -> list[pa.Table | None]:
    """Read tables of slides, given as (row, table name). A table that can't be read is None."""

    def read(row_and_name: tuple[Row, str]) -> pa.Table | None:
        row, name = row_and_name
        try:
            return cohort.read(name, row["slide_id"])
        except (OSError, pa.ArrowInvalid):
            return None

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, wanted))


def _read_labels(cohort: Cohort, slides: Container[str]) -> dict[str, Row]:
    """Return the labels of the cohort's slides. Raises InputError if they can't be read."""
    try:
        return {slide_id: row for slide_id, row in stored_labels(cohort).items() if slide_id in slides}
    except (OSError, StoreError) as error:
        raise InputError("can't be read", cohort.labels, "run her2batch ingest with --labels again") from error


def read_run_times(cohort: Cohort) -> pa.Table:
    """Read the times of all runs whose table can be read, with the column `run`."""
    schema = table_schema("times")
    tables = []
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        try:
            table = read_parquet(path)
            for name in set(LATER_COLUMNS["times"]) - set(table.column_names):
                table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
            table = table.select(schema.names).cast(schema)
        except (OSError, KeyError, pa.ArrowInvalid):
            continue
        tables.append(table.append_column("run", pa.array([path.stem] * table.num_rows, pa.string())))
    with_run = pa.schema([*schema, pa.field("run", pa.string())])
    return pa.concat_tables(tables) if tables else with_run.empty_table()
