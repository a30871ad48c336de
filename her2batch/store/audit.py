"""Checks of a cohort: `status` counts slides and files by outcome, `verify` compares every file with its checksum."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from her2batch.files.atomic import file_sha256
from her2batch.files.locations import file_size, slide_of_file, walk_files
from her2batch.files.locks import is_locked
from her2batch.files.parquet import read_parquet
from her2batch.store import reviews, schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.store.outcome_counts import OutcomeCounts
from her2batch.store.validation.registrations import find_log_problems

COMMIT_S = 10.0
"""Seconds within which a slide's files and then its row are moved into place, also on a slow disk."""

LOOK_AGAIN_S = 0.5
"""Seconds between two looks at what an ingest may be committing."""


@dataclass
class CohortStatus:
    """Numbers of files by outcome.  pending: paths of files without an outcome.  strays: see below.

    archived: of the done slides, those whose files have left the scan folder.  unreachable: number of slides of a scan
    folder that had no slides at all at the last ingest.
    """

    seen: int = 0
    done: int = 0
    failed: int = 0
    deferred: int = 0
    duplicate: int = 0
    ignored: int = 0
    pending: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # ids of rows without a file in the intake table
    archived: int = 0
    unreachable: int = 0
    tiles: int = 0
    tissue_mm2: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[Row] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def adds_up(self) -> bool:
        """Whether every file that was seen has an outcome."""
        return OutcomeCounts.of(self).adds_up


def cohort_status(cohort: Cohort) -> CohortStatus:
    """Count the files of the intake table by the rows of their slides. Raises StoreError if there is no cohort."""
    cohort.check()
    rows = cohort.rows()
    counts = CohortStatus()
    with_file = set()
    for entry in cohort.read_intake():
        counts.seen += 1
        row = rows.get(entry["slide_id"])
        if entry["outcome"] == "ignored":
            counts.ignored += 1
            counts.reasons[f"ignored: {entry['reason']}"] += 1
        elif entry["outcome"] == "duplicate":
            counts.duplicate += 1
        elif entry["outcome"] == "deferred":
            counts.deferred += 1
            counts.reasons[f"deferred: {entry['reason']}"] += 1
            with_file.add(entry["slide_id"])
        elif row is None:
            counts.pending.append(entry["path"])
        else:
            with_file.add(entry["slide_id"])
            counts.archived += entry["outcome"] == "archived"
            counts.unreachable += entry["outcome"] == "slide" and entry["reason"] is not None
            _count(counts, row)
    counts.strays = sorted(set(rows) - with_file)
    return counts


def _count(counts: CohortStatus, row: Row) -> None:
    if row["status"] == "done":
        counts.done += 1
        counts.tiles += row["n_tiles"] or 0
        counts.tissue_mm2 += row["tissue_mm2"] or 0.0
    else:
        counts.failed += 1
        counts.codes[row["error_code"]] += 1
        counts.failures.append(row)


@dataclass(frozen=True)
class StoreProblem:
    """A file that differs from the entry in its slide's row.  slide_id: None if the file belongs to no slide."""

    path: Path
    message: str
    slide_id: str | None = None


def verify_cohort(cohort: Cohort) -> Iterator[StoreProblem]:
    """Compare every file with the size and SHA-256 in its row, and tables with their schemas; find files without a row.

    Checks the chain of reviews and the validation log too. The slides with problems are written to the list of damaged
    slides, if the cohort is writable; `ingest` processes them again. Raises StoreError if there is no cohort.
    """
    cohort.check()
    damaged = set()
    in_use = is_locked(cohort.root)  # before each look, because the run may end during it
    problems = list(_find_problems(cohort))
    end = time.monotonic() + COMMIT_S
    while problems and (in_use or is_locked(cohort.root)) and time.monotonic() < end:  # a slide may be half committed
        time.sleep(LOOK_AGAIN_S)
        in_use = is_locked(cohort.root)
        problems = [problem for problem in problems if _persists(cohort, problem)]
    for problem in problems:
        if problem.slide_id is not None:
            damaged.add(problem.slide_id)
        yield problem
    with suppress(OSError):
        cohort.write_damaged_slides(damaged)


