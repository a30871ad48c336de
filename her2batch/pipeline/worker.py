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

from her2batch.errors import SlideError, legible
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.inventory import TRANSIENT_ERRORS, SlideJob
from her2batch.pipeline.results import BLANK_RANGE, row_facts, write_tables
from her2batch.pipeline.stages import Stage, StageContext, State, Work, active_stages
from her2batch.pipeline.tile_reader import plan_reads, read_tiles
from her2batch.slides import cucim
from her2batch.slides.discover import SlideSource, again
from her2batch.slides.fingerprint import Fingerprint, fingerprint_slide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from her2batch.store.audit import is_intact
from her2batch.store.cohort import Cohort, Row, write_row
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.vision.membrane import TileBatch, measure_tiles
from her2batch.vision.tile_grid import TileGrid

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
    """A large slide whose tiles are still to be measured: (grid or aside stage, first batch, last batch)."""

    slide_id: str
    ranges: list[tuple[str, int, int]]


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
    judges: list[BundlePredictor] = field(default_factory=list)  # none, or the bundle's

    def ready(self, roles: tuple[str, ...] | None = None) -> None:
        """Make the stages, so that missing weights stop the run before the first slide. roles: only these overs."""
        self.load_reader()
        for stage in active_stages(self.context.bundle):
            if roles is None or stage.over in roles or stage.name in roles:
                self._make(stage)

    def load_reader(self) -> None:
        """Load what the reader needs, before anything in this process imports torch."""
        if self.context.plan.reader == "cucim":
            cucim.load()

    def run(self, todo: SlideJob) -> SlideResult:
        """One slide, whole."""
        result = self.begin(todo, share=False)
        assert isinstance(result[0], SlideResult)
        return result[0]

    def begin(self, todo: SlideJob, share: bool, always: bool = False) -> tuple[SlideResult | PartialSlide, State]:
        """Open, look, find the tissue. A slide that isn't shared is finished at once.

        share: large slides are left to several workers; always: every slide is, because models run elsewhere.
        """
        facts = self._unread(todo)
        started = time.perf_counter()
        with self.cohort.working(), _FailureGuard(self, todo, facts, started) as net, self._open(todo, facts) as slide:
            self.cohort.draft(todo.slide_id)
            state = self._given(todo, slide)
            before, after = self._split()
            for stage in before:
                self._call(stage, state)
            ranges = self._ranges(slide, state)
            if share and (always or sum(hi - lo for _, lo, hi in ranges) > self.split_batches):
                state["facts"] = facts
                if self.cohort.remote:  # another machine may finish it
                    state["sent"] = self.cohort.draft_of(todo.slide_id).send()
                return PartialSlide(todo.slide_id, ranges), _portable(state, started)
            _merge(state, [self._measure(slide, state, name, lo, hi) for name, lo, hi in ranges])
            self._no_tiles(state)
            for stage in after:
                self._call(stage, state)
            return self._commit(todo, state, facts, started), {}
        return net.finished, {}

    def measure(self, todo: SlideJob, state: State, name: str, lo: int, hi: int) -> State | SlideResult:
        """A range of a grid's batches, or a stage aside."""
        started = time.perf_counter()
        net = _FailureGuard(self, todo, state["facts"], started)
        with self.cohort.working(), net, self._open(todo, {}, known=state) as slide:
            part = self._measure(slide, {**state, **self._given(todo, slide)}, name, lo, hi)
            part["seconds_all"] = time.perf_counter() - started
            return part
        return net.finished

    def finish(self, todo: SlideJob, state: State, *parts: State) -> SlideResult:
        """Put the parts together and commit."""
        started = time.perf_counter() - state["seconds_all"] - sum(part["seconds_all"] for part in parts)
        facts = state["facts"]
        with self.cohort.working(), _FailureGuard(self, todo, facts, started) as net:
            state = {**state, "stain": todo.stain}
            _merge(state, list(parts))
            self._no_tiles(state)
            for stage in self._split()[1]:
                if stage.over == "slide":
                    self._call(stage, state)
            return self._commit(todo, state, facts, started)
        return net.finished

    def fail(
        self, todo: SlideJob, error: SlideError, facts: Row | None = None, started: float | None = None
    ) -> SlideResult:
        """Commit a failed slide. What an earlier run knew of it stays when the failure may be over by the next run."""
        row = {**(facts or self._unread(todo)), "status": "failed", "error_code": error.code}
        shown = self.names.shown(error.path or todo.source.path, todo.slide_id)
        what = error.what if self.names.key is None else error.code
        row["error"] = f"{shown}: {legible(what)}; {error.remedy}"
        row["plan_id"] = self.context.plan.for_slide(row["mpp_source"]).id
        old = self._old_row(todo)
        draft = self.cohort.draft(todo.slide_id)
        if error.code in TRANSIENT_ERRORS and old is not None and old["files"] and is_intact(self.cohort, old):
            draft.discard()
            row["files"] = old["files"]
            write_row(self.cohort, row)
        else:
            row = draft.commit(row, old)
        return SlideResult(row, self._times(todo, "failed", started, {}), todo)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self, todo: SlideJob, facts: Row, known: State | None = None) -> Iterator[Slide]:
        """The slide, checked and with its mpp settled; afterwards the file must still be the one that was opened."""
        source = todo.source
        self._unmoved(todo)
        holes: tuple[tuple[int, int], ...] = ()
        if known is None:
            prints = _fingerprint(source)
            facts["sha256"], holes = prints.sha256, prints.holes
        slide = open_slide(source.path, self.context.plan.reader)
        with slide:
            facts |= row_facts(slide.info)
            slide.info = slide.info.with_mpp(self.context.plan.mpp_override)
            facts |= row_facts(slide.info)
            if known is None:
                slide.validate(holes)
            yield slide

    def _unmoved(self, todo: SlideJob) -> None:
        now = again(todo.source)
        if not todo.source.path.exists():
            raise SlideError("gone", todo.source.path, "was there when the folder was searched and is not any more")
        if now.stat_key != todo.source.stat_key:
            raise SlideError("unstable", todo.source.path, "changed while it was read")

    def _given(self, todo: SlideJob, slide: Slide) -> State:
        draft = self.cohort.draft_of(todo.slide_id)
        return {"slide": slide, "stain": todo.stain, "draft_pyramid": draft.pyramid(),
                "notes": slide.info.notes, "seconds": {}}  # fmt: skip

    def _split(self) -> tuple[list[Stage], list[Stage]]:
        """The stages before the first grid, and the others that work on whole slides."""
        stages = [one for one in active_stages(self.context.bundle) if one.over in ("slide", "aside")]
        first = next(k for k, one in enumerate(stages) if one.over == "aside" or "tiles_membrane" in one.takes)
        return stages[:first], stages[first:]

    def _make(self, stage: Stage) -> Work:
        if stage.name not in self.made:
            self.made[stage.name] = stage.make(self.context)
        return self.made[stage.name]

    def _call(self, stage: Stage, state: State) -> None:
        started = time.perf_counter()
        state.update(self._make(stage)(**{name: state[name] for name in stage.takes}))
        state["seconds"][stage.name] = time.perf_counter() - started

    def _no_tiles(self, state: State) -> None:
        """A slide without tiles has no outputs of its grids: they are empty."""
        for stage in active_stages(self.context.bundle):
            if stage.over not in ("slide", "aside"):
                for name in stage.gives:
                    state.setdefault(name, np.empty(0, np.float32))

    def _ranges(self, slide: Slide, state: State) -> list[tuple[str, int, int]]:
        """Calls that are left when a slide is begun: ranges of batches of every grid."""
        ranges = []
        for name in state["grids"]:
            count = len(plan_reads(slide, state["grids"][name]).batches)
            step = self.range_batches
            ranges += [(name, lo, min(lo + step, count)) for lo in range(0, count, step)]
        return ranges

    def _measure(self, slide: Slide, state: State, name: str, lo: int, hi: int) -> State:
        aside = next(
            (one for one in active_stages(self.context.bundle) if one.name == name and one.over == "aside"), None
        )
        if aside is not None:
            self._call(aside, state)
            return {key: state[key] for key in (*aside.gives, "seconds")}
        one: TileGrid = state["grids"][name]
        feed = plan_reads(slide, one).part(lo, hi)
        works = [(stage.name, self._make(stage)) for stage in active_stages(self.context.bundle) if stage.over == name]
        outputs: dict[str, list[NDArray[Any]]] = {}
        seconds = dict.fromkeys(["decode", *(label for label, _ in works)], 0.0)
        ahead = self.threads > 0 and "membrane" in seconds  # beside a GPU the threads that decode measure as well
        measure = partial(measure_tiles, mpp=one.mpp, stains=state["stains"]) if ahead else None
        mark = time.perf_counter()
        for rows, pixels, figures in read_tiles(slide, feed, self.threads, self.context.plan.reader, measure):
            seconds["decode"] += time.perf_counter() - mark
            batch = TileBatch(pixels, one.mpp, state["stains"], figures)
            outputs.setdefault(f"{name}_order", []).append(rows)
            outputs.setdefault(f"{name}_blank", []).append(_blank(pixels))
            for label, work in works:
                mark = time.perf_counter()
                for key, values in work(batch).items():
                    outputs.setdefault(key, []).append(values)
                seconds[label] += time.perf_counter() - mark
            mark = time.perf_counter()
        return {**{key: np.concatenate(values) for key, values in outputs.items()}, "seconds": seconds}

    def _commit(self, todo: SlideJob, state: State, facts: Row, started: float) -> SlideResult:
        draft = self.cohort.draft_of(todo.slide_id)
        mark = time.perf_counter()
        plan_id = self.context.plan.for_slide(facts["mpp_source"]).id
        row = {**facts, **write_tables(draft, state, self.context, todo, self._judge()), "plan_id": plan_id}
        self._unmoved(todo)
        row = draft.commit(row, self._old_row(todo), state.get("sent", ()))
        state["seconds"]["commit"] = time.perf_counter() - mark
        return SlideResult(row, self._times(todo, "done", started, state["seconds"]), todo)

    def _judge(self) -> BundlePredictor | None:
        """The heads of the bundle, loaded when the first slide is finished here."""
        if self.context.bundle is None:
            return None
        if not self.judges:
            self.judges.append(BundlePredictor(self.context.bundle))
        return self.judges[0]

    def _old_row(self, todo: SlideJob) -> Row | None:
        try:
            rows: list[Row] = self.cohort.read("slides", todo.slide_id).to_pylist()
            return rows[0]
        except (OSError, ValueError, IndexError):  # none yet, or damaged: pa.ArrowInvalid is a ValueError
            return None

    def _unread(self, todo: SlideJob) -> Row:
        """The row of a slide that nobody could open."""
        path = legible(todo.source.path) if self.names.key is None else None
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


