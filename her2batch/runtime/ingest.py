"""Ingest: processes every slide of a scan folder into a cohort."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from her2batch.errors import InputError, StoreError
from her2batch.exchange.controls.control_file import choose_controls
from her2batch.exchange.regions import choose_region_classes
from her2batch.files.atomic import disk_errors
from her2batch.files.locations import free_bytes, to_location
from her2batch.files.locks import is_locked
from her2batch.files.new_folder import remove_if_refused
from her2batch.models.bundle import check_bundle_fits, read_bundle
from her2batch.models.encoders import embedding_dim, locate_encoder_weights
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.calibration.apply import apply_calibration, load_calibration
from her2batch.pipeline.growth.added_encoders import check_additions, find_additions, proven_plan, used_encoders
from her2batch.pipeline.growth.ingest_request import IngestRequest as IngestRequest
from her2batch.pipeline.growth.ingest_summary import COUNTS, IngestSummary, count_slides
from her2batch.pipeline.inventory import Inventory, InventoryUpdater, SlideJob, take_inventory
from her2batch.pipeline.pieces.tma_cores import update_cores
from her2batch.pipeline.predict import needs_image_networks
from her2batch.pipeline.progress import RemainingTime, RunProgress
from her2batch.pipeline.queue import SlideQueue, UrgentList, local_now, next_occurrence
from her2batch.pipeline.results import settle_labels
from her2batch.pipeline.resume.plan_change import PlanChangedError, check_pseudonyms, settle_plan
from her2batch.pipeline.slide_state import StageContext, check_stages
from her2batch.pipeline.stages import active_stages
from her2batch.pipeline.worker import SlideResult, SlideWorker
from her2batch.runtime.doctor import check_networks
from her2batch.runtime.ray_session import RaySession, connect, stop_on_signals
from her2batch.runtime.scheduler import run_on_ray
from her2batch.runtime.serial import run_serially
from her2batch.runtime.telemetry import RunMetrics
from her2batch.runtime.watch import FolderWatch
from her2batch.settings import Plan, Resources, RunWindow
from her2batch.slides.cucim.loading import load_cucim
from her2batch.slides.discover import DiscoveredSlides
from her2batch.store.cleanup import remove_leftovers, remove_orphans
from her2batch.store.cohort import Cohort, Row
from her2batch.store.label_sheets.book import open_labels
from her2batch.store.label_sheets.reading import read_given_sheet
from her2batch.store.label_sheets.stored import write_labels
from her2batch.store.pseudonyms import Pseudonymizer, read_key
from her2batch.store.run_log import RunLog

__all__ = ["IngestRequest", "dry_run", "ingest"]

MIN_FREE_BYTES = 1_000_000_000
"""Bytes that must be free on the cohort's disk before a run starts."""

SAVE_EVERY_S = 60.0
"""Seconds between two writes of the intake table during a run."""

LOG_EVERY_S = 10.0
"""Seconds between two entries of the progress in the run log."""

ProgressCallback = Callable[[RunProgress, Row], None]
"""Called for every slide that ends, with the run's progress and the slide's row."""


