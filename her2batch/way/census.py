"""What an ingest has to do: every file seen gets its outcome, and slides that are done are left alone.

Resume looks at names, sizes and times of change only. A file is opened, to see what it is, when it is new or changed;
it is read here, to hash it, in two cases: its size equals another's (it could be a copy), or it changed since it was
seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from her2batch.errors import InputError
from her2batch.settings import Plan
from her2batch.slides.files import fingerprint
from her2batch.slides.intake import Ignored, Look, Source, find
from her2batch.tables.memo import SETTLED_NS
from her2batch.tables.privacy import Names
from her2batch.tables.store import Cohort, Row

PASSING = frozenset({"unstable", "gone", "store-write"})
"""Failures that may be over by the next run: tried again without being asked."""


@dataclass(frozen=True)
class Todo:
    """One slide to process."""

    slide_id: str
    source: Source
    sha256: str | None
    patient_id: str | None = None
    stain: str | None = None


@dataclass
class Census:
    """What lies in the scans folder, against what the cohort has."""

    todo: list[Todo] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    duplicates: int = 0
    ignored: int = 0
    entries: dict[str, Row] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """Slides and other files of this scan."""
        return len(self.todo) + len(self.current) + self.duplicates + self.ignored

    def keep(self, cohort: Cohort) -> None:
        """Write down what was seen, so that the next scan opens what is new and nothing else."""
        cohort.write_seen(list(self.entries.values()))
        settled = time.time_ns() - SETTLED_NS
        looks = [{"path": path, **look._asdict()} for path, look in self.looks.items() if look.mtime_ns < settled]
        cohort.write_looks(looks)


def take(
    scans: Path, cohort: Cohort, plan: Plan, names: Names, labels: Mapping[str, Row], retry_failed: bool = False
) -> Census:
    """Compare a scans folder with a cohort. Raises InputError when the folder isn't there."""
    if not scans.exists():
        raise InputError("there is no such folder", scans, "give the folder that the scanner writes to")
    known = _looks(cohort)
    slides, ignored, looks = find(scans.absolute(), cohort.root.absolute(), known, names.path)
    rows, damaged = cohort.rows(), cohort.damaged()
    ledger = Ledger(cohort.seen(), rows, names)
    for file in ignored:
        ledger.note_ignored(file)
    ledger.note_slides(slides)
    census = Census(entries=ledger.entries, looks=known | looks, ignored=len(ignored))
    for source in slides:
        entry = ledger.entries[names.path(source.path)]
        row = rows.get(entry["slide_id"])
        if entry["outcome"] == "duplicate":
            census.duplicates += 1
        elif row and row["slide_id"] not in damaged and _is_current(row, entry, plan, cohort, retry_failed):
            census.current.append(entry["slide_id"])
        else:
            label = labels.get(entry["slide_id"], {})
            census.todo.append(
                Todo(entry["slide_id"], source, entry["sha256"], label.get("patient_id"), label.get("stain"))
            )
    return census


def _looks(cohort: Cohort) -> dict[str, Look]:
    """What earlier scans found in the files they opened, by the names of the intake table."""
    return {
        row["path"]: Look(row["rules"], row["bytes"], row["mtime_ns"], row["kind"], tuple(row["belongs"]))
        for row in cohort.looks()
    }


def _is_current(row: Row, entry: Row, plan: Plan, cohort: Cohort, retry_failed: bool) -> bool:
    """Whether a slide's committed result still stands, for this file and this plan."""
    if entry["sha256"] != row["sha256"] or row["plan_id"] != plan.for_slide(row["mpp_source"]).id:
        return False
    if row["status"] == "failed":
        return not retry_failed and row["error_code"] not in PASSING
    return cohort.intact(row)


class Ledger:
    """The intake table while files are added to it: one entry a path, an id and a digest belong to one slide."""

    def __init__(self, entries: list[Row], rows: Mapping[str, Row], names: Names) -> None:
        self.entries = {entry["path"]: entry for entry in entries}
        self._rows, self._names = rows, names
        slides = [entry for entry in entries if entry["outcome"] == "slide"]
        for entry in slides:  # a run that was killed committed rows without writing down their digests
            row = rows.get(entry["slide_id"])
            if entry["sha256"] is None and row is not None and row["bytes"] == entry["bytes"]:
                entry["sha256"] = row["sha256"]
        self._by_digest = {entry["sha256"]: entry for entry in slides if entry["sha256"]}
        self._ids = {entry["slide_id"].lower() for entry in slides}

    def note_ignored(self, file: Ignored) -> None:
        """A file that is no slide."""
        path = self._names.path(file.path)
        reason = file.reason
        self.entries[path] = _entry(path, file.bytes, file.mtime_ns, 1, None, "ignored", None, reason)

    def note_slides(self, slides: list[Source]) -> None:
        """Give every slide its entry: the old one where the file is as it was, a new id, or what it is a copy of."""
        fresh = [source for source in slides if not self._unchanged(source)]
        sizes = Counter(source.bytes for source in fresh)
        sizes.update(entry["bytes"] for entry in self.entries.values() if entry["outcome"] == "slide")
        for source in slides:  # seen by a run that was stopped before it read them: a copy must find its original
            entry = self.entries.get(self._names.path(source.path))
            if entry and entry["outcome"] == "slide" and entry["sha256"] is None and sizes[source.bytes] > 1:
                entry["sha256"] = fingerprint(source.members).sha256
                self._by_digest[entry["sha256"]] = entry
        for source in fresh:
            path = self._names.path(source.path)
            old = self.entries.pop(path, None)
            self.entries[path] = self._settle(source, path, old, could_be_copy=sizes[source.bytes] > 1)

    def _unchanged(self, source: Source) -> bool:
        entry = self.entries.get(self._names.path(source.path))
        if entry is None or entry["outcome"] == "ignored":
            return False
        return (entry["bytes"], entry["mtime_ns"], entry["n_files"]) == source.stat_key

    def _settle(self, source: Source, path: str, old: Row | None, could_be_copy: bool) -> Row:
        slide_id = old["slide_id"] if old is not None and old["outcome"] == "slide" else None
        wanted = slide_id or self._names.slide(source.path.stem)
        sha = None
        if could_be_copy or slide_id or wanted in self._rows or wanted.lower() in self._ids:
            sha = fingerprint(source.members).sha256
            owner = self._by_digest.get(sha)
            if owner is not None and owner["path"] != path:
                copy_of = "copy of " + (owner["path"] if self._names.key is None else owner["slide_id"])
                return _entry(path, *source.stat_key, sha, "duplicate", owner["slide_id"], copy_of)
        slide_id = slide_id or self._free(wanted, sha)
        entry = _entry(path, *source.stat_key, sha, "slide", slide_id, None)
        self._ids.add(slide_id.lower())
        if sha:
            self._by_digest[sha] = entry
        return entry

    def _free(self, wanted: str, sha: str | None) -> str:
        """The stem's id; when another slide has it (case aside: shares often ignore it), with a short content hash."""
        if wanted.lower() not in self._ids or sha is None:
            return wanted
        return next(one for n in range(8, 65) if (one := f"{wanted}-{sha[:n]}").lower() not in self._ids)


def _entry(path: str, *values: Any) -> Row:
    names = ("bytes", "mtime_ns", "n_files", "sha256", "outcome", "slide_id", "reason")
    return {"path": path, **dict(zip(names, values, strict=True))}
