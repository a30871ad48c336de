"""The intake table while files are added to it: which slide each file is, by path, size, time and content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

from her2batch.errors import printable_path
from her2batch.slides.discover import IgnoredFile, SlideFiles
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.store.cohort import Row
from her2batch.store.erase import erased_digest
from her2batch.store.pseudonyms import Pseudonymizer


class SeenFiles:
    """The intake table while files are added to it: one entry for each path; an id and a digest belong to one slide."""

    def __init__(
        self,
        entries: list[Row],
        rows: Mapping[str, Row],
        pseudonymizer: Pseudonymizer,
        gone: Collection[tuple[int, str]] = (),
    ) -> None:
        """gone: (bytes, digest) of slides that were removed from the cohort and must not come back."""
        self.erased: set[str] = set()
        self._gone, self._gone_sizes = set(gone), {size for size, _ in gone}
        self.entries = {entry["path"]: entry for entry in entries}
        self._rows, self._pseudonymizer = rows, pseudonymizer
        self._sources: dict[str, SlideFiles] = {}  # slides of this run, by path
        slides = [entry for entry in entries if _has_own_id(entry)]
        for entry in slides:  # a killed run has committed rows and not written their digests here
            row = rows.get(entry["slide_id"])
            if entry["sha256"] is None and row is not None and row["bytes"] == entry["bytes"]:
                entry["sha256"] = row["sha256"]
        self._by_digest = {entry["sha256"]: entry for entry in slides if entry["sha256"]}
        self._ids = {entry["slide_id"].lower() for entry in slides}

    def note_ignored(self, file: IgnoredFile) -> None:
        """Give a file that is no slide its entry."""
        path = self._pseudonymizer.path(file.path)
        reason = self._pseudonymizer.reason(file.reason)
        self.entries[path] = _entry(path, file.bytes, file.mtime_ns, 1, None, "ignored", None, reason)

    def note_deferred(self, source: SlideFiles, why: str) -> None:
        """Give a slide that is left to the next run its entry; it keeps its id, if it has one."""
        path = self._pseudonymizer.path(source.path)
        old = self.entries.get(path)
        slide_id = old["slide_id"] if old is not None and _has_own_id(old) else None
        self.entries[path] = _entry(path, *source.stat_key, None, "deferred", slide_id, why)

    def note_slides(self, slides: list[SlideFiles]) -> None:
        """Give every slide its entry: the old one if the file has not changed, one with a new id, or that of a copy."""
        self._sources |= {self._pseudonymizer.path(source.path): source for source in slides}
        fresh = [source for source in slides if not self._unchanged(source)]
        sizes = Counter(source.bytes for source in fresh)
        sizes.update(entry["bytes"] for entry in self.entries.values() if entry["outcome"] == "slide")
        for path, source in self._sources.items():  # not read yet: hash it, so that its copy is found
            entry = self.entries.get(path)
            if entry and entry["outcome"] == "slide" and entry["sha256"] is None and sizes[source.bytes] > 1:
                with suppress(OSError):  # the error is reported when the slide is processed
                    self.set_digest(path, fingerprint_slide(source.members).sha256)
        for source in fresh:
            with suppress(FileNotFoundError):  # removed just now: it is not counted
                self._note_slide(source, could_be_copy=sizes[source.bytes] > 1)

    def _note_slide(self, source: SlideFiles, could_be_copy: bool) -> None:
        path = self._pseudonymizer.path(source.path)
        old = self.entries.get(path)
        if source.bytes in self._gone_sizes:
            could_be_copy = True
            if (sha := _digest(source)) is not None and (source.bytes, erased_digest(sha)) in self._gone:
                self.erased.add(path)
                self.entries.pop(path, None)
                return
        entry = self._slide_entry(source, path, old, could_be_copy)
        if old is not None and self._by_digest.get(old["sha256"]) is old:
            del self._by_digest[old["sha256"]]  # the old content is gone: nothing can be a copy of it
        if entry["outcome"] == "slide" and entry["sha256"]:
            self._by_digest[entry["sha256"]] = entry
        self.entries[path] = entry

    def set_digest(self, path: str, sha256: str | None) -> None:
        """Note the digest of a slide's files."""
        entry = self.entries[path]
        entry["sha256"] = sha256
        if sha256 is not None:
            self._by_digest[sha256] = entry

    def is_settled(self, source: SlideFiles) -> bool:
        """Whether a file has not changed since its slide's row was written, or since it was found to be a copy."""
        entry = self.entries.get(self._pseudonymizer.path(source.path))
        return entry is not None and self._unchanged(source) and entry["slide_id"] in self._rows

    def _unchanged(self, source: SlideFiles) -> bool:
        entry = self.entries.get(self._pseudonymizer.path(source.path))
        if entry is None or entry["outcome"] not in ("slide", "duplicate"):
            return False
        if entry["outcome"] == "duplicate" and entry["sha256"] not in self._by_digest:
            return False  # its original has changed: now it is a slide of its own
        return (entry["bytes"], entry["mtime_ns"], entry["n_files"]) == source.stat_key

    def _slide_entry(self, source: SlideFiles, path: str, old: Row | None, could_be_copy: bool) -> Row:
        slide_id = old["slide_id"] if old is not None and _has_own_id(old) else None
        wanted = slide_id or self._pseudonymizer.slide(source.path.stem)
        sha = None
        if could_be_copy or slide_id or wanted in self._rows or wanted.lower() in self._ids:
            sha = _digest(source)
            owner = self._by_digest.get(sha) if sha is not None else None
            if owner is not None and owner["path"] != path:
                copy_of = "copy of " + (owner["path"] if self._pseudonymizer.key is None else owner["slide_id"])
                return _entry(path, *source.stat_key, sha, "duplicate", owner["slide_id"], copy_of)
        slide_id = slide_id or self._unused_id(wanted, sha or sha256(path.encode()).hexdigest())
        entry = _entry(path, *source.stat_key, sha, "slide", slide_id, None)
        self._ids.add(slide_id.lower())
        return entry

    def _unused_id(self, wanted: str, sha: str) -> str:
        """The wanted id, with a short content hash if another slide has it (case aside, which shares often ignore)."""
        if wanted.lower() not in self._ids:
            return wanted
        return next(name for n in range(8, 65) if (name := f"{wanted}-{sha[:n]}").lower() not in self._ids)


def _digest(source: SlideFiles) -> str | None:
    """SHA-256 of a slide; None where it cannot be read, which its row will report. Raises FileNotFoundError."""
    try:
        return fingerprint_slide(source.members).sha256
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _has_own_id(entry: Row) -> bool:
    """Whether an entry has a slide id of its own."""
    return entry["slide_id"] is not None and entry["outcome"] != "duplicate"


def _entry(path: str, *values: Any) -> Row:
    names = ("bytes", "mtime_ns", "n_files", "sha256", "outcome", "slide_id", "reason")
    entry = {"path": path, **dict(zip(names, values, strict=True))}
    return {**entry, "reason": printable_path(entry["reason"])} if entry["reason"] else entry