def ingest(
    request: IngestRequest,
    plan: Plan,
    resources: Resources,
    report: ProgressCallback = lambda *_: None,
    window: RunWindow = RunWindow(),  # noqa: B008  (frozen)
    session: RaySession | None = None,
) -> IngestSummary:
    """Process every new or changed slide of a scan folder into a cohort. One that fails gets a row; the others go on.

    session: an open connection to Ray; None: connect, and disconnect at the end.
    Raises InputError, StoreError and WeightsError for what stops the whole run, before anything is written: among them
    PlanChangedError, a plan that would replace the results of finished slides.
    """
    started = time.perf_counter()
    array_map, (plan, worker) = request.array_map, _prepare(request, plan, window.watch)
    sheet = read_given_sheet(request.labels, request.columns)
    new = not worker.cohort.settings.exists()
    with worker.pseudonymizer.hide_error_texts(), _open_cohort(worker.cohort) as cohort, disk_errors(cohort.root):
        worker.cohort = cohort
        settle_plan(cohort, plan, request.replan, exact=True)  # again: another run may have ended
        cohort.create(proven_plan(cohort, plan))
        remove_leftovers(cohort)
        cohort.update_row_cache()  # with the rows of a killed run
        labels = open_labels(sheet, cohort, worker.pseudonymizer)
        updater = InventoryUpdater(
            request.scans, cohort, plan, worker.pseudonymizer, labels, request.retry_failed, request.regions,
            request.control_folder,
        )  # fmt: skip
        found = None if window.watch else _discover(updater, request.only)
        relabelled = settle_labels(labels, updater, found, worker.context.bundle)
        remove_orphans(cohort, updater.rows)
        _check_space(cohort)
        summary = IngestSummary(cohort.root, run=datetime.now(UTC).strftime("ingest-%Y%m%dT%H%M%S.%fZ"))
        summary.skipped, summary.relabelled = _skipped(worker.context), relabelled
        stopped = session.stopped if session is not None else threading.Event()
        additions = _find_additions(updater, request, plan, summary)
        with (
            RunLog(cohort, summary.run) as run_log,
            _job_source(updater, found, request, plan, window, stopped, additions) as source,
        ):
            run_log.write("started", host=socket.gethostname(), pid=os.getpid(), plan=plan.id, watch=window.watch)
            if new and not window.watch:
                _check_found(updater.inventory, request)
            summary.moved += updater.write_moved_paths()
            with suppress(OSError):  # its state at the end counts
                updater.inventory.save(cohort)
            run = _Run(updater, source, run_log, report, summary, stopped, plan, request.only is None)
            if not window.watch:
                worker.context = replace(
                    worker.context, used_encoders=used_encoders(updater.pending.slides.values(), plan)
                )
            _run(run, worker, resources, session)
            _conclude(request, updater, plan, summary)
            summary.cores = update_cores(cohort, array_map)
            summary.unused_regions = updater.regions.notes + updater.controls.notes
            if not labels.is_empty:
                write_labels(cohort, labels.stored_rows())  # with those that a slide met which came during the run
                summary.labels = labels.report(row["slide_id"] for row in summary.slides)
            run_log.write("ended", **{name: getattr(summary, name) for name in COUNTS})
    summary.seconds = time.perf_counter() - started
    return summary


@contextmanager
def _open_cohort(cohort: Cohort) -> Iterator[Cohort]:
    """Make the cohort's folder where there is none, and lock it. A run that is refused leaves no new folder behind."""
    slides = cohort.table("slides", "any").parent
    with remove_if_refused(cohort.root, lambda: any(slides.glob("*.parquet"))):
        cohort.prepare_folder()
        with cohort.lock() as locked:
            yield locked


def dry_run(request: IngestRequest, plan: Plan) -> tuple[Plan, Inventory, Cohort]:
    """Take the inventory of an ingest without writing anything. Raises InputError, StoreError as the ingest would."""
    plan, worker = _prepare(request, plan, watch=False)
    cohort, names = worker.cohort, worker.pseudonymizer
    with names.hide_error_texts():
        labels = open_labels(read_given_sheet(request.labels, request.columns), cohort, names)
        inventory = take_inventory(
            request.scans, cohort, plan, names, labels, request.retry_failed, request.regions, request.control_folder
        )
        labels.check()
        inventory.jobs += find_additions(worker.cohort, plan, worker.cohort.rows()).jobs
    if not worker.cohort.settings.exists():
        _check_found(inventory, request)
    return plan, inventory, worker.cohort


def _prepare(request: IngestRequest, plan: Plan, watch: bool) -> tuple[Plan, SlideWorker]:
    """Check the request before any work starts, and make its worker."""
    bundle = read_bundle(request.bundle) if request.bundle is not None else None
    cohort = Cohort(to_location(request.out))
    wanted = plan.model_copy(update={"bundle": bundle.id if bundle else None})
    wanted = choose_region_classes(wanted, cohort, request.regions, needed=request.scans.exists())
    wanted = choose_controls(wanted, cohort, request.controls, needed=request.scans.exists())
    try:
        plan = settle_plan(cohort, wanted, request.replan, request.exact_plan)
    except PlanChangedError:
        if not is_locked(cohort.root):
            raise
        plan = settle_plan(cohort, wanted, True, request.exact_plan)  # in use, which is the error then
    check_pseudonyms(cohort, request.key is not None)
    names_encoders = "encoders" in wanted.model_fields_set and not request.exact_plan and cohort.settings.is_file()
    if not request.scans.exists() and (watch or not names_encoders or not cohort.rows()):
        raise InputError("there is no such folder", request.scans, "mount its share, or give the scanner's folder")
    if names_encoders and not request.replan:
        check_additions(cohort, plan, request.scans)
    if bundle is not None:
        check_bundle_fits(bundle, plan)
    if request.calibration is not None:
        load_calibration(request.calibration, plan)
    if needs_image_networks(plan, bundle):
        if plan.reader == "cucim":
            load_cucim()  # before torch: afterwards it needs a process of its own
        check_networks(plan)
    dims = {name: embedding_dim(name) for name in plan.encoders}
    context = StageContext(plan, bundle, request.weights, dims=dims)
    check_stages(active_stages(context))
    pseudonymizer = Pseudonymizer(read_key(request.key) if request.key is not None else None)
    worker = SlideWorker(cohort, context, pseudonymizer)
    if bundle is not None:
        worker.load_reader()  # before torch, which the bundle's heads import
        BundlePredictor(bundle)  # a head that cannot be loaded stops the run here, and not every slide
    return plan, worker


