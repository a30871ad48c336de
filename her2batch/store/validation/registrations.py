"""The validation log of a cohort: which criteria were registered, and when predictions were compared with labels.

Each entry is one file, `validation/NUMBER.json`, with the checksum of the entry before it, so that an entry that is
changed, deleted from the middle or inserted later is found. Deleted newest entries are found where the checksum of the
newest one was noted elsewhere: `--register` prints it, and every report contains it.

An entry names slides by a digest of their content. It contains no name of a slide or patient, so that nothing in it has
to be erased with a patient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from her2batch.errors import StoreError
from her2batch.files.atomic import atomic_write, disk_errors, make_folder
from her2batch.files.locks import lock_folder
from her2batch.store.cohort import Cohort
from her2batch.store.validation.criteria import criteria_sha256

FIRST_HASH: Final = "0" * 64
"""Checksum that the first entry follows."""

Entry = dict[str, Any]
"""number, time, kind (`registered` or `compared`), previous, sha256, and what the kind has."""


def log_folder(cohort: Cohort) -> Path:
    """Return the folder of the entries."""
    return cohort.root / "validation"


def content_sha256(content: Mapping[str, Any]) -> str:
    """Return the checksum of a JSON object without its key `sha256`, independent of spaces and the order of keys."""
    own = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def slide_digests(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the digests of slides, sorted. rows: of the table slides."""
    return sorted(hashlib.sha256(f"slide {row['sha256']}".encode()).hexdigest() for row in rows)


def read_log(cohort: Cohort) -> list[Entry]:
    """Return all entries, in order. Raises StoreError for an entry that is damaged or changed, or that is missing."""
    entries: list[Entry] = []
    for path, entry in _read_entries(cohort):
        previous = entries[-1]["sha256"] if entries else FIRST_HASH
        if (problem := _entry_problem(entry, len(entries) + 1, previous)) is not None:
            raise StoreError(problem, path, "restore the folder from a backup")
        assert entry is not None
        entries.append(entry)
    return entries


def find_log_problems(cohort: Cohort) -> Iterator[tuple[Path, str]]:
    """Yield the first problem of the log: path of the entry and message."""
    try:
        read_log(cohort)
    except StoreError as error:
        yield Path(str(error.path)), error.message


def _read_entries(cohort: Cohort) -> Iterator[tuple[Path, Entry | None]]:
    """Yield path and content of each entry, in order; the content of a damaged one is None."""
    folder = log_folder(cohort)
    for path in sorted(folder.glob("[0-9]*.json")) if folder.is_dir() else ():
        entry: Entry | None = None
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text("utf-8"))
            entry = found if isinstance(found, dict) else None
        yield path, entry


def _entry_problem(entry: Entry | None, number: int, previous: str) -> str | None:
    if entry is None or not {"number", "time", "kind", "previous", "sha256"} <= entry.keys():
        return "is no entry of the validation log"
    if entry["number"] != number:
        return f"entry {number} is missing before it"
    if entry["previous"] != previous:
        return "does not follow the entry before it"
    return "its content differs from its checksum" if entry["sha256"] != content_sha256(entry) else None


def append_entry(cohort: Cohort, kind: str, content: Mapping[str, Any]) -> Entry:
    """Append an entry and return it. Raises StoreError when the log is damaged or can't be written."""
    folder = log_folder(cohort)
    with disk_errors(cohort.root):
        make_folder(folder)
        with lock_folder(folder):
            entries = read_log(cohort)
            entry: Entry = {
                "number": len(entries) + 1,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "kind": kind,
                **content,
                "previous": entries[-1]["sha256"] if entries else FIRST_HASH,
            }
            entry["sha256"] = content_sha256(entry)
            with atomic_write(folder / f"{entry['number']:05d}.json") as part:
                part.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return entry


def register_criteria(cohort: Cohort, text: str) -> Entry:
    """Register criteria for the slides that a cohort has now, and return the entry.

    The same criteria for the same slides are registered once: the earlier entry is returned. Raises StoreError.
    """
    cohort.check()
    slides = slide_digests(row for row in cohort.rows().values() if row["status"] == "done")
    found = {"criteria_sha256": criteria_sha256(text), "slides": slides}
    for entry in read_log(cohort):
        if entry["kind"] == "registered" and all(entry[name] == value for name, value in found.items()):
            return entry
    return append_entry(cohort, "registered", {**found, "criteria": text, "labels_in_cohort": cohort.labels.exists()})


def newest_registration(entries: Iterable[Entry], sha256: str | None = None) -> Entry | None:
    """Return the newest registration, or the first of the criteria with a checksum; None without one."""
    registered = [entry for entry in entries if entry["kind"] == "registered"]
    if sha256 is not None:
        return next((entry for entry in registered if entry["criteria_sha256"] == sha256), None)
    return registered[-1] if registered else None


def comparisons_before(entries: Iterable[Entry], registration: Entry) -> list[Entry]:
    """Return the comparisons of registered slides that were made before their registration."""
    slides = set(registration["slides"])
    return [
        entry
        for entry in entries
        if entry["kind"] == "compared"
        and entry["number"] < registration["number"]
        and not slides.isdisjoint(entry["slides"])
    ]
