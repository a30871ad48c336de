"""What a report is made of: a cohort's tables and, where one is given, a run's, read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.files.parquet import read_parquet
from her2batch.reports.cases import Case, group_into_cases
from her2batch.reports.theme import SortableTable
from her2batch.store.audit import CohortStatus, cohort_status
from her2batch.store.cohort import Cohort, Row
from her2batch.store.schemas import table_schema
from her2batch.store.training_run import TrainingRun
from her2batch.tasks import MEMBRANE_RULE

READ_THREADS = 8
"""Threads that read tables: on a share they wait side by side."""


@dataclass(frozen=True)
class ReportData:
    """A cohort as a report sees it.

    rows: slide_id → its row of `slides`, in order.  calls: slide_id → rows of the predictions table, each with its
    `bundle`.  labels: slide_id → its row of the labels.  times: of all runs, with the column `run`.  worklists: what a
    pathologist opens first.  pages: slide_id → where its evidence is shown.  beside: the folder
    that this lies in.  notes: what could not be read.
    """

    cohort: Cohort
    rows: dict[str, Row]
    calls: dict[str, list[Row]]
    labels: dict[str, Row]
    status: CohortStatus
    times: pa.Table
    run: TrainingRun | None = None
    worklists: tuple[SortableTable, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)
    beside: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> list[Row]:
        """Rows of the slides that are done."""
        return [row for row in self.rows.values() if row["status"] == "done"]

    @cached_property
    def cases(self) -> list[Case]:
        """All slides by patient."""
        return group_into_cases(self.rows, self.rows, lambda one: self.calls.get(one, []))

    def site(self, slide_id: str) -> str | None:
        """Where a slide comes from, by the labels."""
        found: str | None = self.labels.get(slide_id, {}).get("site")
        return found

    def said(self, slide_id: str, task: str) -> list[Row]:
        """What each method says of a slide for a task; the rule first."""
        found = [one for one in self.calls.get(slide_id, []) if one["task"] == task]
        return sorted(found, key=lambda one: (one["method"] != MEMBRANE_RULE, one["bundle"], one["method"]))


def load_report_data(cohort: Cohort, run: TrainingRun | None = None) -> ReportData:
    """Read a cohort's tables. Raises StoreError, InputError when there is no cohort, no run or no readable labels.

    A table of predictions that can't be read is left out, with a note.
    """
    found = cohort_status(cohort)
    rows = cohort.rows()
    if run is not None:
        run.read_settings()
    calls: dict[str, list[Row]] = defaultdict(list)
    notes = []
    wanted = [(row, name) for row in rows.values() for name in slide_table_names(row, "predictions")]
    for (row, name), table in zip(wanted, read_tables(cohort, wanted), strict=True):
        if table is None:
            notes.append(f"{name} of {row['slide_id']} can't be read: run her2batch verify, then ingest")
        elif table.num_rows:
            bundle = name.split("/", 1)[1]
            calls[row["slide_id"]] += [{**one, "bundle": bundle} for one in table.to_pylist()]
    return ReportData(
        cohort, rows, dict(calls), _read_labels(cohort), found, _read_run_times(cohort), run, notes=tuple(notes)
    )


def slide_table_names(row: Mapping[str, Any], table: str) -> list[str]:
    """Names of a slide's tables of one kind, by its row: ('predictions') → ['predictions/membrane', …]."""
    parents = [PurePosixPath(file["path"]).parent for file in row["files"] or ()]
    inside = ["/".join(one.parts[1:]) for one in parents if one.parts[1:2] == (table,)]
    return sorted(inside)


def read_tables(cohort: Cohort, wanted: Iterable[tuple[Row, str]]) -> list[pa.Table | None]:
    """Tables of slides, (row, name) each; None for one that can't be read."""

    def read(one: tuple[Row, str]) -> pa.Table | None:
        try:
            return cohort.read(one[1], one[0]["slide_id"])
        except (OSError, pa.ArrowInvalid):
            return None

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, wanted))


def _read_labels(cohort: Cohort) -> dict[str, Row]:
    if not cohort.labels.exists():
        return {}
    try:
        return {row["slide_id"]: row for row in read_parquet(cohort.labels).to_pylist()}
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError("can't be read", cohort.labels, "give the labels to an ingest again") from error


def _read_run_times(cohort: Cohort) -> pa.Table:
    """Times of all runs that can be read, with the column `run`."""
    empty = table_schema("times")
    tables = []
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        try:
            table = read_parquet(path).select(empty.names).cast(empty)
        except (OSError, KeyError, pa.ArrowInvalid):
            continue
        tables.append(table.append_column("run", pa.array([path.stem] * table.num_rows, pa.string())))
    whole = pa.schema([*empty, pa.field("run", pa.string())])
    return pa.concat_tables(tables) if tables else whole.empty_table()
