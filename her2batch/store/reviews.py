"""What pathologists said of predictions: a table that only grows, its entries chained by their hashes.

One file an entry, `tables/reviews/NUMBER.parquet`: it appears whole or not at all, is never changed, and is read with
a glob like every table. An entry's hash covers its number, the hash before it and the hash of what was said. So an
entry that is changed, lost from the middle or put in later is found; the newest ones taken away are not, unless their
hash was noted elsewhere (`verify` prints the last one).

A forgotten patient's entries are emptied: number and hashes stay, and the chain still holds. What was said is hashed
with a random salt that goes with it, so that nobody can guess it from the hash that stays.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write, file_sha256
from her2batch.files.locations import is_remote, list_objects
from her2batch.files.locks import lock_folder
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.tasks import CLASSES, HER2_TASKS

VERDICTS: Final = ("agree", "change", "needs-ish")

FIRST: Final = "0" * 64
"""The hash before the first entry."""

PATIENCE_S: Final = 10.0
"""How long somebody waits for another who writes."""

LONGEST: Final = 2000
"""Characters of a comment."""

HASHES: Final = ("body_sha256", "previous_sha256", "sha256")
BODY: Final = tuple(one.name for one in schemas.REVIEW_COLUMNS if one.name not in ("number", *HASHES))
"""Columns that say something, and that a forgotten patient's entry has lost."""


@dataclass(frozen=True)
class Review:
    """A verdict on the prediction that was seen. label: the class in the reviewer's eyes; None: it takes an ISH."""

    reviewer: str
    slide_id: str
    bundle: str
    task: str
    method: str
    predicted: str
    verdict: str
    label: str | None
    comment: str = ""


def append_review(cohort: Cohort, review: Review) -> Row:
    """Add an entry and return it. Writers wait for each other: the chain never forks.

    Raises InputError for a verdict that says nothing or contradicts itself, or of a slide that isn't there;
    StoreError when others write all the time; OSError when the disk refuses: nothing is added then.
    """
    review = _checked(review)
    place = cohort.table("slides", review.slide_id)
    if not place.is_file():
        raise InputError(f"holds no slide {review.slide_id}", cohort.root, "look at the list of slides for its id")
    said = {
        **asdict(review),
        "time": datetime.now(UTC).replace(microsecond=0),
        "row_sha256": file_sha256(place),
        "salt": secrets.token_hex(16),
    }
    with reviews_lock(cohort):
        numbers = _numbers(cohort)
        before = str(read_parquet(_place(cohort, numbers[-1]))["sha256"][0]) if numbers else FIRST
        entry = _chained(numbers[-1] + 1 if numbers else 1, before, said)
        _write(cohort, entry)
    return entry


def read_reviews(cohort: Cohort) -> list[Row]:
    """Every entry, in order of number. Raises OSError, pa.ArrowInvalid for one that is damaged."""
    return [read_parquet(_place(cohort, number)).to_pylist()[0] for number in _numbers(cohort)]


def unerased_reviews(entries: Sequence[Row]) -> list[Row]:
    """Those that still say something: not the emptied ones."""
    return [one for one in entries if one["slide_id"] is not None]


