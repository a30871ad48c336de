"""What an ingest has to do: every file seen gets its outcome, and slides that are done are left alone.

Resume looks at names, sizes and times of change only. A file is opened, to see what it is, when it is new or changed;
it is read here, to hash it, in two cases: its size equals another's (it could be a copy), or it changed since it was
seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from her2batch.errors import InputError, StoreError, printable_path
from her2batch.settings import Plan
from her2batch.slides.discover import DiscoveredSlides, FileProbe, IgnoredFile, SlideFiles, discover_slides
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.store.cohort import Cohort, Row
from her2batch.store.erase import erased_digest, erased_digests
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.row_cache import SETTLED_NS

TRANSIENT_ERRORS = frozenset({"unstable", "gone", "store-write"})
"""Failures that may be over by the next run: tried again without being asked."""


@dataclass(frozen=True)
class SlideJob:
    """One slide to process."""

    slide_id: str
    source: SlideFiles
    sha256: str | None
    patient_id: str | None = None
    stain: str | None = None


@dataclass
class PendingSlides:
    """Slides by their ids, and how many bytes they are in all: known at any moment, however many there are."""

    slides: dict[str, SlideJob] = field(default_factory=dict)
    bytes: int = 0

    def put(self, todo: SlideJob) -> None:
        """Add a slide, or take it for the one it was."""
        self.drop(todo.slide_id)
        self.slides[todo.slide_id] = todo
        self.bytes += todo.source.bytes

    def drop(self, slide_id: str) -> None:
        """Take a slide away, if it is there."""
        if (old := self.slides.pop(slide_id, None)) is not None:
            self.bytes -= old.source.bytes


@dataclass
class Inventory:
    """What lies in the scans folder, against what the cohort has."""

    todo: list[SlideJob] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)  # path → todo · current · duplicate · ignored · deferred
    entries: dict[str, Row] = field(default_factory=dict)
    looks: dict[str, FileProbe] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)  # paths of slides that must not come back: kept nowhere
    names: Pseudonymizer = field(default_factory=Pseudonymizer)

    @property
    def seen(self) -> int:
        """Slides and other files of this scan."""
        return len(self.outcomes)

    @property
    def current(self) -> list[str]:
        """Slides whose committed result stands."""
        return [self.entries[path]["slide_id"] for path, what in self.outcomes.items() if what == "current"]

    @property
    def duplicates(self) -> int:
        """Copies of other slides."""
        return self._count("duplicate")

    @property
    def ignored(self) -> int:
        """Files that are no slides."""
        return self._count("ignored")

    @property
    def deferred(self) -> int:
        """Slides left to the next run."""
        return self._count("deferred")

    def _count(self, outcome: str) -> int:
        return sum(one == outcome for one in self.outcomes.values())

    def keep(self, cohort: Cohort) -> None:
        """Write down what was seen, so that the next scan opens what is new and nothing else."""
        cohort.write_intake(self.names.timed(self.entries.values()))
        settled = time.time_ns() - SETTLED_NS
        known = {path: look for path, look in self.looks.items() if path not in self.forgotten}
        looks = [{"path": path, **look._asdict()} for path, look in known.items() if look.mtime_ns < settled]
        cohort.write_probes(self.names.timed(looks))


def take_inventory(
    scans: Path, cohort: Cohort, plan: Plan, names: Pseudonymizer, labels: Mapping[str, Row], retry_failed: bool = False
) -> Inventory:
    """Compare a scans folder with a cohort. Raises InputError when the folder isn't there."""
    register = InventoryUpdater(scans, cohort, plan, names, labels, retry_failed)
    register.admit(register.look())
    return register.census


