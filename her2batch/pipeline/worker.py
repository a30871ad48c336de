"""One slide's work: from its file to its committed row. No Ray here: an actor, or a plain loop, calls it.

Small slides are done in one call, `run`. A large one is begun, its tiles are measured in ranges by several workers,
and it is finished by one: the blocks, and so the batches, are the same either way, and so are the bytes.
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
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError, printable_path
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
from her2batch.pipeline.tile_reader import plan_reads, read_tiles
from her2batch.slides import cucim
from her2batch.slides.discover import SlideFiles, refresh_files
from her2batch.slides.fingerprint import Fingerprint, fingerprint_slide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from her2batch.store.audit import files_match_row
from her2batch.store.cohort import Cohort, Row, write_row
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.vision.membrane import TileBatch, measure_tiles

RANGE = 4
"""Batches of one call: about 1,000 tiles, 1–2 s of a core with the stain encoder; Ray's millisecond a call vanishes."""

SPLIT = 2 * RANGE
"""A slide with more batches than this is shared between workers."""


@dataclass
class SlideResult:
    """A slide whose row is committed, and what it cost."""

    row: Row
    times: Row
    todo: SlideJob
    trace: str = ""  # of a fault of ours, for those who mend it


@dataclass
class PartialSlide:
    """A large slide that has been begun.

    calls: what is left before it can be finished: (role, first batch, batch after the last); see `Stage.role`.
    """

    slide_id: str
    calls: list[tuple[str, int, int]]


