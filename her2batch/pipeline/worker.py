"""The work on one slide: from its file to its committed row. Called by the serial loop and by Ray actors.

A small slide is done in one call, `run`. A large one is begun by one worker, its tiles are read in ranges by several,
and one finishes it. Blocks and batches are the same either way, and so are the bytes of the results.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2

from her2batch.errors import InputError, SlideError, printable_path
from her2batch.exchange.controls.control_file import ControlRegion, read_control_regions
from her2batch.exchange.regions import SlideRegions, file_digest, read_regions
from her2batch.pipeline.inventory import TRANSIENT_ERRORS, SlideJob
from her2batch.pipeline.results import file_columns, result_columns, write_files
from her2batch.pipeline.slide_state import (
    ASIDE,
    RESULTS,
    WHOLE_SLIDE,
    SlidePart,
    SlideState,
    Stage,
    StageContext,
    TileColumns,
    Work,
)
from her2batch.pipeline.stages import active_stages
from her2batch.pipeline.tile_batches.tile_stages import run_tile_stages
from her2batch.pipeline.tile_reader import plan_reads
from her2batch.slides.cucim.loading import load_cucim
from her2batch.slides.discover import SlideFiles, refresh_files
from her2batch.slides.fingerprint import Fingerprint, fingerprint_slide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from her2batch.store.audit import files_match_row
from her2batch.store.cohort import Cohort, Row, write_row
from her2batch.store.pseudonyms import Pseudonymizer

BATCHES_PER_CALL = 4
"""Batches of one call: about 1,000 tiles, which take a core 1–2 s with the stain encoder; a call to Ray takes 1 ms."""

SHARED_FROM_BATCHES = 2 * BATCHES_PER_CALL
"""A slide with more batches than this is shared between workers."""


@dataclass
class SlideResult:
    """A slide whose row is committed.

    times: its row of the run's table of durations.  trace: the traceback of an internal error, else empty.  problem:
    why encoders could not be added to a finished slide, else empty.  is_damaged: because its pyramid cannot be read.
    decoded_on_cpu: why its tiles were not decoded on the GPU, else empty.  smaller_batches: why networks got fewer
    tiles at once than the cohort records, else empty.
    """

    row: Row
    times: Row
    job: SlideJob
    trace: str = ""
    problem: str = ""
    is_damaged: bool = False
    decoded_on_cpu: str = ""
    smaller_batches: str = ""


@dataclass
class PartialSlide:
    """A large slide that has been begun.

    calls: to be made before it can be finished: (role, first batch, batch after the last); see `Stage.role`.
    """

    slide_id: str
    calls: list[tuple[str, int, int]]


@dataclass
class SlideWorker:
    """Processes slides in one process, which makes each stage once.

    threads: that decode while the models work; 0: decode in this thread.  range_batches: batches of one call on a
    shared slide.  split_batches: a slide with more batches may be shared.
    """

    cohort: Cohort
    context: StageContext
    pseudonymizer: Pseudonymizer = field(default_factory=Pseudonymizer)
    threads: int = 0
    range_batches: int = BATCHES_PER_CALL
    split_batches: int = SHARED_FROM_BATCHES
    works: dict[str, Work] = field(default_factory=dict)

    def ready(self, roles: tuple[str, ...] | None = None) -> None:
        """Make the stages, so that missing weights stop the run before the first slide.  roles: only of these."""
        self.load_reader()
        for stage in active_stages(self.context):
            if roles is None or stage.role in roles:
                self._make_stage(stage)

    def load_reader(self) -> None:
        """Load the reader's library, before anything in this process imports torch."""
        if self.context.plan.reader == "cucim":
            load_cucim()

    def run(self, job: SlideJob) -> SlideResult:
        """Process a whole slide in this process."""
        result = self.begin(job, share=False)
        assert isinstance(result[0], SlideResult)
        return result[0]

    def begin(
        self, job: SlideJob, share: bool, always: bool = False
    ) -> tuple[SlideResult | PartialSlide, SlideState | None]:
        """Open a slide and find its tissue. A slide that is not shared is finished at once, and has no state then.

        share: large slides are left to several workers.  always: all slides are, because models run elsewhere.
        """
        row = self._unopened_row(job)
        started = time.perf_counter()
        guard = FailureGuard(self, job, row, started)
        with self.cohort.working(), guard, self._open(job, row) as slide:
            draft = self.cohort.draft(job.slide_id)
            regions = self._read_regions(job, slide)
            controls = self._read_control_regions(job, slide)
            state = SlideState(job.slide_id, job.patient_id, job.stain, slide.info.notes, row, regions, controls)
            for stage in self._stages(WHOLE_SLIDE):
                state.add([self._call(stage, state, slide)])
            ranges = self._ranges(slide, state)
            asides = [(stage.role, 0, 0) for stage in self._stages(ASIDE)]
            if share and (always or sum(hi - lo for _, lo, hi in ranges) > self.split_batches):
                if self.cohort.remote:  # another machine may finish it
                    state.sent = draft.send()
                state.seconds_total = time.perf_counter() - started
                return PartialSlide(job.slide_id, [*ranges, *asides]), state
            state.add([self._part(slide, state, *call) for call in ranges])
            for call in asides:
                state.add([self._part(slide, state, *call)])
            return self._finish(job, state, started, slide), None
        return guard.finished, None

    def measure(self, job: SlideJob, state: SlideState, role: str, lo: int, hi: int) -> SlidePart | SlideResult:
        """Make one of the calls on a slide that was begun: a range of a grid's batches, or a stage aside."""
        started = time.perf_counter()
        guard = FailureGuard(self, job, state.row, started)
        with self.cohort.working(), guard, self._open(job, {}, known=True) as slide:
            part = self._part(slide, state, role, lo, hi)
            part.seconds_total = time.perf_counter() - started
            return part
        return guard.finished

    def finish(self, job: SlideJob, state: SlideState, *parts: SlidePart) -> SlideResult:
        """Join the parts of a slide and commit it."""
        started = time.perf_counter() - state.seconds_total - sum(part.seconds_total for part in parts)
        guard = FailureGuard(self, job, state.row, started)
        with self.cohort.working(), guard:
            state.add(parts)
            return self._finish(job, state, started)
        return guard.finished

    def fail(
        self, job: SlideJob, error: SlideError, row: Row | None = None, started: float | None = None
    ) -> SlideResult:
        """Commit a failed slide. The files of an earlier run are kept if the failure may be over by the next run."""
        row = {**(row or self._unopened_row(job)), "status": "failed", "error_code": error.code}
        shown = self.pseudonymizer.display_name(error.path or job.source.path, job.slide_id)
        what = error.message if self.pseudonymizer.key is None else error.code
        row["error"] = f"{shown}: {printable_path(what)}; {error.remedy}"
        row["plan_id"] = self.context.plan.for_slide(row["mpp_source"], row.get("mpp")).id
        old = self._old_row(job)
        draft = self.cohort.draft(job.slide_id)
        if error.code in TRANSIENT_ERRORS and old is not None and old["files"] and files_match_row(self.cohort, old):
            draft.discard()
            row["files"] = old["files"]
            write_row(self.cohort, row)
        else:
            row = draft.commit(row, old)
        return SlideResult(row, self._time_row(job, "failed", started, {}), job)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self, job: SlideJob, row: Row, known: bool = False) -> Iterator[Slide]:
        """Open the slide file, validate it and add its columns to the row. known: it has been validated already."""
        source = job.source
        self._check_unchanged(job)
        holes: tuple[tuple[int, int], ...] = ()
        if not known:
            prints = _read_fingerprint(source)
            row["sha256"], holes = prints.sha256, prints.holes
        slide = open_slide(source.path, self.context.plan.reader, source.members)
        with slide:
            row |= file_columns(slide.info)
            slide.info = slide.info.with_mpp(self.context.plan.mpp_override, self.context.plan.mpp_force)
            row |= file_columns(slide.info)
            if not known:
                slide.validate(holes)
            yield slide

    def _read_regions(self, job: SlideJob, slide: Slide) -> SlideRegions | None:
        """Read the slide's regions; None where the plan has none.  Raises SlideError `bad-regions`, `unstable`."""
        plan, path = self.context.plan, job.regions
        if not plan.has_regions:
            return None
        if path is None:
            return SlideRegions(None, None)
        if file_digest(path) != job.regions_sha256:
            raise SlideError("unstable", path, "changed while it was read")
        try:
            return read_regions(path, plan.include_regions, plan.exclude_regions, (slide.info.width, slide.info.height))
        except InputError as error:
            raise SlideError("bad-regions", path, error.message, error.remedy) from error

    def _read_control_regions(self, job: SlideJob, slide: Slide) -> tuple[ControlRegion, ...]:
        """Read the annotated controls of a slide.  Raises SlideError `bad-regions`, `unstable`."""
        controls = self.context.plan.controls
        if controls is None or controls.annotations is None or job.controls is None:
            return ()
        if file_digest(job.controls) != job.controls_sha256:
            raise SlideError("unstable", job.controls, "changed while it was read")
        try:
            return read_control_regions(job.controls, controls.annotations, (slide.info.width, slide.info.height))
        except InputError as error:
            raise SlideError("bad-regions", job.controls, error.message, error.remedy) from error

    def _check_unchanged(self, job: SlideJob) -> None:
        now = refresh_files(job.source)
        if not job.source.path.exists():
            raise SlideError("gone", job.source.path, "was removed after the scan folder was searched")
        if now.stat_key != job.source.stat_key:
            raise SlideError("unstable", job.source.path, "changed while it was read")

    def _stages(self, over: str) -> list[Stage]:
        return [stage for stage in self._active_stages() if stage.over == over]

    def _active_stages(self) -> tuple[Stage, ...]:
        return active_stages(self.context)

    def _make_stage(self, stage: Stage) -> Work:
        if stage.name not in self.works:
            self.works[stage.name] = stage.make(self.context)
        return self.works[stage.name]

    def _call(self, stage: Stage, state: SlideState, slide: Slide | None = None) -> SlidePart:
        """Run a stage that reads no tiles.  slide: open, for the stages that take it."""
        started = time.perf_counter()
        value = self._make_stage(stage)(**{name: self._value(name, state, slide) for name in stage.takes})
        part = SlidePart(seconds={stage.name: time.perf_counter() - started})
        if stage.gives is not None:
            part.values[stage.gives] = value
        return part

    def _value(self, name: str, state: SlideState, slide: Slide | None) -> Any:
        if name == "pyramid_path":
            return self.cohort.existing_draft(state.slide_id).pyramid()
        return slide if name == "slide" else state.get(name)

    def _ranges(self, slide: Slide, state: SlideState) -> list[tuple[str, int, int]]:
        """Calls for the tiles of a slide: ranges of batches of every grid."""
        ranges = []
        for name, grid in state.tissue_tiles.grids.items():
            count = len(plan_reads(slide, grid).batches)
            step = self.range_batches
            ranges += [(name, lo, min(lo + step, count)) for lo in range(0, count, step)]
        return ranges

    def _part(self, slide: Slide, state: SlideState, role: str, lo: int, hi: int) -> SlidePart:
        """Run the stages of a role: those of a grid over a range of its batches, or one stage aside."""
        stages = [stage for stage in self._active_stages() if stage.role == role]
        if not stages[0].over_grid:
            return self._call(stages[0], state, slide)
        works = [(stage, self._make_stage(stage)) for stage in stages]
        return run_tile_stages(slide, state, role, (lo, hi), works, self.context, self.threads)

    def _finish(self, job: SlideJob, state: SlideState, started: float, slide: Slide | None = None) -> SlideResult:
        """Make the slide's tables from what all stages gave, and commit."""
        stages = active_stages(self.context)
        for stage in stages:
            if stage.over_grid and stage.gives is not None and not state.tissue_tiles.grids[stage.over].tiles.size:
                state.put(stage.gives, TileColumns())
        state.row = {**state.row, **result_columns(state, job.source.path)}
        for stage in stages:
            if stage.tables is not None:
                state.add_tables(stage.tables(self.context, state))
        for stage in self._stages(RESULTS):
            state.add([self._call(stage, state, slide)])
        return self._commit(job, state, started)

    def _commit(self, job: SlideJob, state: SlideState, started: float) -> SlideResult:
        draft = self.cohort.existing_draft(job.slide_id)
        mark = time.perf_counter()
        write_files(draft, state)
        plan_id = self.context.plan.for_slide(state.row["mpp_source"], state.row["mpp"]).id
        self._check_unchanged(job)
        row = draft.commit({**state.row, "plan_id": plan_id}, self._old_row(job), state.sent)
        state.seconds["commit"] = time.perf_counter() - mark
        failed = "control-failed" in row["flags"]
        times = self._time_row(job, "done", started, state.seconds) | {"control_failed": failed}
        notes = state.decoded_on_cpu, state.smaller_batches
        return SlideResult(row, times, job, decoded_on_cpu=notes[0], smaller_batches=notes[1])

    def _old_row(self, job: SlideJob) -> Row | None:
        try:
            rows: list[Row] = self.cohort.read("slides", job.slide_id).to_pylist()
            return rows[0]
        except (OSError, ValueError, IndexError):  # none yet, or damaged: pa.ArrowInvalid is a ValueError
            return None

    def _unopened_row(self, job: SlideJob) -> Row:
        """The row of a slide that has not been opened."""
        path = printable_path(job.source.path) if self.pseudonymizer.key is None else None
        return {
            "slide_id": job.slide_id, "patient_id": job.patient_id, "stain": job.stain, "her2_detail": job.her2_detail,
            "path": path, "sha256": job.sha256, "bytes": job.source.bytes, "mpp_source": None, "n_tiles": 0,
            "flags": [],
            "regions": job.regions_sha256, "controls": job.controls_sha256,
        }  # fmt: skip

    def _time_row(self, job: SlideJob, status: str, started: float | None, seconds: Mapping[str, float]) -> Row:
        return {
            "slide_id": job.slide_id, "status": status, "host": socket.gethostname(), "pid": os.getpid(),
            "finished": datetime.now(UTC), "seconds": time.perf_counter() - started if started else 0.0,
            "stages": list(seconds.items()),
        }  # fmt: skip