class InventoryUpdater:
    """A census that grows: everything at once, or slide by slide as a scanner finishes them."""

    def __init__(
        self,
        scans: Path,
        cohort: Cohort,
        plan: Plan,
        names: Pseudonymizer,
        labels: Mapping[str, Row],
        retry_failed: bool = False,
    ) -> None:
        """Raises InputError when the folder isn't there."""
        if not scans.exists():
            raise InputError("there is no such folder", scans, "give the folder that the scanner writes to")
        scans = scans.resolve() if ".." in scans.parts else scans.absolute()  # else the same file has two names
        self.cohort, self._scans, self._plan, self._names = cohort, scans, plan, names
        self._labels, self._retry_failed = labels, retry_failed
        self.rows, self._damaged, self._sizes = cohort.rows(), cohort.damaged_slides(), cohort.object_sizes()
        self._ledger = SeenFiles(names.timed(_seen(cohort)), self.rows, names, erased_digests(cohort))
        self.known, self.left = (
            PendingSlides(),
            PendingSlides(),
        )  # all that were to do; those of them that have not ended
        self.census = Inventory(
            entries=self._ledger.entries, looks=_looks(cohort, names), forgotten=self._ledger.forgotten, names=names
        )

    def look(self) -> DiscoveredSlides:
        """What lies in the folder now. A file that is as an earlier search found it is not opened."""
        found = discover_slides(self._scans, self.cohort.root, self.census.looks, self._names.path)
        self.census.looks |= found.probes
        return found

    def admit(self, found: DiscoveredSlides) -> list[SlideJob]:
        """Give every file its outcome; returns what is to do."""
        for file in found.ignored:
            self._ledger.note_ignored(file)
            self.census.outcomes[self._names.path(file.path)] = "ignored"
        self._ledger.note_slides(found.slides)
        fresh = [todo for source in found.slides if (todo := self._settle(source)) is not None]
        self.census.todo += fresh
        for todo in fresh:
            self.known.put(todo)
            self.left.put(todo)
        return fresh

    def _settle(self, source: SlideFiles) -> SlideJob | None:
        path = self._names.path(source.path)
        entry = self._ledger.entries.get(path)
        if entry is None:
            if path in self._ledger.forgotten:
                self.census.outcomes[path] = "ignored"
            return None
        row = self.rows.get(entry["slide_id"])
        if entry["outcome"] == "duplicate":
            self.census.outcomes[path] = "duplicate"
        elif row and row["slide_id"] not in self._damaged and self._is_current(row, entry):
            self.census.outcomes[path] = "current"
        else:
            self.census.outcomes[path] = "todo"
            label = self._labels.get(entry["slide_id"], {})
            return SlideJob(entry["slide_id"], source, entry["sha256"], label.get("patient_id"), label.get("stain"))
        return None

    def _is_current(self, row: Row, entry: Row) -> bool:
        return _is_current(row, entry, self._plan, self._retry_failed) and (
            row["status"] == "failed" or self.cohort.files_present(row, self._sizes)
        )

    def knows(self, source: SlideFiles) -> bool:
        """Whether a file is as it was when its slide was done, or was found to be a copy."""
        return self._ledger.settled(source)

    def finished(self, source: SlideFiles, row: Row) -> None:
        """A slide's row is committed: what its content is, a copy that comes later must find."""
        self.rows[row["slide_id"]] = row
        waiting = self.left.slides.get(row["slide_id"])
        if waiting is not None and waiting.source.stat_key == source.stat_key:  # else its file has changed meanwhile
            self.left.drop(row["slide_id"])
        self._ledger.learn(self._names.path(source.path), row["sha256"])

    def defer(self, source: SlideFiles, why: str) -> None:
        """A slide is left to the next run."""
        path = self._names.path(source.path)
        self._ledger.note_deferred(source, self._names.reason(why))
        self.census.outcomes[path] = "deferred"


def _seen(cohort: Cohort) -> list[Row]:
    """The intake table; a damaged one is made anew, from the files and the rows."""
    try:
        return cohort.read_intake()
    except StoreError:
        return []


def _looks(cohort: Cohort, names: Pseudonymizer) -> dict[str, FileProbe]:
    """What earlier scans found in the files they opened, by the names of the intake table."""
    return {
        row["path"]: FileProbe(row["rules"], row["bytes"], row["mtime_ns"], row["kind"], tuple(row["belongs"]))
        for row in names.timed(cohort.read_probes())
    }


def _is_current(row: Row, entry: Row, plan: Plan, retry_failed: bool) -> bool:
    """Whether a slide's row still stands, for this file and this plan."""
    if entry["sha256"] != row["sha256"] or row["plan_id"] != plan.for_slide(row["mpp_source"]).id:
        return False
    if row["status"] == "failed":
        return not retry_failed and row["error_code"] not in TRANSIENT_ERRORS
    return True