@dataclass
class SlideWorker:
    """What one process holds: the cohort, the stages it has made, how it decodes."""

    cohort: Cohort
    context: StageContext
    names: Pseudonymizer = field(default_factory=Pseudonymizer)
    threads: int = 0  # decode threads beside the models; 0: decode in line
    range_batches: int = RANGE
    split_batches: int = SPLIT
    made: dict[str, Work] = field(default_factory=dict)

    def ready(self, roles: tuple[str, ...] | None = None) -> None:
        """Make the stages, so that missing weights stop the run before the first slide.  roles: only of these."""
        self.load_reader()
        for stage in active_stages(self.context):
            if roles is None or stage.role in roles:
                self._make(stage)

    def load_reader(self) -> None:
        """Load what the reader needs, before anything in this process imports torch."""
        if self.context.plan.reader == "cucim":
            cucim.load_cucim()

    def run(self, todo: SlideJob) -> SlideResult:
        """One slide, whole."""
        result = self.begin(todo, share=False)
        assert isinstance(result[0], SlideResult)
        return result[0]

    def begin(
        self, todo: SlideJob, share: bool, always: bool = False
    ) -> tuple[SlideResult | PartialSlide, SlideState | None]:
        """Open a slide and find its tissue. A slide that isn't shared is finished at once; then there is no state.

        share: large slides are left to several workers; always: every slide is, because models run elsewhere.
        """
        row = self._unread(todo)
        started = time.perf_counter()
        guard = _FailureGuard(self, todo, row, started)
        with self.cohort.working(), guard, self._open(todo, row) as slide:
            draft = self.cohort.draft(todo.slide_id)
            state = SlideState(todo.slide_id, todo.patient_id, todo.stain, slide.info.notes, row)
            for stage in self._stages(WHOLE_SLIDE):
                state.add([self._call(stage, state, slide)])
            ranges = self._ranges(slide, state)
            asides = [(stage.role, 0, 0) for stage in self._stages(ASIDE)]
            if share and (always or sum(hi - lo for _, lo, hi in ranges) > self.split_batches):
                if self.cohort.remote:  # another machine may finish it
                    state.sent = draft.send()
                state.seconds_total = time.perf_counter() - started
                return PartialSlide(todo.slide_id, [*ranges, *asides]), state
            state.add([self._part(slide, state, *call) for call in ranges])
            for call in asides:
                state.add([self._part(slide, state, *call)])
            return self._finish(todo, state, started, slide), None
        return guard.finished, None

    def measure(self, todo: SlideJob, state: SlideState, role: str, lo: int, hi: int) -> SlidePart | SlideResult:
        """One of the calls of a slide that was begun: a range of a grid's batches, or a stage aside."""
        started = time.perf_counter()
        guard = _FailureGuard(self, todo, state.row, started)
        with self.cohort.working(), guard, self._open(todo, {}, known=True) as slide:
            part = self._part(slide, state, role, lo, hi)
            part.seconds_total = time.perf_counter() - started
            return part
        return guard.finished

    def finish(self, todo: SlideJob, state: SlideState, *parts: SlidePart) -> SlideResult:
        """Put the parts together and commit."""
        started = time.perf_counter() - state.seconds_total - sum(part.seconds_total for part in parts)
        guard = _FailureGuard(self, todo, state.row, started)
        with self.cohort.working(), guard:
            state.add(parts)
            return self._finish(todo, state, started)
        return guard.finished

    def fail(
        self, todo: SlideJob, error: SlideError, facts: Row | None = None, started: float | None = None
    ) -> SlideResult:
        """Commit a failed slide. What an earlier run knew of it stays when the failure may be over by the next run."""
        row = {**(facts or self._unread(todo)), "status": "failed", "error_code": error.code}
        shown = self.names.shown(error.path or todo.source.path, todo.slide_id)
        what = error.what if self.names.key is None else error.code
        row["error"] = f"{shown}: {printable_path(what)}; {error.remedy}"
        row["plan_id"] = self.context.plan.for_slide(row["mpp_source"]).id
        old = self._old_row(todo)
        draft = self.cohort.draft(todo.slide_id)
        if error.code in TRANSIENT_ERRORS and old is not None and old["files"] and files_match_row(self.cohort, old):
            draft.discard()
            row["files"] = old["files"]
            write_row(self.cohort, row)
        else:
            row = draft.commit(row, old)
        return SlideResult(row, self._times(todo, "failed", started, {}), todo)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self, todo: SlideJob, facts: Row, known: bool = False) -> Iterator[Slide]:
        """The slide, checked and with its mpp settled; afterwards the file must still be the one that was opened."""
        source = todo.source
        self._unmoved(todo)
        holes: tuple[tuple[int, int], ...] = ()
        if not known:
            prints = _fingerprint(source)
            facts["sha256"], holes = prints.sha256, prints.holes
        slide = open_slide(source.path, self.context.plan.reader)
        with slide:
            facts |= file_columns(slide.info)
            slide.info = slide.info.with_mpp(self.context.plan.mpp_override)
            facts |= file_columns(slide.info)
            if not known:
                slide.validate(holes)
            yield slide

    def _unmoved(self, todo: SlideJob) -> None:
        now = refresh_files(todo.source)
        if not todo.source.path.exists():
            raise SlideError("gone", todo.source.path, "was there when the folder was searched and is not any more")
        if now.stat_key != todo.source.stat_key:
            raise SlideError("unstable", todo.source.path, "changed while it was read")

    def _stages(self, over: str) -> list[Stage]:
        return [stage for stage in active_stages(self.context) if stage.over == over]

    def _make(self, stage: Stage) -> Work:
        if stage.name not in self.made:
            self.made[stage.name] = stage.make(self.context)
        return self.made[stage.name]

    def _call(self, stage: Stage, state: SlideState, slide: Slide | None = None) -> SlidePart:
        """Run a stage that reads no tiles.  slide: open, for the stages that take it."""
        started = time.perf_counter()
        value = self._make(stage)(**{name: self._value(name, state, slide) for name in stage.takes})
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
        """Run what bears a role: the stages of a grid over a range of its batches, or one stage aside."""
        stages = [stage for stage in active_stages(self.context) if stage.role == role]
        if not stages[0].over_grid:
            return self._call(stages[0], state, slide)
        grid, stains = state.tissue_tiles.grids[role], state.stain_fit.stains
        reads = plan_reads(slide, grid).part(lo, hi)
        ahead = self.threads > 0 and any(stage.measures for stage in stages)
        measure = partial(measure_tiles, mpp=grid.mpp, stains=stains) if ahead else None
        works = [(stage, self._make(stage)) for stage in stages]
        outputs: dict[str, list[TileColumns]] = {stage.gives: [] for stage in stages if stage.gives is not None}
        seconds = dict.fromkeys(["decode", *(stage.name for stage in stages)], 0.0)
        mark = time.perf_counter()
        for rows, pixels, figures in read_tiles(slide, reads, self.threads, self.context.plan.reader, measure):
            seconds["decode"] += time.perf_counter() - mark
            batch = TileBatch(pixels, grid.mpp, stains, figures)
            for stage, work in works:
                mark = time.perf_counter()
                value = work(batch)
                if stage.gives is not None:
                    outputs[stage.gives].append(_columns(rows, value))
                seconds[stage.name] += time.perf_counter() - mark
            mark = time.perf_counter()
        return SlidePart({name: TileColumns.join(parts) for name, parts in outputs.items()}, seconds)

    def _finish(self, todo: SlideJob, state: SlideState, started: float, slide: Slide | None = None) -> SlideResult:
        """Make the slide's tables from what all stages gave, and commit."""
        stages = active_stages(self.context)
        for stage in stages:
            if stage.over_grid and stage.gives is not None and not state.tissue_tiles.grids[stage.over].tiles.size:
                state.put(stage.gives, TileColumns())
        state.row = {**state.row, **result_columns(state, todo.source.path)}
        for stage in stages:
            if stage.tables is not None:
                state.add_tables(stage.tables(self.context, state))
        for stage in self._stages(RESULTS):
            state.add([self._call(stage, state, slide)])
        return self._commit(todo, state, started)

    def _commit(self, todo: SlideJob, state: SlideState, started: float) -> SlideResult:
        draft = self.cohort.existing_draft(todo.slide_id)
        mark = time.perf_counter()
        write_files(draft, state)
        plan_id = self.context.plan.for_slide(state.row["mpp_source"]).id
        self._unmoved(todo)
        row = draft.commit({**state.row, "plan_id": plan_id}, self._old_row(todo), state.sent)
        state.seconds["commit"] = time.perf_counter() - mark
        return SlideResult(row, self._times(todo, "done", started, state.seconds), todo)

    def _old_row(self, todo: SlideJob) -> Row | None:
        try:
            rows: list[Row] = self.cohort.read("slides", todo.slide_id).to_pylist()
            return rows[0]
        except (OSError, ValueError, IndexError):  # none yet, or damaged: pa.ArrowInvalid is a ValueError
            return None

    def _unread(self, todo: SlideJob) -> Row:
        """The row of a slide that nobody could open."""
        path = printable_path(todo.source.path) if self.names.key is None else None
        return {
            "slide_id": todo.slide_id, "patient_id": todo.patient_id, "stain": todo.stain, "path": path,
            "sha256": todo.sha256, "bytes": todo.source.bytes, "mpp_source": None, "n_tiles": 0, "flags": [],
        }  # fmt: skip

    def _times(self, todo: SlideJob, status: str, started: float | None, seconds: Mapping[str, float]) -> Row:
        return {
            "slide_id": todo.slide_id, "status": status, "host": socket.gethostname(), "pid": os.getpid(),
            "finished": datetime.now(UTC), "seconds": time.perf_counter() - started if started else 0.0,
            "stages": list(seconds.items()),
        }  # fmt: skip


