"""Reviews of predictions by pathologists: a table that only grows, whose entries are chained by hashes.

Each entry is one file, `tables/reviews/NUMBER.parquet`. It appears complete or not at all, and is read with a glob like
every table. Its hash covers its number, the hash of the entry before and the hash of its content. An entry that is
changed, deleted from the middle or inserted later is found; deleted newest entries are not, unless their hash was noted
elsewhere (`verify` prints the newest one).

The entries of an erased patient are emptied: number and hashes stay, and the chain stays valid. The content is hashed
with a random salt, which is erased too, so that nobody can guess the content from the remaining hash.

A reviewer who made a mistake supersedes an own entry with a new one that states the reason. Both stay in the chain, and
the superseded one no longer counts. Entries of releases without the column `supersedes` stay valid.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.assessment import marker_of
from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write, file_sha256
from her2batch.files.locations import is_remote, list_objects
from her2batch.files.locks import lock_folder
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.tasks import CLASSES, HER2_TASKS

VERDICTS: Final = ("agree", "change", "needs-ish")

FIRST_HASH: Final = "0" * 64
"""Hash that the first entry follows."""

LOCK_TIMEOUT_S: Final = 10.0
"""Seconds that a writer waits for another one."""

MAX_COMMENT: Final = 2000
"""Longest comment, in characters."""

HASHES: Final = ("body_sha256", "previous_sha256", "sha256")
CONTENT: Final = tuple(column.name for column in schemas.REVIEW_COLUMNS if column.name not in ("number", *HASHES))
"""Columns that are null in the entry of an erased patient."""

REVIEW_SCHEMA: Final = schemas.table_schema("reviews")
FIRST_SCHEMA: Final = REVIEW_SCHEMA.remove(REVIEW_SCHEMA.get_field_index("supersedes"))
"""Schema of the entries of releases in which no entry could be superseded."""


@dataclass(frozen=True)
class Review:
    """A reviewer's verdict on a prediction, or on the glass of a slide that failed (bundle and method `none`).

    predicted: None where the slide could not be scored.  label: the class, or number, that the reviewer sees; None if
    an ISH test is needed.  supersedes: number of an own entry that this one replaces; the comment states why.
    """

    reviewer: str
    slide_id: str
    bundle: str
    task: str
    method: str
    predicted: str | None
    verdict: str
    label: str | None
    comment: str = ""
    supersedes: int | None = None


def append_review(cohort: Cohort, review: Review, classes: Sequence[str] | None = None) -> Row:
    """Append a review and return its entry. Writers wait for each other, so that the chain does not fork.

    classes: of the task, where it is not built in; empty for a task of numbers.

    Raises InputError for an invalid review, an unknown slide, or an entry that may not be superseded; StoreError if the
    table stays locked; OSError if the write fails, and nothing is added then.
    """
    review = _validated(review, CLASSES.get(review.task, classes))
    path = cohort.table("slides", review.slide_id)
    if not path.is_file():
        raise InputError(f"has no slide {review.slide_id}", cohort.root, "look up the slide id in the list of slides")
    content = {
        **asdict(review),
        "time": datetime.now(UTC).replace(microsecond=0),
        "row_sha256": file_sha256(path),
        "salt": secrets.token_hex(16),
    }
    with reviews_lock(cohort):
        numbers = _numbers(cohort)
        _check_superseded(cohort, review, numbers)
        previous = str(read_parquet(_path(cohort, numbers[-1]))["sha256"][0]) if numbers else FIRST_HASH
        entry = _chained(numbers[-1] + 1 if numbers else 1, previous, content)
        _write(cohort, entry)
    return entry


def read_reviews(cohort: Cohort) -> list[Row]:
    """Read all entries, in order of number. Raises OSError or pa.ArrowInvalid if one is damaged."""
    return [_read_entry(cohort, number) for number in _numbers(cohort)]


def unerased_reviews(entries: Sequence[Row]) -> list[Row]:
    """The entries without those of erased patients."""
    return [entry for entry in entries if entry["slide_id"] is not None]


def counting_reviews(entries: Sequence[Row]) -> list[Row]:
    """The entries that count: without those of erased patients and those that a later entry supersedes."""
    superseded = {entry.get("supersedes") for entry in entries} - {None}
    return [entry for entry in unerased_reviews(entries) if entry["number"] not in superseded]


def reviews_by_slide(entries: Iterable[Row]) -> dict[str, list[Row]]:
    """The entries of each slide, in their order: slide_id → entries."""
    of_slide: dict[str, list[Row]] = {}
    for entry in entries:
        of_slide.setdefault(entry["slide_id"], []).append(entry)
    return of_slide


def newest_reviews(entries: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """(slide_id, column of the labels) → newest entry."""
    return {(entry["slide_id"], marker_of(entry["task"])): entry for entry in counting_reviews(entries)}


def erase_reviews(cohort: Cohort, slide_ids: set[str], pattern: re.Pattern[bytes]) -> list[int]:
    """Empty the entries of these slides, and entries whose text matches a pattern; returns their numbers.

    Numbers and hashes stay, so that the chain stays valid.
    """
    emptied: list[int] = []
    if not reviews_folder(cohort).is_dir():
        return emptied
    with reviews_lock(cohort):
        for part in reviews_folder(cohort).glob(".*.part"):
            part.unlink(missing_ok=True)
        for number in _numbers(cohort):
            entry = _read_entry(cohort, number)
            text = json.dumps(entry, default=str, ensure_ascii=False).encode(errors="surrogateescape")
            if entry["slide_id"] in slide_ids or (entry["slide_id"] is not None and pattern.search(text)):
                _write(cohort, entry | dict.fromkeys(CONTENT))
                emptied.append(number)
    return emptied


def find_chain_problems(cohort: Cohort) -> Iterator[tuple[Path, str]]:
    """Problems of the chain: path of the entry and message."""
    previous = FIRST_HASH
    for expected, number in enumerate(_numbers(cohort), start=1):
        path = _path(cohort, number)
        try:
            table = read_parquet(path)
        except (OSError, pa.ArrowInvalid) as error:
            yield path, f"can't be read as Parquet ({error})"
            return
        if table.schema not in (REVIEW_SCHEMA, FIRST_SCHEMA) or len(table) != 1:
            yield path, "does not have the columns of reviews"
            return
        entry = {"supersedes": None, **table.to_pylist()[0]}
        if number != expected or entry["number"] != number:
            yield path, f"review {expected} is missing before it"
            return
        if (message := _entry_problem(entry, previous)) is not None:
            yield path, message
        previous = entry["sha256"]


def chain_head(cohort: Cohort) -> tuple[int, str]:
    """Number and hash of the newest entry. Noted elsewhere, they show later whether an entry was deleted."""
    with suppress(OSError, pa.ArrowInvalid):
        for number in reversed(_numbers(cohort)):
            return number, str(_read_entry(cohort, number)["sha256"])
    return 0, FIRST_HASH


def reviews_folder(cohort: Cohort) -> Path:
    """The folder of the entries."""
    return cohort.table("reviews", "1").parent


def reviews_stamp(cohort: Cohort) -> tuple[int, int]:
    """A value that changes when an entry is added or emptied: number of entries, newest modification time."""
    files = [_path(cohort, number) for number in _numbers(cohort)]
    return len(files), 0 if cohort.remote else max((path.stat().st_mtime_ns for path in files), default=0)


@contextmanager
def reviews_lock(cohort: Cohort) -> Iterator[None]:
    """Lock the reviews for one writer. The cohort's lock is another one: reviews are written during an ingest too."""
    folder = reviews_folder(cohort)
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        lock = lock_folder(folder)
        try:
            lock.__enter__()
            break
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _validated(review: Review, classes: Sequence[str] | None) -> Review:
    """The review without surrounding blanks. Raises InputError if it is invalid.

    classes: of its task, empty for numbers; None for a task that does not exist.
    """
    reviewer, comment = review.reviewer.strip(), review.comment.strip()
    wrong = None
    if not reviewer or len(reviewer) > 100:
        wrong = "a review needs the name of a reviewer, of at most 100 characters"
    elif len(comment) > MAX_COMMENT:
        wrong = f"a comment has at most {MAX_COMMENT} characters"
    elif classes is None:
        wrong = f"there is no task {review.task}; known: {', '.join(CLASSES)}"
    elif review.verdict not in VERDICTS:
        wrong = f"there is no verdict {review.verdict}; known: {', '.join(VERDICTS)}"
    elif review.verdict == "needs-ish" and (review.task not in HER2_TASKS or review.label is not None):
        wrong = "the verdict needs-ish is for HER2 tasks and has no label"
    elif review.verdict != "needs-ish" and not classes and not _is_number(review.label):
        wrong = f"{review.label} is no number; {review.task} is one, such as 12 or 12.5"
    elif review.verdict != "needs-ish" and classes and review.label not in classes:
        wrong = f"{review.label} is not a class of {review.task}; known: {', '.join(classes)}"
    elif (review.verdict == "agree") != (review.label == review.predicted) and review.verdict != "needs-ish":
        wrong = (
            f"the verdict {review.verdict} does not fit: {review.predicted} was predicted, the label is {review.label}"
        )
    if wrong is not None:
        raise InputError(wrong)
    return Review(**{**asdict(review), "reviewer": reviewer, "comment": comment})