def _discover(updater: InventoryUpdater, only: Path | None) -> DiscoveredSlides:
    """Search the scan folder.  only: the result is the slide of this file."""
    found = updater.discover()
    return found if only is None else found.for_file(only)


def _find_additions(
    updater: InventoryUpdater, request: IngestRequest, plan: Plan, summary: IngestSummary
) -> list[SlideJob]:
    """Jobs that add encoders to finished slides, from their pyramids. With --replan, slides without one are redone."""
    if request.only is not None:
        return []
    found = find_additions(updater.cohort, plan, updater.rows)
    if request.replan:
        updater.redo |= set(found.without_pyramid)
    else:
        summary.added.without_pyramid = found.without_pyramid
    updater.add_jobs(found.jobs)
    return found.jobs


@contextmanager
def _job_source(
    updater: InventoryUpdater,
    found: DiscoveredSlides | None,
    request: IngestRequest,
    plan: Plan,
    window: RunWindow,
    stopped: threading.Event,
    additions: list[SlideJob],
) -> Iterator[SlideQueue | FolderWatch]:
    """The source of slides: a queue of all slides that were found in the scan folder, or a watch of the folder."""
    urgent = UrgentList(Path(window.urgent)) if window.urgent is not None else None
    end = next_occurrence(window.until, local_now()) if window.until is not None else None
    queue = SlideQueue(additions, urgent, end)
    if found is not None:
        queue.put(updater.admit(found))
        yield queue
        return
    if request.scans.is_file():
        raise InputError("only a folder can be watched", request.scans, "give the scan folder, or leave out --watch")
    with FolderWatch(updater, queue, request.scans, window, plan.reader, stopped) as watch:
        yield watch


@dataclass
class _Run:
    """A running ingest.

    plan: to store as soon as a slide has all its tables; None: it is stored.  marks_absent: the whole scan folder was
    searched, so that what is not in it has left.  times: rows of the table of durations, by slide.  saved, logged:
    monotonic clock.
    """

    updater: InventoryUpdater
    source: SlideQueue | FolderWatch
    run_log: RunLog
    report: ProgressCallback
    summary: IngestSummary
    stopped: threading.Event
    plan: Plan | None
    marks_absent: bool = True
    progress: RunProgress = field(default_factory=RunProgress)
    times: dict[str, Row] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)
    logged: float = 0.0

    def slide_ended(self, result: SlideResult, remaining: RemainingTime) -> None:
        """Record a slide whose row is committed, and report the progress."""
        row, job = result.row, result.job
        self.updater.record_result(job, row)
        if job.encoders:
            self.summary.added.slide_ended(result)
        else:
            self.times[job.slide_id] = result.times
        if row["status"] == "done" and not result.problem:
            self.store_plan()
        remaining.add(job.source.bytes, result.times["seconds"])
        known, left = self.updater.all_jobs, self.updater.pending
        count = len(known.slides)
        self.progress = RunProgress(
            count - len(left.slides), self.progress.failed + (row["status"] == "failed"), count,
            self.progress.tiles + (row["n_tiles"] or 0), known.bytes - left.bytes, known.bytes,
            remaining.left(len(left.slides), left.bytes),
        )  # fmt: skip
        entry = {"slide_id": row["slide_id"], "status": row["status"], "error_code": row["error_code"]}
        texts = {name: getattr(result, name) for name in ("trace", "decoded_on_cpu", "smaller_batches")}
        trace: dict[str, Any] = {name: text for name, text in texts.items() if text}
        if job.encoders:
            trace |= {"encoders": job.encoders, "problem": result.problem}
        self.run_log.write("slide", **entry, tiles=row["n_tiles"], seconds=result.times["seconds"], **trace)
        self.report(self.progress, row)
        at = time.monotonic()
        if at - self.logged > LOG_EVERY_S or not left.slides:
            self.run_log.write("progress", **asdict(self.progress))
            self.logged = at
        if at - self.saved > SAVE_EVERY_S:
            with suppress(OSError):
                self.updater.inventory.save(self.updater.cohort)
            self.saved = at

    def store_plan(self) -> None:
        """Store the plan, once; see `proven_plan`. Raises StoreError when the cohort is gone: it is not made again."""
        if self.plan is not None:
            self.updater.cohort.check_present()
            self.updater.cohort.create(self.plan)
        self.plan = None