class _FailureGuard:
    """The one net: whatever stops a slide becomes its row, and the batch goes on."""

    def __init__(self, worker: SlideWorker, todo: SlideJob, facts: Row, started: float) -> None:
        self._worker, self._todo, self._facts, self._started = worker, todo, facts, started
        self.finished: SlideResult = None  # type: ignore[assignment]  # set whenever the net has caught something

    def __enter__(self) -> _FailureGuard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        known = self._as_slide_error(error)
        facts = {**self._worker._unread(self._todo), **self._facts}
        finished = self._worker.fail(self._todo, known, facts, self._started)
        tell = known.code == "internal" and self._worker.names.key is None  # a trace may hold a name of the source
        self.finished = replace(finished, trace="".join(traceback.format_exception(error)) if tell else "")
        return True

    def _as_slide_error(self, error: Exception) -> SlideError:
        path: Path = self._todo.source.path
        try:  # whatever was found in a file that changed meanwhile says nothing about it
            self._worker._unmoved(self._todo)
        except SlideError as moved:
            return moved
        if isinstance(error, SlideError):
            return error
        if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and "memory" in str(error).lower()):
            return SlideError("out-of-memory", path, "needs more memory than a worker may hold")
        if isinstance(error, OSError) and error.errno and error.filename not in map(str, self._todo.source.members):
            return SlideError("store-write", path, f"its results can't be written: {os.strerror(error.errno)}")
        return SlideError("internal", path, f"stopped on a fault of ours ({type(error).__name__})")


def _fingerprint(source: SlideFiles) -> Fingerprint:
    try:
        return fingerprint_slide(source.members)
    except FileNotFoundError as error:
        raise SlideError("gone", source.path, "was taken away while it was read") from error
    except OSError as error:
        raise SlideError("unreadable", source.path, f"can't be read ({error.strerror})") from error


def _columns(rows: NDArray[np.int64], value: TileColumns | Mapping[str, NDArray[Any]]) -> TileColumns:
    """What a stage gave for a batch, by rows of the grid.  rows: (n,) of the batch's tiles."""
    if isinstance(value, TileColumns):
        return TileColumns(rows[value.tiles], value.columns)
    return TileColumns(rows, value)
