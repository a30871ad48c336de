"""The main job: every slide under a folder through the whole way, into a cohort."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from her2batch.errors import StoreError
from her2batch.flow.pool import plain, share
from her2batch.flow.session import connect
from her2batch.models.bundle import check_fits, read_bundle
from her2batch.models.encoders import dim_of
from her2batch.settings import Plan, Resources
from her2batch.tables.files import whole, write_parquet
from her2batch.tables.labels import read_labels
from her2batch.tables.privacy import Names, read_key
from her2batch.tables.store import Cohort, Row
from her2batch.way.census import Census, Todo, take
from her2batch.way.stages import GIVEN, Context, check, chosen
from her2batch.way.work import Finished, Worker

LEAST_FREE = 1_000_000_000
"""Bytes that must be free on the store's disk before a night starts."""

SAVE_EVERY_S = 60.0
"""How often the intake table is written while slides finish."""

Report = Callable[[int, int, Row], None]
"""Called for every slide that finishes: how many are, of how many, its row."""


@dataclass(frozen=True)
class Order:
    """What the user asked for, apart from the plan: where, and with which files."""

    scans: Path
    out: Path
    bundle: Path | None = None
    labels: Path | None = None
    weights: Path | None = None
    key: Path | None = None
    retry_failed: bool = False


@dataclass
class Summary:
    """What became of everything seen."""

    cohort: Path
    seen: int
    done: int = 0
    failed: int = 0
    duplicate: int = 0
    ignored: int = 0
    already: int = 0  # of the done: in an earlier run
    tiles: int = 0
    seconds: float = 0.0
    stopped: bool = False
    failures: list[Row] = field(default_factory=list)
    slides: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all done · 1 a slide vanished · 3 some failed · 130 stopped."""
        if self.stopped:
            return 130
        if self.seen != self.done + self.failed + self.duplicate + self.ignored:
            return 1
        return 3 if self.failed else 0


def ingest(order: Order, plan: Plan, resources: Resources, report: Report = lambda *_: None) -> Summary:
    """Bring a cohort up to date with its scans folder. Slides that fail are rows; raises for what stops the batch.

    Raises InputError, StoreError, WeightsError.
    """
    started = time.perf_counter()
    plan, worker = _prepare(order, plan)
    cohort = worker.cohort
    cohort.create(plan)
    with cohort.lock():
        cohort.sweep()
        cohort.remember()  # rows of a run that was killed
        labels = _labels(cohort, order.labels, worker.names)
        census = take(order.scans, cohort, plan, worker.names, labels, order.retry_failed)
        _check_space(cohort)
        census.keep(cohort)
        summary = Summary(cohort.root, census.seen, duplicate=census.duplicates, ignored=census.ignored)
        summary.skipped = _skipped(worker.context)
        _run(census, worker, resources, summary, report)
        _count(cohort, census, summary)
    summary.seconds = time.perf_counter() - started
    return summary


def survey(order: Order, plan: Plan) -> tuple[Plan, Census, Cohort]:
    """What an ingest would do, without writing a byte."""
    plan, worker = _prepare(order, plan)
    labels: dict[str, Row] = {}
    return plan, take(order.scans, worker.cohort, plan, worker.names, labels, order.retry_failed), worker.cohort


def _prepare(order: Order, plan: Plan) -> tuple[Plan, Worker]:
    """Check what was given before any work starts."""
    bundle = read_bundle(order.bundle) if order.bundle is not None else None
    plan = plan.model_copy(update={"bundle": bundle.id if bundle else None})
    if bundle is not None:
        check_fits(bundle, plan)
    dims = {name: dim_of(name) for name in plan.encoders}
    context = Context(plan, bundle, order.weights, dims=dims)
    check(chosen(bundle), GIVEN)
    names = Names(read_key(order.key) if order.key is not None else None)
    return plan, Worker(Cohort(order.out.absolute()), context, names)


def _run(census: Census, worker: Worker, resources: Resources, summary: Summary, report: Report) -> None:
    """Every slide that is to do; the intake table and the durations are kept as they finish."""
    if not census.todo:
        return
    run = datetime.now(UTC).strftime("ingest-%Y%m%dT%H%M%S.%fZ")
    times: list[Row] = []
    paths = {todo.slide_id: worker.names.path(todo.source.path) for todo in census.todo}
    todos = sorted(census.todo, key=lambda todo: -todo.source.bytes)  # the largest first: a short tail
    saved = time.monotonic()
    try:
        with _finishing(worker, resources, todos, summary) as finishing:
            for count, finished in enumerate(finishing, start=1):
                row = finished.row
                census.entries[paths[row["slide_id"]]]["sha256"] = row["sha256"]
                times.append(finished.times)
                report(count, len(todos), row)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    worker.cohort.write_seen(list(census.entries.values()))
                    saved = time.monotonic()
    except OSError as error:
        raise StoreError(f"can't be written to: {error}", worker.cohort.root, "free space, then run again") from error
    finally:
        worker.cohort.write_seen(list(census.entries.values()))
        if times:
            worker.cohort.write_times(run, sorted(times, key=lambda one: str(one["slide_id"])))
            worker.cohort.write_damaged(worker.cohort.damaged() - {str(one["slide_id"]) for one in times})
    worker.cohort.remember()


@contextmanager
def _finishing(
    worker: Worker, resources: Resources, todos: list[Todo], summary: Summary
) -> Iterator[Iterator[Finished]]:
    """Finished slides, from the plain loop (no workers) or from Ray."""
    if resources.workers == 0:
        yield plain(worker, todos)
        return
    with connect(resources) as session:
        yield share(session, worker, todos, resources.worker_memory)
        summary.stopped = session.stopped.is_set()


def _labels(cohort: Cohort, path: Path | None, names: Names) -> dict[str, Row]:
    """Labels by the store's slide ids: those given now, which are kept, or those of an earlier ingest."""
    if path is not None:
        table = read_labels(path)
        rows = table.to_pylist()
        if names.key is not None:
            rows = [
                {**row, "slide_id": names.slide(row["slide_id"]), "patient_id": names.patient(row["patient_id"])}
                for row in rows
            ]
        with whole(cohort.labels) as part:
            write_parquet(pa.Table.from_pylist(rows, table.schema), part)
    elif cohort.labels.exists():
        rows = pa.parquet.read_table(cohort.labels).to_pylist()
    else:
        rows = []
    return {row["slide_id"]: row for row in rows}


def _check_space(cohort: Cohort) -> None:
    free = shutil.disk_usage(cohort.root).free
    if free < LEAST_FREE:
        raise StoreError(f"only {free / 1e9:.1f} GB are free on its disk", cohort.root, "make room, then run again")


def _skipped(context: Context) -> list[str]:
    """Branches that no bundle was given for, said aloud."""
    return [] if context.bundle is not None else ["patch nets", "thumbnail nets"]


def _count(cohort: Cohort, census: Census, summary: Summary) -> None:
    """Read every slide's row back: what is counted is what is on disk."""
    rows = cohort.rows()
    summary.already = len(census.current)
    for slide_id in [*census.current, *(todo.slide_id for todo in census.todo)]:
        row = rows.get(slide_id)
        if row is None:
            continue
        summary.slides.append(row)
        summary.tiles += row["n_tiles"] or 0
        if row["status"] == "done":
            summary.done += 1
        else:
            summary.failed += 1
            summary.failures.append(row)
