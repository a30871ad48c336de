"""Adds encoders to finished slides: embeddings of their tiles, read from the pyramids of the cohort.

The slide files are not needed. A slide gets one table for each encoder that it lacks, and a row that names it and has
the id of the larger plan; every other file stays as it is. If a slide cannot be read, its results stay, and the reason
is reported. The pixels of a pyramid that was copied from a JPEG slide are those of the slide, so that a network gives
the vectors that it would have given with the slide file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError, SlideError, printable_path
from her2batch.models.encoders import reads_stains
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.resume.plan_change import match_plan, plan_id_of
from her2batch.pipeline.slide_state import SlidePart, SlideState, Stage, StainFit, TileColumns, TissueTiles, Work
from her2batch.pipeline.stages import EMBED, OVERVIEW_MPP, EmbeddingWork, fit_stains
from her2batch.pipeline.worker import FailureGuard, PartialSlide, SlideResult, SlideWorker
from her2batch.settings import Plan
from her2batch.slides.discover import SlideFiles
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Slide, resample
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.patient_tiles import patient_tiles_of
from her2batch.vision.background import fill_missing, filled_tiles
from her2batch.vision.stain import Stains, white_point
from her2batch.vision.thumbnail import decode_jpeg
from her2batch.vision.tile_grid import TileGrid
from her2batch.vision.tissue import Tissue, segment_tissue


@dataclass
class Additions:
    """Finished slides that lack encoders of the plan.

    jobs: to add them.  without_pyramid: ids of slides that have no pyramid to read their tiles from.
    """

    jobs: list[SlideJob]
    without_pyramid: list[str]


def find_additions(cohort: Cohort, plan: Plan, rows: Mapping[str, Row]) -> Additions:
    """Find the finished slides that lack encoders of the plan. rows: of the slides table, by slide id."""
    found = Additions([], [])
    for slide_id, row in sorted(rows.items()):
        match = match_plan(plan, row) if row["status"] == "done" else None
        if match is None or not match.missing:
            continue
        size = sum(file["bytes"] for file in row["files"] if file["path"].startswith("pyramids/"))
        if size == 0:
            found.without_pyramid.append(slide_id)
            continue
        source = SlideFiles(cohort.pyramid(slide_id), (), size, 0)
        label = {name: row[name] for name in ("sha256", "patient_id", "stain")}
        found.jobs.append(SlideJob(slide_id, source, **label, encoders=match.missing))
    return found


@dataclass
class AddedEncoders:
    """What became of the encoders that finished slides lacked.

    slides: ids of those that got them.  failures: slide id → why one did not.  without_pyramid: see Additions.
    damaged: ids of slides whose pyramid cannot be read.  left: number of slides that are left to the next run.
    """

    encoders: set[str] = field(default_factory=set)
    slides: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    without_pyramid: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    left: int = 0

    def slide_ended(self, result: SlideResult) -> None:
        """Count a slide."""
        slide_id = result.job.slide_id
        self.encoders |= set(result.job.encoders)
        if not result.problem:
            self.slides.append(slide_id)
            return
        self.failures[slide_id] = result.problem
        if result.is_damaged:
            self.damaged.add(slide_id)

    def as_json(self) -> dict[str, Any]:
        """The facts as plain values."""
        failures = [{"slide_id": slide_id, "error": why} for slide_id, why in sorted(self.failures.items())]
        lists = {"slides": sorted(self.slides), "failures": failures, "without_pyramid": self.without_pyramid}
        return {"encoders": sorted(self.encoders), **lists, "left": self.left}


def check_additions(cohort: Cohort, plan: Plan, scans: Path) -> None:
    """Check an ingest that names its encoders, before anything is written.

    Raises InputError if every finished slide that lacks one has no pyramid to read.  scans: only for the remedy.
    """
    found = find_additions(cohort, plan, cohort.rows())
    if found.jobs or not found.without_pyramid:
        return
    count = len(found.without_pyramid)
    slides = "the finished slide" if count == 1 else f"any of the {count} finished slides"
    what = f"{', '.join(plan.encoders)} cannot be added to {slides}: no pyramid is stored (removed by [retention])"
    raise InputError(what, cohort.root, f"add --replan to compute them again from their files in {scans}")


def proven_plan(cohort: Cohort, plan: Plan) -> Plan:
    """The plan without encoders that are new to a cohort with finished slides.

    It is stored until the first slide has got them, so that an encoder that does not work is not kept.
    """
    if not cohort.settings.is_file() or not any(
        row["status"] == "done" for row in cohort.rows(("slide_id", "status")).values()
    ):
        return plan
    stored = cohort.plan().encoders
    return plan.model_copy(update={"encoders": tuple(name for name in plan.encoders if name in stored) or stored})


def used_encoders(jobs: Iterable[SlideJob], plan: Plan) -> tuple[str, ...]:
    """Encoders that jobs need: all of the plan if any slide is processed as a whole."""
    needed = {name for job in jobs for name in job.encoders or plan.encoders}
    return tuple(name for name in plan.encoders if name in needed)


def worker_for(worker: SlideWorker, job: SlideJob) -> SlideWorker:
    """The worker that processes a job: `worker`, or for encoders of a finished slide one that shares its models."""
    return EncoderWorker.of(worker, job.encoders) if job.encoders else worker


@dataclass
class EncoderWorker(SlideWorker):
    """Adds encoders to finished slides.  base: the worker whose loaded encoders are used."""

    base: SlideWorker | None = None

    @classmethod
    def of(cls, base: SlideWorker, encoders: tuple[str, ...]) -> EncoderWorker:
        """A worker for jobs with these encoders."""
        context = replace(base.context, plan=base.context.plan.model_copy(update={"encoders": encoders}))
        sizes = (base.threads, base.range_batches, base.split_batches)
        return cls(base.cohort, context, base.pseudonymizer, *sizes, base=base)

    def begin(
        self, job: SlideJob, share: bool, always: bool = False
    ) -> tuple[SlideResult | PartialSlide, SlideState | None]:
        """Open the pyramid of a slide and read its tiles table; see SlideWorker.begin."""
        started = time.perf_counter()
        guard = FailureGuard(self, job, {}, started)
        with self.cohort.working(), guard, self._open_pyramid(job) as slide:
            state = self._state(job, slide)
            ranges = self._ranges(slide, state)
            if share and (always or sum(hi - lo for _, lo, hi in ranges) > self.split_batches):
                state.seconds_total = time.perf_counter() - started
                return PartialSlide(job.slide_id, ranges), state
            state.add([self._part(slide, state, *call) for call in ranges])
            return self._finish(job, state, started), None
        return guard.finished, None

    def measure(self, job: SlideJob, state: SlideState, role: str, lo: int, hi: int) -> SlidePart | SlideResult:
        """Compute the embeddings of a range of batches; see SlideWorker.measure."""
        started = time.perf_counter()
        guard = FailureGuard(self, job, {}, started)
        with self.cohort.working(), guard, self._open_pyramid(job) as slide:
            part = self._part(slide, state, role, lo, hi)
            part.seconds_total = time.perf_counter() - started
            return part
        return guard.finished

    def fail(
        self, job: SlideJob, error: SlideError, row: Row | None = None, started: float | None = None
    ) -> SlideResult:
        """Report why the encoders could not be added. Nothing is written: the slide keeps its results."""
        what = printable_path(error.message) if self.pseudonymizer.key is None else error.code
        problem = f"{', '.join(job.encoders)} not added to {job.slide_id}: {what}; {error.remedy}"
        times = self._time_row(job, "failed", started, {})
        is_damaged = error.code in ("unreadable", "truncated", "gone")
        row = self._old_row(job) or self._unopened_row(job)
        return SlideResult(row, times, job, problem=problem, is_damaged=is_damaged)

    # -- inside ------------------------------------------------------------------------------------------------

    def _open_pyramid(self, job: SlideJob) -> Pyramid:
        path = self.cohort.pyramid(job.slide_id)
        if not path.exists():
            raise SlideError("gone", path, "its pyramid is missing", "run ingest again, which repairs the store")
        return Pyramid(path)

    def _check_unchanged(self, job: SlideJob) -> None:
        """Do nothing: no other process changes a pyramid during a run."""

    def _active_stages(self) -> tuple[Stage, ...]:
        return (EMBED,)

    def _make_stage(self, stage: Stage) -> Work:
        assert self.base is not None
        work = self.base._make_stage(stage)
        assert isinstance(work, EmbeddingWork)
        return work.only(self.context.plan.encoders)

    def _state(self, job: SlideJob, slide: Slide) -> SlideState:
        """What the stage needs of a finished slide: its tiles, from their table, and its stains."""
        row = self.cohort.read("slides", job.slide_id).to_pylist()[0]
        table = self.cohort.read("tiles", job.slide_id)
        tiles = np.stack([table.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
        plan = self.context.plan
        overview, mpp = self._overview(row)
        state = SlideState(job.slide_id, job.patient_id, job.stain, (), row)
        state.stain_fit = StainFit(Stains(), "ihc")
        tissue = _tissue_of_tiles(overview, tiles, row["width"])
        if any(reads_stains(name) for name in plan.encoders):
            base = slide.info.levels[0]
            scale = base.width / overview.shape[1]
            unscanned = filled_tiles(overview, (base.chunk_height / scale, base.chunk_width / scale))
            complete = fill_missing(overview, unscanned)  # thumbnails are white where a slide has no image
            tissue = segment_tissue(complete, mpp)
            own = patient_tiles_of(self.cohort, job.slide_id)  # as when the slide was processed: without its controls
            fitted = tiles if own is None or not own.any() else tiles[own]
            state.stain_fit = fit_stains(slide, white_point(complete, ~tissue.mask & ~unscanned), fitted, plan)
        fractions = table.column("tissue").to_numpy()
        state.tissue_tiles = TissueTiles(tissue, {"tiles": TileGrid(plan.mpp, plan.tile, tiles)}, fractions)
        return state

    def _overview(self, row: Row) -> tuple[NDArray[np.uint8], float]:
        """The thumbnail, at the resolution at which tissue is found if it is finer, and its µm/px.

        Pyramids have no pixels of the background, on which the white point of a slide is measured; thumbnails do.
        """
        image = decode_jpeg(self.cohort.thumbnail(row["slide_id"]).read_bytes())
        height, width = image.shape[:2]
        mpp = row["width"] * row["mpp"] / width
        shrink = max(1.0, max(OVERVIEW_MPP, row["mpp"]) / mpp)
        return resample(image, max(1, round(width / shrink)), max(1, round(height / shrink))), mpp * shrink

    def _finish(self, job: SlideJob, state: SlideState, started: float, slide: Slide | None = None) -> SlideResult:
        """Write the embeddings, then the row that names them."""
        if not state.tissue_tiles.grids["tiles"].tiles.size:
            state.put("embeddings", TileColumns())
        assert EMBED.tables is not None
        tables = EMBED.tables(self.context, state)
        row = self.cohort.read("slides", job.slide_id).to_pylist()[0]
        assert self.base is not None
        match = match_plan(self.base.context.plan, row)
        if match is not None:
            row["plan_id"] = plan_id_of(self.base.context.plan, row, match)
        row = self.cohort.add_tables(row, tables)
        times = self._time_row(job, "done", started, state.seconds)
        return SlideResult(row, times, job, smaller_batches=state.smaller_batches)


def _tissue_of_tiles(overview: NDArray[np.uint8], tiles: NDArray[np.int32], width: int) -> Tissue:
    """The area of the tiles as a mask over the overview. tiles: (n, 3) x, y, size.  width: of level 0, px."""
    mask = np.zeros(overview.shape[:2], bool)
    scale = overview.shape[1] / width
    for x, y, size in (tiles * scale).tolist():
        mask[int(y) : int(np.ceil(y + size)), int(x) : int(np.ceil(x + size))] = True
    return Tissue(mask, np.zeros_like(mask), "tiles", 0.0)
