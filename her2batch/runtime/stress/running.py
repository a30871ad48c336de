"""Runs a stress test of a cohort: some of its slides, each scored again under shifts of scanner and staining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa

from her2batch.errors import STOPPED, Her2BatchError, InputError
from her2batch.pipeline.stress.rescoring import DEFAULT_TILES, StressedSlide, rescore_slide
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import RETIRED, Cohort, Row
from her2batch.tasks import HER2_TASKS, task_applies
from her2batch.vision.shifts.scanner_shifts import SHIFTS, ScannerShift

DEFAULT_SLIDES: Final = 20
"""Slides of a stress test."""

ProgressCallback = Callable[[int, int], None]
"""Called with the numbers of slides that are done, and of all slides."""


@dataclass(frozen=True)
class StressRequest:
    """What is tested. slides: largest number of slides.  tiles: largest number of tiles of each.  seed: of the choice
    of both.  slide_ids: these slides instead of a choice."""

    slides: int = DEFAULT_SLIDES
    tiles: int = DEFAULT_TILES
    seed: int = 0
    slide_ids: tuple[str, ...] = ()
    shifts: tuple[ScannerShift, ...] = SHIFTS


@dataclass
class StressRun:
    """What became of the slides, in order of their ids. failures: slide id → why it could not be tested."""

    request: StressRequest
    slides: list[StressedSlide] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done · 3 some failed · 130 stopped."""
        return STOPPED if self.stopped else 3 if self.failures else 0


def stress_cohort(
    cohort: Cohort, request: StressRequest, resources: Resources, report: ProgressCallback = lambda *_: None
) -> StressRun:
    """Score slides again under all shifts. Nothing is written. Raises InputError, StoreError."""
    plan, rows = cohort.plan(), choose_slides(cohort, request)
    run = StressRun(request)
    if resources.workers == 0:
        return _collect(run, cohort, plan, rows, None, report)
    with connect(resources) as session:
        return _collect(run, cohort, plan, rows, session, report)


def choose_slides(cohort: Cohort, request: StressRequest) -> list[Row]:
    """Return the rows of the slides to test: HER2 slides with tiles and a pyramid, chosen by the seed.

    Raises InputError for a named slide that can't be tested, and when there is none.
    """
    rows = {row["slide_id"]: row for row in cohort.rows().values() if _can_be_tested(row)}
    if unknown := [slide_id for slide_id in request.slide_ids if slide_id not in rows]:
        raise InputError(f"slide {unknown[0]} can't be tested", cohort.root, "name a HER2 slide that is done")
    if not rows:
        what = "has no HER2 slide that is done and has a pyramid"
        raise InputError(what, cohort.root, "ingest slides first; state their stain in the labels")
    names = list(request.slide_ids) or sorted(rows)
    if len(names) > request.slides and not request.slide_ids:
        rng = np.random.default_rng(request.seed)
        names = sorted(rng.choice(names, request.slides, replace=False).tolist())
    return [rows[name] for name in names]


def _can_be_tested(row: Row) -> bool:
    applies = task_applies(HER2_TASKS[0], row["stain"])
    return bool(row["status"] == "done" and applies and row["n_tiles"] and RETIRED not in (row["flags"] or ()))


def _collect(
    run: StressRun, cohort: Cohort, plan: Plan, rows: list[Row], session: RaySession | None, report: ProgressCallback
) -> StressRun:
    found = map_unordered(session, partial(_stress, cohort, plan, run.request), rows)
    for done, (row, result) in enumerate(found, start=1):
        if isinstance(result, StressedSlide):
            run.slides.append(result)
        elif result is None:
            run.failures[row["slide_id"]] = "it has no tissue of the patient"
        elif isinstance(result, Her2BatchError | OSError | pa.ArrowInvalid):
            run.failures[row["slide_id"]] = str(result)
        elif isinstance(result, Exception):
            raise result
        report(done, len(rows))
    run.slides.sort(key=lambda slide: slide.slide_id)
    run.stopped = session is not None and session.stopped.is_set()
    return run


def _stress(cohort: Cohort, plan: Plan, request: StressRequest, row: Row, _: str) -> StressedSlide | None:
    """Test one slide in a worker."""
    return rescore_slide(cohort, plan, row, request.shifts, request.tiles, request.seed)