def newest_reviews(entries: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """(slide_id, column of the labels) → the last entry on it."""
    return {(one["slide_id"], label_column(one["task"])): one for one in unerased_reviews(entries)}


def label_column(task: str) -> str:
    """The column of the labels that a task's class says something about."""
    return "her2" if task in HER2_TASKS else task


def erase_reviews(cohort: Cohort, slide_ids: set[str], named: re.Pattern[bytes]) -> list[int]:
    """Empty the entries on these slides, and those whose words name them; returns their numbers.

    Numbers and hashes stay, so the chain still holds.
    """
    emptied: list[int] = []
    if not reviews_folder(cohort).is_dir():
        return emptied
    with reviews_lock(cohort):
        for part in reviews_folder(cohort).glob(".*.part"):
            part.unlink(missing_ok=True)
        for number in _numbers(cohort):
            entry = read_parquet(_place(cohort, number)).to_pylist()[0]
            words = json.dumps(entry, default=str, ensure_ascii=False).encode(errors="surrogateescape")
            if entry["slide_id"] in slide_ids or (entry["slide_id"] is not None and named.search(words)):
                _write(cohort, entry | dict.fromkeys(BODY))
                emptied.append(number)
    return emptied


def find_chain_problems(cohort: Cohort) -> Iterator[tuple[Path, str]]:
    """Whatever is wrong with the chain: the entry's file, and what."""
    before = FIRST
    for expected, number in enumerate(_numbers(cohort), start=1):
        path = _place(cohort, number)
        try:
            table = read_parquet(path)
        except (OSError, pa.ArrowInvalid) as error:
            yield path, f"can't be read as Parquet ({error})"
            return
        if not table.schema.equals(schemas.table_schema("reviews")) or len(table) != 1:
            yield path, "does not have the columns of reviews"
            return
        entry = table.to_pylist()[0]
        if number != expected or entry["number"] != number:
            yield path, f"review {expected} is missing before it"
            return
        if (what := _wrong(entry, before)) is not None:
            yield path, what
        before = entry["sha256"]


def chain_head(cohort: Cohort) -> tuple[int, str]:
    """Number and hash of the newest entry: whoever notes them down can tell later whether any was taken away."""
    with suppress(OSError, pa.ArrowInvalid):
        for number in reversed(_numbers(cohort)):
            return number, str(read_parquet(_place(cohort, number)).to_pylist()[0]["sha256"])
    return 0, FIRST


def reviews_folder(cohort: Cohort) -> Path:
    """Where the entries lie."""
    return cohort.table("reviews", "1").parent


def reviews_stamp(cohort: Cohort) -> tuple[int, int]:
    """Changes when an entry is added or emptied: how many there are, and when the newest file was written."""
    files = [_place(cohort, number) for number in _numbers(cohort)]
    return len(files), 0 if cohort.remote else max((path.stat().st_mtime_ns for path in files), default=0)


@contextmanager
def reviews_lock(cohort: Cohort) -> Iterator[None]:
    """The table for one writer. Its lock is not the cohort's: reviews are written while a night ingests."""
    place = reviews_folder(cohort)
    if not is_remote(place):
        place.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + PATIENCE_S
    while True:
        held = lock_folder(place)
        try:
            held.__enter__()
            break
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _checked(review: Review) -> Review:
    """The review as it is kept. Raises InputError."""
    classes = CLASSES.get(review.task)
    reviewer, comment = review.reviewer.strip(), review.comment.strip()
    wrong = None
    if not reviewer or len(reviewer) > 100:
        wrong = "a review needs a reviewer, of at most 100 characters"
    elif len(comment) > LONGEST:
        wrong = f"a comment has at most {LONGEST} characters"
    elif classes is None:
        wrong = f"{review.task} is no task; known: {', '.join(CLASSES)}"
    elif review.verdict not in VERDICTS:
        wrong = f"{review.verdict} is no verdict; known: {', '.join(VERDICTS)}"
    elif review.verdict == "needs-ish" and (review.task not in HER2_TASKS or review.label is not None):
        wrong = "needs-ish is said of a HER2 task, without a label"
    elif review.verdict != "needs-ish" and review.label not in (classes or ()):
        wrong = f"{review.label} is no class of {review.task}; known: {', '.join(classes)}"
    elif (review.verdict == "agree") != (review.label == review.predicted) and review.verdict != "needs-ish":
        wrong = f"{review.verdict} does not fit: {review.predicted} was predicted, {review.label} is said"
    if wrong is not None:
        raise InputError(wrong)
    return Review(**{**asdict(review), "reviewer": reviewer, "comment": comment})


def _chained(number: int, previous: str, said: Mapping[str, Any]) -> Row:
    body = _digest(said)
    return {
        "number": number,
        **said,
        "body_sha256": body,
        "previous_sha256": previous,
        "sha256": _own(number, previous, body),
    }


def _wrong(entry: Row, before: str) -> str | None:
    emptied = all(entry[name] is None for name in BODY)
    if entry["previous_sha256"] != before:
        return "does not follow the review before it: the chain is broken here"
    if not emptied and _digest(entry) != entry["body_sha256"]:
        return "what it says was changed after it was written"
    if _own(entry["number"], before, entry["body_sha256"]) != entry["sha256"]:
        return "its hash is not that of its content"
    return None


def _digest(said: Mapping[str, Any]) -> str:
    """Hash of what an entry says: its columns as JSON, by name, times in ISO 8601."""
    values = {name: one.isoformat() if isinstance(one := said[name], datetime) else one for name in BODY}
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _own(number: int, previous: str, body: str) -> str:
    return hashlib.sha256(f"{number}\n{previous}\n{body}".encode()).hexdigest()


def _write(cohort: Cohort, entry: Row) -> None:
    with atomic_write(_place(cohort, entry["number"])) as part:
        write_parquet(pa.Table.from_pylist([entry], schemas.table_schema("reviews")), part)


def _place(cohort: Cohort, number: int) -> Path:
    return cohort.table("reviews", f"{number:08d}")


def _numbers(cohort: Cohort) -> list[int]:
    """Numbers of the entries' files, in order."""
    place = reviews_folder(cohort)
    names: list[str] = []
    if is_remote(place):
        names = list(list_objects(place))
    else:
        with suppress(FileNotFoundError):
            names = [path.name for path in place.iterdir()]
    return sorted(int(found[1]) for one in names if (found := re.fullmatch(r"(\d{8})\.parquet", one)))
