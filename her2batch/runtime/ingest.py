"""The main job: every slide under a folder through the whole way, into a cohort."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from her2batch.errors import STOPPED, StoreError
from her2batch.files.atomic import disk_errors
from her2batch.files.locations import free_bytes, to_location
from her2batch.models.bundle import Bundle, check_bundle_fits, read_bundle
from her2batch.models.encoders import TIMM_PREFIX, TimmEncoder, embedding_dim, find_encoder
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.inventory import Inventory, InventoryUpdater, take_inventory
from her2batch.pipeline.predict import has_image_networks
from her2batch.pipeline.progress import RemainingTime, RunProgress
from her2batch.pipeline.queue import SlideQueue, UrgentList, local_now, next_occurrence
from her2batch.pipeline.results import apply_labels
from her2batch.pipeline.slide_state import StageContext, check_stages
from her2batch.pipeline.stages import active_stages
from her2batch.pipeline.worker import SlideResult, SlideWorker
from her2batch.runtime.doctor import check_torchvision
from her2batch.runtime.ray_session import RaySession, connect, stop_on_signals
from her2batch.runtime.scheduler import run_on_ray
from her2batch.runtime.serial import run_serially
from her2batch.runtime.telemetry import Meters
from her2batch.runtime.watch import FolderWatch
from her2batch.settings import Plan, Resources, RunWindow
from her2batch.slides.cucim import load_cucim
from her2batch.store.cleanup import remove_leftovers, remove_orphans
from her2batch.store.cohort import Cohort, Row
from her2batch.store.labels import store_labels, stored_labels
from her2batch.store.outcome_counts import OUTCOMES, OutcomeCounts
from her2batch.store.pseudonyms import Pseudonymizer, read_key
from her2batch.store.run_log import RunLog

MIN_FREE_BYTES = 1_000_000_000
"""Bytes that must be free on the store's disk before a night starts."""

SAVE_EVERY_S = 60.0
"""How often the intake table is written while slides finish."""

TELL_EVERY_S = 10.0
"""How often the journal says how far the run is."""

ProgressCallback = Callable[[RunProgress, Row], None]
"""Called for every slide that ends: how far the run is, the slide's row."""


@dataclass(frozen=True)
class IngestRequest:
    """What the user asked for, apart from the plan: where, and with which files."""

    scans: Path
    out: Path
    bundle: Path | None = None
    labels: Path | None = None
    weights: Path | None = None
    key: Path | None = None
    retry_failed: bool = False
    only: Path | None = None  # of the slides there, the one that this file belongs to


@dataclass
class IngestSummary:
    """What became of everything seen."""

    cohort: Path
    seen: int = 0
    done: int = 0
    failed: int = 0
    deferred: int = 0
    duplicate: int = 0
    ignored: int = 0
    already: int = 0  # of the done and failed: in an earlier run
    tiles: int = 0
    seconds: float = 0.0
    stopped: bool = False
    left: tuple[float, float] | None = None  # seconds that the deferred slides will take, at least and at most
    run: str = ""
    failures: list[Row] = field(default_factory=list)
    slides: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)  # slides that this run ended

    @property
    def adds_up(self) -> bool:
        """Whether every file that was seen has an outcome."""
        return OutcomeCounts.of(self).adds_up

    @property
    def exit_code(self) -> int:
        """0 all done · 1 a slide vanished · 3 some failed · 130 stopped."""
        if self.stopped:
            return STOPPED
        if not self.adds_up:
            return 1
        return 3 if self.failed else 0