def _is_number(label: str | None) -> bool:
    """Return whether a label is a number that is not negative, with a decimal point."""
    return label is not None and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", label) is not None


def _check_superseded(cohort: Cohort, review: Review, numbers: Sequence[int]) -> None:
    """Check that a review may supersede the entry that it names. Raises InputError.

    Only the author of an entry may supersede it, for the same slide, with a reason, and only once.
    """
    if review.supersedes is None:
        return
    if review.supersedes not in numbers:
        raise InputError(f"there is no review {review.supersedes}", None, "load the slide again")
    entry = _read_entry(cohort, review.supersedes)
    later = [_read_entry(cohort, number) for number in numbers if number > review.supersedes]
    problem = None
    if (entry["slide_id"], marker_of(entry["task"] or "")) != (review.slide_id, marker_of(review.task)):
        problem = f"review {review.supersedes} is not of this slide and marker"
    elif entry["reviewer"] != review.reviewer:
        problem = f"review {review.supersedes} is by another reviewer: only its author can supersede it"
    elif not review.comment:
        problem = f"to supersede review {review.supersedes}, state the reason as a comment"
    elif any(one["supersedes"] == review.supersedes for one in later):
        problem = f"review {review.supersedes} was superseded already"
    if problem is not None:
        raise InputError(problem)