class FailureGuard:
    """Turns any exception into the row of a failed slide, so that the batch goes on."""

    def __init__(self, worker: SlideWorker, job: SlideJob, row: Row, started: float) -> None:
        self._worker, self._job, self._row, self._started = worker, job, row, started
        self.finished: SlideResult = None  # type: ignore[assignment]  # set where an exception was caught

    def __enter__(self) -> FailureGuard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        known = self._as_slide_error(error)
        row = {**self._worker._unopened_row(self._job), **self._row}
        finished = self._worker.fail(self._job, known, row, self._started)
        show_trace = known.code == "internal" and self._worker.pseudonymizer.key is None  # it may contain file names
        self.finished = replace(finished, trace="".join(traceback.format_exception(error)) if show_trace else "")
        return True

    def _as_slide_error(self, error: Exception) -> SlideError:
        path: Path = self._job.source.path
        try:  # if the file has changed, that is the reason, whatever was found in it
            self._worker._check_unchanged(self._job)
        except SlideError as changed:
            return changed
        if isinstance(error, SlideError):
            return error
        if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and "memory" in str(error).lower()):
            return SlideError("out-of-memory", path, "needs more memory than a worker may hold")
        if isinstance(error, OSError) and error.errno and error.filename not in map(str, self._job.source.members):
            return SlideError("store-write", path, f"its results cannot be written: {os.strerror(error.errno)}")
        return SlideError("internal", path, f"internal error ({type(error).__name__})")


def _read_fingerprint(source: SlideFiles) -> Fingerprint:
    try:
        return fingerprint_slide(source.members)
    except FileNotFoundError as error:
        raise SlideError("gone", source.path, "was removed while it was read") from error
    except OSError as error:
        raise SlideError("unreadable", source.path, f"cannot be read ({error.strerror})") from error