def ingest(
    order: IngestRequest,
    plan: Plan,
    resources: Resources,
    report: ProgressCallback = lambda *_: None,
    window: RunWindow = RunWindow(),  # noqa: B008  (frozen)
    session: RaySession | None = None,
) -> IngestSummary:
    """Bring a cohort up to date with its scans folder. Slides that fail are rows; raises for what stops the batch.

    session: one that is open already; None: its own, ended with the run.  Raises InputError, StoreError, WeightsError.
    """
    started = time.perf_counter()
    plan, worker = _prepare(order, plan)
    worker.cohort.prepare_folder()
    with worker.pseudonymizer.kept(), worker.cohort.lock() as cohort, disk_errors(cohort.root):
        worker.cohort = cohort
        cohort.create(plan)
        remove_leftovers(cohort)
        cohort.update_row_cache()  # rows of a run that was killed
        new_labels = order.labels
        labels = (
            store_labels(cohort, new_labels, worker.pseudonymizer) if new_labels is not None else stored_labels(cohort)
        )
        apply_labels(cohort, labels, worker.context.bundle)
        register = InventoryUpdater(order.scans, cohort, plan, worker.pseudonymizer, labels, order.retry_failed)
        remove_orphans(cohort, register.rows)
        _check_space(cohort)
        summary = IngestSummary(cohort.root, run=datetime.now(UTC).strftime("ingest-%Y%m%dT%H%M%S.%fZ"))
        summary.skipped = _skipped(worker.context)
        stopped = session.stopped if session is not None else threading.Event()
        with RunLog(cohort, summary.run) as journal, _supply(register, order, plan, window, stopped) as supply:
            journal.say("started", host=socket.gethostname(), pid=os.getpid(), plan=plan.id, watch=window.watch)
            with suppress(OSError):  # its last state counts
                register.inventory.save(cohort)
            run = _Run(register, supply, journal, report, summary, stopped)
            _run(run, worker, resources, session)
            register.rows.clear()  # all of them are read anew: one copy of 7 kB a slide is enough
            _count(cohort, register.inventory, summary)
            journal.say("ended", **{name: getattr(summary, name) for name in COUNTS})
    summary.seconds = time.perf_counter() - started
    return summary


COUNTS = ("seen", *OUTCOMES, "already", "tiles", "stopped")
"""Of a summary: what the journal's last line says."""


def dry_run(order: IngestRequest, plan: Plan) -> tuple[Plan, Inventory, Cohort]:
    """What an ingest would do, without writing a byte."""
    plan, worker = _prepare(order, plan)
    with worker.pseudonymizer.kept():
        inventory = take_inventory(order.scans, worker.cohort, plan, worker.pseudonymizer, {}, order.retry_failed)
    return plan, inventory, worker.cohort


def _prepare(order: IngestRequest, plan: Plan) -> tuple[Plan, SlideWorker]:
    """Check what was given before any work starts."""
    bundle = read_bundle(order.bundle) if order.bundle is not None else None
    plan = plan.model_copy(update={"bundle": bundle.id if bundle else None})
    if bundle is not None:
        check_bundle_fits(bundle, plan)
    if _needs_image_networks(plan, bundle):
        if plan.reader == "cucim":
            load_cucim()  # before torch, for afterwards it hangs
        check_torchvision()
    dims = {name: embedding_dim(name) for name in plan.encoders}
    context = StageContext(plan, bundle, order.weights, dims=dims)
    check_stages(active_stages(context))
    names = Pseudonymizer(read_key(order.key) if order.key is not None else None)
    worker = SlideWorker(Cohort(to_location(order.out)), context, names)
    if bundle is not None:
        worker.load_reader()  # heads bring torch, and cuCIM hangs after it
        BundlePredictor(bundle)  # a head that can't be loaded is said now, not by every slide
    return plan, worker


def _needs_image_networks(plan: Plan, bundle: Bundle | None) -> bool:
    if bundle is not None and has_image_networks(bundle):
        return True
    return any(name.startswith(TIMM_PREFIX) or isinstance(find_encoder(name), TimmEncoder) for name in plan.encoders)


@contextmanager
def _supply(
    register: InventoryUpdater, order: IngestRequest, plan: Plan, window: RunWindow, stopped: threading.Event
) -> Iterator[SlideQueue | FolderWatch]:
    """Slides to do: all that lie there, or, in a watch, those that are finished, as they are."""
    urgent = UrgentList(Path(window.urgent)) if window.urgent is not None else None
    queue = SlideQueue((), urgent, next_occurrence(window.until, local_now()) if window.until is not None else None)
    if not window.watch:
        queue.put(
            register.admit(register.discover() if order.only is None else register.discover().for_file(order.only))
        )
        yield queue
        return
    with FolderWatch(register, queue, order.scans, window, plan.reader, stopped) as watch:
        yield watch


