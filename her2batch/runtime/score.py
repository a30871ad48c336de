"""Scores a cohort with a bundle: predictions from the cohort's tables, without reading the slide files again.

Classes of patches and thumbnails, which the bundle's image networks give, are computed from the cohort's pyramids and
thumbnails, and stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from her2batch.errors import STOPPED, Her2BatchError, InputError, one_line
from her2batch.files.locations import to_location
from her2batch.models.bundle import Bundle, check_bundle_fits, read_bundle
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.calibration.apply import CalibratedSlides
from her2batch.pipeline.calibration.run import calibrate_slides, check_calibration
from her2batch.pipeline.predict import ImageNetwork, has_image_networks, load_networks, score_slide
from her2batch.pipeline.results import apply_labels
from her2batch.runtime.doctor import check_torchvision
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import RETIRED, Cohort, Row, tables_of
from her2batch.store.labels import stored_labels
from her2batch.tasks import task_applies

SHARE = 16
"""Slides of one call: a head takes milliseconds for a slide, as does a call to Ray."""

ProgressCallback = Callable[[int, int], None]
"""Called with the numbers of slides that are scored or failed, and of all slides."""

Share = tuple[Row, ...]
"""Rows of the slides of one call."""

ScoreShare = Callable[[Share, str], dict[str, str]]
"""Slides of one call, device → slide → why it could not be scored."""


class NoTaskAppliesError(InputError):
    """No task of a bundle applies to any slide of the cohort: nothing can be scored."""

    def __init__(self, bundle: Bundle, not_applicable: Mapping[str, int], path: Path) -> None:
        slides = stain_counts(not_applicable)
        what = f"no task of the bundle ({', '.join(bundle.info.tasks)}) applies to a slide of this cohort ({slides})"
        remedy = "state each slide's stain in the column stain of a labels file and run her2batch ingest with --labels"
        super().__init__(what, path, remedy)


@dataclass
class ScoreSummary:
    """What became of the cohort's slides.

    already: scored by an earlier run.  not_applicable: stain → done slides to which no task of the bundle applies; they
    have predictions tables without rows.
    """

    bundle: Bundle
    already: int = 0
    scored: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    not_applicable: dict[str, int] = field(default_factory=dict)

    @property
    def not_applicable_text(self) -> str:
        """The slides to which no task applies: "12 stained for er, 3 of an unknown marker"."""
        return stain_counts(self.not_applicable)

    @property
    def exit_code(self) -> int:
        """0 all done · 3 some failed · 130 stopped."""
        return STOPPED if self.stopped else 3 if self.failures else 0

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "bundle": self.bundle.id,
            "licence": self.bundle.info.licence,
            "scored": self.scored,
            "already": self.already,
            "not_applicable": self.not_applicable,
            "failures": self.failures,
            "exit_code": self.exit_code,
        }


@dataclass(frozen=True)
class CohortScores:
    """What a bundle and a calibration made of a cohort. None: not asked for, or not reached before the run stopped."""

    by_bundle: ScoreSummary | None
    by_calibration: CalibratedSlides | None

    @property
    def exit_code(self) -> int:
        """0 all done · 3 some failed · 130 stopped."""
        code = 0 if self.by_bundle is None else self.by_bundle.exit_code
        return max(code, 3 if self.by_calibration is not None and self.by_calibration.failures else 0)

    def as_json(self) -> dict[str, Any]:
        """What `score --json` prints."""
        data = {} if self.by_bundle is None else self.by_bundle.as_json()
        if self.by_calibration is not None:
            data["calibration"] = self.by_calibration.as_json()
        return {**data, "exit_code": self.exit_code}


def score_cohort(
    root: Path,
    bundle: Path | None,
    calibration: Path | None,
    resources: Resources,
    report: ProgressCallback = lambda *_: None,
) -> CohortScores:
    """Score every slide of a cohort with a bundle, a calibration or both; the calibration is checked before the bundle.

    Raises InputError, StoreError, WeightsError for what stops the batch.
    """
    if bundle is None and calibration is None:
        raise InputError("score has nothing to score with", None, "name a trained bundle, a calibration, or both")
    if calibration is not None:
        check_calibration(root, calibration)  # before the bundle computes for hours
    scored = score(root, bundle, resources, report) if bundle is not None else None
    if calibration is None or (scored is not None and scored.stopped):
        return CohortScores(scored, None)
    return CohortScores(scored, calibrate_slides(root, calibration, report))


def score(
    root: Path,
    folder: Path,
    resources: Resources,
    report: ProgressCallback = lambda *_: None,
    session: RaySession | None = None,
) -> ScoreSummary:
    """Score every slide of a cohort that this bundle has not scored yet.

    session: an open connection to Ray; None: connect, and disconnect at the end.  Raises InputError, StoreError,
    WeightsError.
    """
    cohort, bundle = Cohort(to_location(root)), read_bundle(folder.absolute())
    plan = cohort.plan()
    check_bundle_fits(
        bundle, plan, {name.split("/", 1)[1] for name in cohort.table_names() if name.startswith("embeddings/")}
    )
    if has_image_networks(bundle):
        check_torchvision()
    BundlePredictor(bundle)  # a head that cannot be loaded stops the run here, and not every slide
    found = ScoreSummary(bundle)
    with cohort.lock():
        cohort.update_row_cache()
        apply_labels(cohort, stored_labels(cohort), bundle)
        rows = [row for row in cohort.rows().values() if row["status"] == "done"]
        if not rows:
            raise InputError("holds no slide that is done", cohort.root, "ingest slides first")
        found.not_applicable = count_not_applicable(bundle, rows)
        if sum(found.not_applicable.values()) == len(rows):
            raise NoTaskAppliesError(bundle, found.not_applicable, cohort.root)
        todo = [row for row in rows if not _scored(cohort, row, bundle)]
        found.already = len(rows) - len(todo)
        shares = [tuple(todo[k : k + SHARE]) for k in range(0, len(todo), SHARE)]
        with _connect_if_needed(resources, shares, session) as connection:
            for share, failures in _results(connection, partial(_score, cohort, bundle, plan), shares):
                found.failures |= failures
                found.scored += len(share) - len(failures)
                report(found.already + found.scored + len(found.failures), len(rows))
            found.stopped = connection is not None and connection.stopped.is_set()
        cohort.update_row_cache()
    return found


def _results(
    session: RaySession | None, score_share: ScoreShare, shares: Sequence[Share]
) -> Iterator[tuple[Share, dict[str, str]]]:
    """Shares as they finish, with what failed in each: slide → why.

    When a call ends with an exception, for example because a library has crashed its worker, it is not known which
    slide caused it. The slides of the call are then scored one by one.
    """
    singly: list[Share] = []
    for share, result in map_unordered(session, score_share, shares, gpus=1.0):
        if not isinstance(result, Exception):
            yield share, result
        elif len(share) == 1:
            yield share, {share[0]["slide_id"]: f"{share[0]['slide_id']}: {result}"}
        else:
            singly += [(row,) for row in share]
    if singly:
        yield from _results(session, score_share, singly)


@contextmanager
def _connect_if_needed(
    resources: Resources, shares: list[tuple[Row, ...]], given: RaySession | None
) -> Iterator[RaySession | None]:
    if resources.workers == 0 or not shares or given is not None:
        yield given if resources.workers != 0 else None
        return
    with connect(resources) as session:
        yield session


def stain_counts(counts: Mapping[str, int]) -> str:
    """Numbers of slides by stain as text: "12 stained for er, 3 of an unknown marker"."""
    text = {"ihc": "of an unknown marker", "unknown": "of an unknown stain", "he": "stained with H&E"}
    return ", ".join(f"{count} {text.get(stain, f'stained for {stain}')}" for stain, count in counts.items())


def count_not_applicable(bundle: Bundle, rows: Sequence[Row]) -> dict[str, int]:
    """Stain → number of slides to which no task of the bundle applies. rows: of the slides table."""
    tasks = {entry.task for entry in bundle.info.models if entry.kind != "patch"}
    stains = [
        row["stain"] for row in rows if not any(task_applies(bundle.info.task(task), row["stain"]) for task in tasks)
    ]
    return dict(sorted(Counter(stain or "unknown" for stain in stains).items()))


def _scored(cohort: Cohort, row: Row, bundle: Bundle) -> bool:
    path = cohort.table(f"predictions/{bundle.id}", row["slide_id"]).relative_to(cohort.root).as_posix()
    return any(file["path"] == path for file in row["files"])


def _score(cohort: Cohort, bundle: Bundle, plan: Plan, rows: Share, device: str) -> dict[str, str]:
    """Score some slides in a worker; returns slide → why it failed. An error of one slide leaves the others alone."""
    predictor, networks = _loaded(str(bundle.path), device, cohort)
    failures = {}
    reads_patches = any(entry.kind == "patch" for entry in bundle.info.models)
    for row in rows:
        slide_id = row["slide_id"]
        try:
            if reads_patches and RETIRED in row["flags"] and f"patches/{bundle.id}" not in tables_of(row):
                remedy = "remove its row in tables/slides and ingest it again"
                raise InputError(
                    "its pyramid was removed by the retention policy, and this bundle reads patches", None, remedy
                )
            cohort.add_tables(row, score_slide(cohort, plan, predictor, networks, row))
        except InputError as error:
            failures[slide_id] = f"{slide_id}: {error}"
        except (Her2BatchError, pa.ArrowInvalid, OSError, KeyError) as error:
            failures[slide_id] = f"{slide_id}: {error}; run her2batch verify, then ingest again"
        except Exception as error:  # noqa: BLE001  (one slide's error; it is named, and the next one is scored)
            what = f"internal error ({type(error).__name__}: {one_line(error)})"
            failures[slide_id] = f"{slide_id}: {what}; run her2batch verify; if it finds nothing, report this message"
    return failures


@lru_cache(maxsize=1)
def _loaded(path: str, device: str, cohort: Cohort) -> tuple[BundlePredictor, list[ImageNetwork]]:
    """The bundle's models, loaded once a worker."""
    bundle, batches = read_bundle(Path(path)), None
    if device != "cpu":
        from her2batch.models.execution.batch_size import BatchSizes  # imports torch: only where there is a GPU

        batches = BatchSizes(cohort.batch_sizes)
    return BundlePredictor(bundle), load_networks(bundle, device, batches=batches)