def _chained(number: int, previous: str, content: Mapping[str, Any]) -> Row:
    """The entry of a content, with its hashes."""
    body = _content_hash(content)
    return {
        "number": number,
        **content,
        "body_sha256": body,
        "previous_sha256": previous,
        "sha256": _entry_hash(number, previous, body),
    }


def _entry_problem(entry: Row, previous: str) -> str | None:
    """What is wrong with an entry that should follow the hash `previous`; None if nothing is."""
    emptied = all(entry[name] is None for name in CONTENT)
    if entry["previous_sha256"] != previous:
        return "does not follow the review before it: the chain is broken here"
    if not emptied and _content_hash(entry) != entry["body_sha256"]:
        return "its content was changed after it was written"
    if _entry_hash(entry["number"], previous, entry["body_sha256"]) != entry["sha256"]:
        return "its hash is not that of its content"
    return None


def _content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of an entry: its columns as JSON, sorted by name, times in ISO 8601.

    The column `supersedes` is part of it where it is not null.
    """
    values = {name: value.isoformat() if isinstance(value := content[name], datetime) else value for name in CONTENT}
    if values["supersedes"] is None:
        del values["supersedes"]  # so that entries from before there was this column keep their hash
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _entry_hash(number: int, previous: str, body: str) -> str:
    return hashlib.sha256(f"{number}\n{previous}\n{body}".encode()).hexdigest()


def _read_entry(cohort: Cohort, number: int) -> Row:
    """An entry, with every column. Raises OSError or pa.ArrowInvalid if it is damaged."""
    return {"supersedes": None, **read_parquet(_path(cohort, number)).to_pylist()[0]}


def _write(cohort: Cohort, entry: Row) -> None:
    with atomic_write(_path(cohort, entry["number"])) as part:
        write_parquet(pa.Table.from_pylist([entry], schemas.table_schema("reviews")), part)


def _path(cohort: Cohort, number: int) -> Path:
    return cohort.table("reviews", f"{number:08d}")


def _numbers(cohort: Cohort) -> list[int]:
    """Numbers of the entries, sorted."""
    folder = reviews_folder(cohort)
    names: list[str] = []
    if is_remote(folder):
        names = list(list_objects(folder))
    else:
        with suppress(FileNotFoundError):
            names = [path.name for path in folder.iterdir()]
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"(\d{8})\.parquet", name)))