def _persists(cohort: Cohort, problem: StoreProblem) -> bool:
    """Whether a problem is still there, by the current row of the slide."""
    try:
        name = problem.path.relative_to(cohort.root).as_posix()
        row = cohort.read("slides", problem.slide_id or slide_of_file(name)).to_pylist()[0]
    except (OSError, pa.ArrowInvalid, IndexError):
        return problem.path.exists()
    if problem.path == cohort.table("slides", row["slide_id"]):
        return False
    entries = {file["path"]: file for file in row["files"]}
    if name in entries:
        return _file_problem(problem.path, entries[name]) is not None
    return problem.slide_id is None and problem.path.exists()


def _find_problems(cohort: Cohort) -> Iterator[StoreProblem]:
    for path in (cohort.intake, cohort.labels):
        if path.exists() and (message := _parquet_problem(path)) is not None:
            yield StoreProblem(path, message)
    rows = cohort.reread_rows()
    unreadable = []
    for path in sorted(cohort.slides.glob("*.parquet")):
        if path.stem not in rows:
            unreadable.append(path.stem)
            with suppress(OSError):  # the cache may contain the undamaged row, which the next ingest must not use
                cohort.row_cache_file.unlink(missing_ok=True)
            yield StoreProblem(path, "the slide's row can't be read", path.stem)
    named = set()
    for row in rows.values():
        for file in row["files"]:
            path = cohort.root / file["path"]
            named.add(path)
            if (message := _file_problem(path, file)) is not None:
                yield StoreProblem(path, message, row["slide_id"])
    for path in _slide_files(cohort):
        if path not in named and slide_of_file(path.relative_to(cohort.root).as_posix()) not in unreadable:
            yield StoreProblem(path, "no slide's row names this file")
    for path, message in (*reviews.find_chain_problems(cohort), *find_log_problems(cohort)):
        yield StoreProblem(path, message)


def files_match_row(cohort: Cohort, row: Row) -> bool:
    """Whether every file of a row has the size and SHA-256 of its entry. Reads all of them."""
    return all(_file_problem(cohort.root / file["path"], file) is None for file in row["files"])


def _file_problem(path: Path, file: Row) -> str | None:
    """The difference between a file and its entry in a row; None if there is none."""
    try:
        size = file_size(path)
        if size != file["bytes"]:
            return f"has {size} bytes, but {file['bytes']} in its row"
        if file_sha256(path) != file["sha256"]:
            return "its content differs from its SHA-256"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    return _schema_problem(path) if path.suffix == ".parquet" else None


def _schema_problem(path: Path) -> str | None:
    name = "/".join(path.parts[path.parts.index("tables") + 1 : -1])
    if (message := _parquet_problem(path)) is not None:
        return message
    schema = read_parquet(path).schema
    dim = schema.field("embedding").type.list_size if "embedding" in schema.names else None
    wanted = schemas.table_schema(name, dim)
    older = pa.schema(
        [field for field in wanted if field.name not in schemas.LATER_COLUMNS.get(schemas.table_key(name), ())]
    )
    return None if schema.equals(wanted) or schema.equals(older) else f"does not have the columns of {name}"


def _parquet_problem(path: Path) -> str | None:
    try:
        read_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        return f"can't be read as Parquet ({error})"
    return None


def _slide_files(cohort: Cohort) -> Iterator[Path]:
    """Paths of all files that belong to slides, without the rows."""
    for name in cohort.table_names():
        if name != "slides":
            yield from sorted((cohort.root / "tables" / name).glob("[!.]*.parquet"))
    yield from sorted((cohort.root / "thumbnails").glob("[!.]*.jpg"))
    yield from walk_files(cohort.root / "pyramids")