def _fingerprint(source: SlideSource) -> Fingerprint:
    try:
        return fingerprint_slide(source.members)
    except FileNotFoundError as error:
        raise SlideError("gone", source.path, "was taken away while it was read") from error
    except OSError as error:
        raise SlideError("unreadable", source.path, f"can't be read ({error.strerror})") from error


def _blank(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which tiles hold no image: (n, t, t, 3) uint8 → (n,) bool."""
    flat = pixels.reshape(len(pixels), -1)
    return np.asarray(flat.max(axis=1) - flat.min(axis=1) <= BLANK_RANGE, bool)


def _portable(state: State, started: float) -> State:
    """The state without what can't travel to another process."""
    kept = {key: value for key, value in state.items() if key not in ("slide", "draft_pyramid", "stain")}
    return {**kept, "seconds_all": time.perf_counter() - started}


def _merge(state: State, parts: list[State]) -> None:
    """Add the arrays of parts, in their order, and their seconds."""
    arrays: dict[str, list[NDArray[Any]]] = {}
    for part in parts:
        for key, value in part.items():
            if key == "seconds":
                for name, seconds in value.items():
                    state["seconds"][name] = state["seconds"].get(name, 0.0) + seconds
            elif isinstance(value, np.ndarray):
                arrays.setdefault(key, []).append(value)
            elif key != "seconds_all":
                state[key] = value
    state.update({key: np.concatenate(values) for key, values in arrays.items()})
