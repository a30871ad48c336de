"""Looking over a cohort: `status` (what is done, failed and why; nothing vanished) and `verify` (every byte)."""

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

IN_PLACE_S = 1.0
"""Seconds within which a slide's files and its row are put in place."""


@dataclass
class CohortStatus:
    """Everything seen, in the five outcomes it can have; what has none yet is pending."""

    seen: int = 0
    done: int = 0
    failed: int = 0
    deferred: int = 0
    duplicate: int = 0
    ignored: int = 0
    pending: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # rows whose file the intake table doesn't know
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
    """Count the intake table against the committed rows. Raises StoreError when there is no cohort."""
    cohort.check()
    rows = cohort.rows()
    found = CohortStatus()
    owned = set()
    for entry in cohort.read_intake():
        found.seen += 1
        row = rows.get(entry["slide_id"])
        if entry["outcome"] == "ignored":
            found.ignored += 1
            found.reasons[f"ignored: {entry['reason']}"] += 1
        elif entry["outcome"] == "duplicate":
            found.duplicate += 1
        elif entry["outcome"] == "deferred":
            found.deferred += 1
            found.reasons[f"deferred: {entry['reason']}"] += 1
            owned.add(entry["slide_id"])
        elif row is None:
            found.pending.append(entry["path"])
        else:
            owned.add(entry["slide_id"])
            _count(found, row)
    found.strays = sorted(set(rows) - owned)
    return found


def _count(found: CohortStatus, row: Row) -> None:
    if row["status"] == "done":
        found.done += 1
        found.tiles += row["n_tiles"] or 0
        found.tissue_mm2 += row["tissue_mm2"] or 0.0
    else:
        found.failed += 1
        found.codes[row["error_code"]] += 1
        found.failures.append(row)


@dataclass(frozen=True)
class StoreProblem:
    """A file that is not as its slide's row says."""

    path: Path
    message: str
    slide_id: str | None = None


def verify_cohort(cohort: Cohort) -> Iterator[StoreProblem]:
    """Every file against its row's size and SHA-256, every table against its schema; files that no row names; reviews.

    Raises StoreError when there is no cohort. `ingest` mends what this finds: it computes those slides again, and
    knows them by a list that is written here, where the store can be written to.
    """
    cohort.check()
    found = set()
    first = list(_problems(cohort))
    if first and is_locked(cohort.root):  # a slide that was being put in place is whole a moment later
        time.sleep(IN_PLACE_S)
        first = [problem for problem in first if _stands(cohort, problem)]
    for problem in first:
        if problem.slide_id is not None:
            found.add(problem.slide_id)
        yield problem
    with suppress(OSError):
        cohort.write_damaged_slides(found)


def _stands(cohort: Cohort, problem: StoreProblem) -> bool:
    """Whether a problem is still one, by the slide's row as it is now."""
    try:
        inside = problem.path.relative_to(cohort.root).as_posix()
        row = cohort.read("slides", problem.slide_id or slide_of_file(inside)).to_pylist()[0]
    except (OSError, pa.ArrowInvalid, IndexError):
        return problem.path.exists()
    if problem.path == cohort.table("slides", row["slide_id"]):
        return False
    named = {file["path"]: file for file in row["files"]}
    if inside in named:
        return _wrong(problem.path, named[inside]) is not None
    return problem.slide_id is None and problem.path.exists()


def _problems(cohort: Cohort) -> Iterator[StoreProblem]:
    for path in (cohort.intake, cohort.labels):
        if path.exists() and (what := _unreadable(path)) is not None:
            yield StoreProblem(path, what)
    rows = cohort.reread_rows()
    lost = []
    for path in sorted(cohort.slides.glob("*.parquet")):
        if path.stem not in rows:
            lost.append(path.stem)
            with suppress(OSError):  # it may know the row from before the damage: the next ingest must not
                cohort.row_cache_file.unlink(missing_ok=True)
            yield StoreProblem(path, "the slide's row can't be read", path.stem)
    named = set()
    for row in rows.values():
        for file in row["files"]:
            path = cohort.root / file["path"]
            named.add(path)
            if (what := _wrong(path, file)) is not None:
                yield StoreProblem(path, what, row["slide_id"])
    for path in _slide_files(cohort):
        if path not in named and slide_of_file(path.relative_to(cohort.root).as_posix()) not in lost:
            yield StoreProblem(path, "no slide's row names this file")
    for path, what in reviews.find_chain_problems(cohort):
        yield StoreProblem(path, what)


def files_match_row(cohort: Cohort, row: Row) -> bool:
    """Whether every file a row names is as the row says. Reads all of them."""
    return all(_wrong(cohort.root / file["path"], file) is None for file in row["files"])


def _wrong(path: Path, file: Row) -> str | None:
    """What is wrong with one file; None when it is as its row says."""
    try:
        size = file_size(path)
        if size != file["bytes"]:
            return f"has {size} bytes, its row says {file['bytes']}"
        if file_sha256(path) != file["sha256"]:
            return "its content differs from its SHA-256"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    return _wrong_schema(path) if path.suffix == ".parquet" else None


def _wrong_schema(path: Path) -> str | None:
    name = path.parts[path.parts.index("tables") + 1]
    if (what := _unreadable(path)) is not None:
        return what
    found = read_parquet(path).schema
    dim = found.field("embedding").type.list_size if "embedding" in found.names else None
    return None if found.equals(schemas.table_schema(name, dim)) else f"does not have the columns of {name}"


def _unreadable(path: Path) -> str | None:
    try:
        read_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        return f"can't be read as Parquet ({error})"
    return None


def _slide_files(cohort: Cohort) -> Iterator[Path]:
    """Every file of the store that belongs to a slide, apart from the rows themselves."""
    for name in cohort.table_names():
        if name != "slides":
            yield from sorted((cohort.root / "tables" / name).glob("[!.]*.parquet"))
    yield from sorted((cohort.root / "thumbnails").glob("[!.]*.jpg"))
    yield from walk_files(cohort.root / "pyramids")