class SeenFiles:
    """The intake table while files are added to it: one entry a path, an id and a digest belong to one slide."""

    def __init__(
        self,
        entries: list[Row],
        rows: Mapping[str, Row],
        names: Pseudonymizer,
        gone: Collection[tuple[int, str]] = (),
    ) -> None:
        """gone: (bytes, digest) of slides that must not come back."""
        self.forgotten: set[str] = set()
        self._gone, self._gone_sizes = set(gone), {size for size, _ in gone}
        self.entries = {entry["path"]: entry for entry in entries}
        self._rows, self._names = rows, names
        self._sources: dict[str, SlideFiles] = {}  # of this run, by path
        slides = [entry for entry in entries if _named(entry)]
        for entry in slides:  # a run that was killed committed rows without writing down their digests
            row = rows.get(entry["slide_id"])
            if entry["sha256"] is None and row is not None and row["bytes"] == entry["bytes"]:
                entry["sha256"] = row["sha256"]
        self._by_digest = {entry["sha256"]: entry for entry in slides if entry["sha256"]}
        self._ids = {entry["slide_id"].lower() for entry in slides}

    def note_ignored(self, file: IgnoredFile) -> None:
        """A file that is no slide."""
        path = self._names.path(file.path)
        reason = self._names.reason(file.reason)
        self.entries[path] = _entry(path, file.bytes, file.mtime_ns, 1, None, "ignored", None, reason)

    def note_deferred(self, source: SlideFiles, why: str) -> None:
        """A slide that is left to the next run; it keeps its id, if it has one."""
        path = self._names.path(source.path)
        old = self.entries.get(path)
        slide_id = old["slide_id"] if old is not None and _named(old) else None
        self.entries[path] = _entry(path, *source.stat_key, None, "deferred", slide_id, why)

    def note_slides(self, slides: list[SlideFiles]) -> None:
        """Give every slide its entry: the old one where the file is as it was, a new id, or what it is a copy of."""
        self._sources |= {self._names.path(source.path): source for source in slides}
        fresh = [source for source in slides if not self._unchanged(source)]
        sizes = Counter(source.bytes for source in fresh)
        sizes.update(entry["bytes"] for entry in self.entries.values() if entry["outcome"] == "slide")
        for path, source in self._sources.items():  # seen, and not read yet: a copy must find its original
            entry = self.entries.get(path)
            if entry and entry["outcome"] == "slide" and entry["sha256"] is None and sizes[source.bytes] > 1:
                with suppress(OSError):  # whoever reads it as a slide says what is wrong with it
                    self.learn(path, fingerprint_slide(source.members).sha256)
        for source in fresh:
            with suppress(FileNotFoundError):  # taken away this moment: nobody has seen it
                self._note_slide(source, could_be_copy=sizes[source.bytes] > 1)

    def _note_slide(self, source: SlideFiles, could_be_copy: bool) -> None:
        path = self._names.path(source.path)
        old = self.entries.get(path)
        if source.bytes in self._gone_sizes:
            could_be_copy = True
            if (sha := _sha256(source)) is not None and (source.bytes, erased_digest(sha)) in self._gone:
                self.forgotten.add(path)
                self.entries.pop(path, None)
                return
        entry = self._settle(source, path, old, could_be_copy)
        if old is not None and self._by_digest.get(old["sha256"]) is old:
            del self._by_digest[old["sha256"]]  # its content is gone: nothing is a copy of it any more
        if entry["outcome"] == "slide" and entry["sha256"]:
            self._by_digest[entry["sha256"]] = entry
        self.entries[path] = entry

    def learn(self, path: str, sha256: str | None) -> None:
        """What a slide's content is."""
        entry = self.entries[path]
        entry["sha256"] = sha256
        if sha256 is not None:
            self._by_digest[sha256] = entry

    def settled(self, source: SlideFiles) -> bool:
        """Whether a file has not changed since its slide's row was written, or since it was found to be a copy."""
        entry = self.entries.get(self._names.path(source.path))
        return entry is not None and self._unchanged(source) and entry["slide_id"] in self._rows

    def _unchanged(self, source: SlideFiles) -> bool:
        entry = self.entries.get(self._names.path(source.path))
        if entry is None or entry["outcome"] not in ("slide", "duplicate"):
            return False
        if entry["outcome"] == "duplicate" and entry["sha256"] not in self._by_digest:
            return False  # what it was a copy of has changed: now it is a slide of its own
        return (entry["bytes"], entry["mtime_ns"], entry["n_files"]) == source.stat_key

    def _settle(self, source: SlideFiles, path: str, old: Row | None, could_be_copy: bool) -> Row:
        slide_id = old["slide_id"] if old is not None and _named(old) else None
        wanted = slide_id or self._names.slide(source.path.stem)
        sha = None
        if could_be_copy or slide_id or wanted in self._rows or wanted.lower() in self._ids:
            sha = _sha256(source)
            owner = self._by_digest.get(sha) if sha is not None else None
            if owner is not None and owner["path"] != path:
                copy_of = "copy of " + (owner["path"] if self._names.key is None else owner["slide_id"])
                return _entry(path, *source.stat_key, sha, "duplicate", owner["slide_id"], copy_of)
        slide_id = slide_id or self._free(wanted, sha or sha256(path.encode()).hexdigest())
        entry = _entry(path, *source.stat_key, sha, "slide", slide_id, None)
        self._ids.add(slide_id.lower())
        return entry

    def _free(self, wanted: str, sha: str) -> str:
        """The stem's id; when another slide has it (case aside: shares often ignore it), with a short content hash."""
        if wanted.lower() not in self._ids:
            return wanted
        return next(one for n in range(8, 65) if (one := f"{wanted}-{sha[:n]}").lower() not in self._ids)


def _sha256(source: SlideFiles) -> str | None:
    """A slide's digest; None where it can't be read, as its row will say. Raises FileNotFoundError."""
    try:
        return fingerprint_slide(source.members).sha256
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _named(entry: Row) -> bool:
    """Whether an entry has a slide id of its own."""
    return entry["slide_id"] is not None and entry["outcome"] != "duplicate"


def _entry(path: str, *values: Any) -> Row:
    names = ("bytes", "mtime_ns", "n_files", "sha256", "outcome", "slide_id", "reason")
    entry = {"path": path, **dict(zip(names, values, strict=True))}
    return {**entry, "reason": printable_path(entry["reason"])} if entry["reason"] else entry