@dataclass
class _Run:
    """An ingest while it goes on."""

    register: InventoryUpdater
    supply: SlideQueue | FolderWatch
    journal: RunLog
    report: ProgressCallback
    summary: IngestSummary
    stopped: threading.Event
    tally: RunProgress = field(default_factory=RunProgress)
    times: dict[str, Row] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def ended(self, finished: SlideResult, pace: RemainingTime) -> None:
        """A slide's row is committed: everybody who wants to know is told."""
        row, job = finished.row, finished.job
        self.register.record_result(job.source, row)
        self.times[job.slide_id] = finished.times
        pace.add(job.source.bytes, finished.times["seconds"])
        known, left = self.register.all_jobs, self.register.pending
        count = len(known.slides)
        self.tally = RunProgress(
            count - len(left.slides), self.tally.failed + (row["status"] == "failed"), count,
            self.tally.tiles + (row["n_tiles"] or 0), known.bytes - left.bytes, known.bytes,
            pace.left(len(left.slides), left.bytes),
        )  # fmt: skip
        facts = {"slide_id": row["slide_id"], "status": row["status"], "error_code": row["error_code"]}
        words = {"trace": finished.trace} if finished.trace else {}
        self.journal.say("slide", **facts, tiles=row["n_tiles"], seconds=finished.times["seconds"], **words)
        self.report(self.tally, row)
        at = time.monotonic()
        if at - self.told > TELL_EVERY_S or not left.slides:
            self.journal.say("progress", **asdict(self.tally))
            self.told = at
        if at - self.saved > SAVE_EVERY_S:
            with suppress(OSError):
                self.register.inventory.save(self.register.cohort)
            self.saved = at


def _run(run: _Run, worker: SlideWorker, resources: Resources, session: RaySession | None) -> None:
    """Every slide that is to do; the intake table and the durations are kept as they finish."""
    cohort = worker.cohort
    try:
        if isinstance(run.supply, FolderWatch) or not run.supply.is_exhausted():
            _work(run, worker, resources, session)
    finally:
        _defer(run)
        with ExitStack() as notes:  # each is tried, then the disk's refusal is raised
            if run.times:
                notes.callback(lambda: cohort.write_damaged_slides(cohort.damaged_slides() - set(run.times)))
                notes.callback(cohort.write_times, run.summary.run, [run.times[one] for one in sorted(run.times)])
            notes.callback(run.register.inventory.save, cohort)
    cohort.update_row_cache()


def _work(run: _Run, worker: SlideWorker, resources: Resources, session: RaySession | None) -> None:
    """From the plain loop (no workers) or from Ray."""
    if resources.workers == 0:
        pace = RemainingTime(1)
        with stop_on_signals(run.stopped):
            for finished in run_serially(worker, run.supply, run.stopped, resources):
                run.ended(finished, pace)
        run.summary.stopped = run.stopped.is_set()
        return
    with nullcontext(session) if session is not None else connect(resources, run.stopped) as open_session:
        assert open_session is not None
        meters, pace = Meters(), RemainingTime(open_session.workers)
        for finished in run_on_ray(open_session, worker, run.supply, resources, meters):
            run.ended(finished, pace)
            meters.ended(finished.row, run.tally)
        run.summary.stopped = run.stopped.is_set()


def _defer(run: _Run) -> None:
    """What was not done is left to the next run, and said."""
    waiting = {job.slide_id for job in run.supply.waiting}
    for job in list(run.register.pending.slides.values()):
        why = "the window ended" if job.slide_id in waiting and not run.summary.stopped else "the run was stopped"
        run.register.defer(job.source, why)
    if isinstance(run.supply, FolderWatch):
        run.supply.close()
    run.summary.fresh = sorted(run.times)
    run.summary.left = run.tally.left


def _check_space(cohort: Cohort) -> None:
    free = free_bytes(cohort.root)
    if free is not None and free < MIN_FREE_BYTES:
        raise StoreError(f"only {free / 1e9:.1f} GB are free on its disk", cohort.root, "make room, then run again")


def _skipped(context: StageContext) -> list[str]:
    """Branches that no bundle was given for, said aloud."""
    return [] if context.bundle is not None else ["patch nets", "thumbnail nets"]


def _count(cohort: Cohort, inventory: Inventory, summary: IngestSummary) -> None:
    """Read every slide's row back: what is counted is what is on disk."""
    rows = cohort.rows()
    summary.seen, summary.deferred = inventory.seen, inventory.deferred
    summary.duplicate, summary.ignored = inventory.duplicates, inventory.ignored
    summary.already = len(inventory.current)
    for path, outcome in inventory.outcomes.items():
        row = rows.get(inventory.entries[path]["slide_id"]) if outcome in ("todo", "current") else None
        if row is None:
            continue
        summary.slides.append(row)
        summary.tiles += row["n_tiles"] or 0
        if row["status"] == "done":
            summary.done += 1
        else:
            summary.failed += 1
            summary.failures.append(row)