def _run(run: _Run, worker: SlideWorker, resources: Resources, session: RaySession | None) -> None:
    """Process all slides of the source, then write the intake table and the durations."""
    cohort = worker.cohort
    try:
        if isinstance(run.source, FolderWatch) or not run.source.is_exhausted():
            _process(run, worker, resources, session)
        elif not run.updater.pending.slides:  # every slide has all its tables
            run.store_plan()
    finally:
        _defer(run)
        if run.marks_absent:
            run.updater.note_absent()
        with ExitStack() as writes:  # each is tried, then the error of the disk is raised
            writes.callback(lambda: run.summary.moved.extend(run.updater.write_moved_paths()))
            damaged = (cohort.damaged_slides() - set(run.times)) | run.summary.added.damaged
            if run.times or run.summary.added.damaged:
                writes.callback(cohort.write_damaged_slides, damaged)
            if run.times:
                writes.callback(
                    cohort.write_times, run.summary.run, [run.times[slide_id] for slide_id in sorted(run.times)]
                )
            writes.callback(run.updater.inventory.save, cohort)
    cohort.update_row_cache()


def _conclude(request: IngestRequest, updater: InventoryUpdater, plan: Plan, summary: IngestSummary) -> None:
    """Predict with the calibration, and count the slides."""
    cohort = updater.cohort
    if request.calibration is not None:
        calibration = load_calibration(request.calibration, plan)
        summary.calibrated = apply_calibration(cohort, calibration, summary.relabelled)
        cohort.update_row_cache()
    updater.rows.clear()  # they are read again: one copy of 7 kB a slide is enough
    count_slides(summary, updater.inventory, cohort.rows())


def _process(run: _Run, worker: SlideWorker, resources: Resources, session: RaySession | None) -> None:
    """Process the slides in this process, where workers is 0, or on Ray. Weights are located before it starts."""
    used = worker.context.used_encoders
    needed = worker.context.plan.encoders if used is None else used
    for encoder in needed if resources.address == "local" else ():
        locate_encoder_weights(encoder, worker.context.weights)
    if resources.workers == 0:
        remaining = RemainingTime(1)
        with stop_on_signals(run.stopped):
            for result in run_serially(worker, run.source, run.stopped, resources):
                run.slide_ended(result, remaining)
        run.summary.stopped = run.stopped.is_set()
        return
    with nullcontext(session) if session is not None else connect(resources, run.stopped) as open_session:
        assert open_session is not None
        metrics, remaining = RunMetrics(), RemainingTime(open_session.workers)
        for result in run_on_ray(open_session, worker, run.source, resources, metrics):
            run.slide_ended(result, remaining)
            metrics.slide_ended(result.row, run.progress)
        run.summary.stopped = run.stopped.is_set()


def _defer(run: _Run) -> None:
    """Leave the slides that were not processed to the next run."""
    waiting = {job.slide_id for job in run.source.waiting}
    for job in list(run.updater.pending.slides.values()):
        if job.encoders:
            run.summary.added.left += 1
            continue
        reason = "the window ended" if job.slide_id in waiting and not run.summary.stopped else "the run was stopped"
        run.updater.defer(job.source, reason)
    if isinstance(run.source, FolderWatch):
        run.source.close()
    run.summary.fresh = sorted(run.times)
    run.summary.left = run.progress.left


def _check_space(cohort: Cohort) -> None:
    free = free_bytes(cohort.root)
    if free is not None and free < MIN_FREE_BYTES:
        raise StoreError(f"only {free / 1e9:.1f} GB are free on its disk", cohort.root, "make room, then run again")


def _check_found(inventory: Inventory, request: IngestRequest) -> None:
    """Refuse a folder without slides, which is a wrong path more often than an empty one. Raises InputError."""
    found = any(outcome != "ignored" for outcome in inventory.outcomes.values())
    if found or inventory.missing or request.only is not None:
        return
    others = f" among its {inventory.ignored} file{'s' * (inventory.ignored > 1)}" if inventory.ignored else ""
    remedy = "give the folder that the scanner writes to; README.md lists the formats"
    raise InputError(f"no slides found{others}", request.scans, remedy)


def _skipped(context: StageContext) -> list[str]:
    """Parts of the pipeline that are skipped because no bundle was given."""
    return [] if context.bundle is not None else ["patch nets", "thumbnail nets"]
