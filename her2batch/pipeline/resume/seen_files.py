"""The intake table while files are added to it: which slide each file is, by path, size, time and content.

A file whose path, size and time are known is not read. Other files are read where their size is that of a known slide:
the content decides then. A slide whose own file is gone, or has other content now, follows its content to the new path;
a file with the content of a slide whose file is still there is a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from her2batch.errors import printable_path
from her2batch.slides.discover import IgnoredFile, SlideFiles
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.store.cohort import Row
from her2batch.store.erase import erased_digest
from her2batch.store.pseudonyms import Pseudonymizer

LOST_FOLDER = "the scan folder had no slides at the last ingest"
"""Reason of a slide's entry while its scan folder is empty or not there."""


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
        self._ids = {entry["slide_id"].lower() for entry in slides}
        self._lost = {  # slides without an entry, whose content may come back
            slide_id: _entry(row["path"] or "", row["bytes"], 0, 0, row["sha256"], "archived", slide_id, None)
            for slide_id, row in rows.items()
            if slide_id.lower() not in self._ids
        }
        known = [*self._lost.values(), *slides]
        self._by_digest = {entry["sha256"]: entry for entry in known if entry["sha256"]}
        self._present: set[str] = set()

    def note_present(self, paths: Iterable[Path]) -> None:
        """Note all files that a search of the scan folder has found."""
        self._present = {self._pseudonymizer.path(path) for path in paths}

    def note_ignored(self, file: IgnoredFile) -> None:
        """Give a file that is no slide its entry."""
        path = self._pseudonymizer.path(file.path)
        reason = self._pseudonymizer.reason(file.reason)
        self._displace(path)
        self.entries[path] = _entry(path, file.bytes, file.mtime_ns, 1, None, "ignored", None, reason)

    def note_deferred(self, source: SlideFiles, why: str) -> None:
        """Give a slide that is left to the next run its entry; it keeps its id, if it has one."""
        path = self._pseudonymizer.path(source.path)
        old = self.entries.get(path)
        slide_id = old["slide_id"] if old is not None and _has_own_id(old) else None
        self.entries[path] = _entry(path, *source.stat_key, None, "deferred", slide_id, why)

    def note_slides(self, slides: list[SlideFiles]) -> None:
        """Give every slide its entry.

        It is the old one if the file has not changed, that of a slide that was moved, a new one, or that of a copy.
        """
        self._sources |= {self._pseudonymizer.path(source.path): source for source in slides}
        fresh = [source for source in slides if not self._unchanged(source)]
        changed = {source.path for source in fresh}
        for source in slides:
            entry = self.entries.get(self._pseudonymizer.path(source.path), {})
            if source.path not in changed and entry["outcome"] in ("slide", "archived"):
                entry |= {"outcome": "slide", "reason": None}  # it is there again
        sizes = self._sizes(fresh)
        for path, source in self._sources.items():  # not read yet: hash it, so that its copy is found
            entry = self.entries.get(path, {})
            if entry.get("outcome") == "slide" and entry["sha256"] is None and sizes[source.bytes] > 1:
                with suppress(OSError):  # the error is reported when the slide is processed
                    self.set_digest(path, fingerprint_slide(source.members).sha256)
        digests: dict[str, str | None] = {}
        for source in fresh:
            with suppress(FileNotFoundError):  # removed just now: it is not counted
                digests[self._pseudonymizer.path(source.path)] = self._content(source, sizes[source.bytes] > 1)
        moved = self._follow_moves(digests)
        for source in fresh:
            path = self._pseudonymizer.path(source.path)
            if path in digests and path not in moved:
                self._note_slide(source, path, digests[path])

    def _sizes(self, fresh: Iterable[SlideFiles]) -> Counter[int]:
        """How many files and known slides have each size in bytes."""
        sizes = Counter(source.bytes for source in fresh)
        sizes.update(entry["bytes"] for entry in self.entries.values() if entry["outcome"] in ("slide", "archived"))
        sizes.update(entry["bytes"] for entry in self._lost.values())
        return sizes

    def _content(self, source: SlideFiles, could_be_known: bool) -> str | None:
        """The digest of a slide whose content may be known already; None for others. Raises FileNotFoundError."""
        old = self.entries.get(self._pseudonymizer.path(source.path))
        if old is not None and old["sha256"] and _stat_of(old) == source.stat_key:
            return str(old["sha256"])
        wanted = self._pseudonymizer.slide(source.path.stem)
        has_id = old is not None and _has_own_id(old)
        is_known = could_be_known or has_id or wanted in self._rows or wanted.lower() in self._ids
        return _digest(source) if is_known or source.bytes in self._gone_sizes else None

    def _follow_moves(self, digests: Mapping[str, str | None]) -> set[str]:
        """Give slides whose content has moved the path where it is now; returns these paths.

        digests: path of each new or changed file → its content, or None if it was not read.
        """
        moved: dict[str, Row] = {}
        taken: set[str] = set()
        for path, sha in digests.items():
            owner = self._by_digest.get(sha) if sha is not None else None
            if owner is None or owner["slide_id"] in taken:
                continue
            if owner["path"] == path or self._is_free(owner, digests):
                moved[path] = owner
                taken.add(owner["slide_id"])
        for owner in moved.values():  # all first: two slides may have changed places
            if self.entries.get(owner["path"]) is owner:
                del self.entries[owner["path"]]
            self._lost.pop(owner["slide_id"], None)
        for path, owner in moved.items():
            self._displace(path)
            source = self._sources[path]
            owner |= _entry(path, *source.stat_key, owner["sha256"], "slide", owner["slide_id"], None)
            self.entries[path] = owner
            self._ids.add(owner["slide_id"].lower())
        return set(moved)

    def _is_free(self, owner: Row, digests: Mapping[str, str | None]) -> bool:
        """Whether the file of a slide is gone, has other content now, or lies in another folder without a row."""
        path = owner["path"]
        if path in digests:
            return digests[path] not in (None, owner["sha256"])
        is_finished = owner["slide_id"] in self._rows  # by an ingest of another scan folder, where the file still is
        is_elsewhere = is_finished and path and self._pseudonymizer.key is None and Path(path).exists()
        return path not in self._present and not is_elsewhere

    def _displace(self, path: str) -> None:
        """Keep a finished slide without its path, on which another file lies now."""
        old = self.entries.get(path)
        if old is not None and _has_own_id(old) and old["slide_id"] in self._rows:
            self._lost[old["slide_id"]] = {**old, "path": "", "outcome": "archived"}
            if self._by_digest.get(old["sha256"]) is old:
                self._by_digest[old["sha256"]] = self._lost[old["slide_id"]]

    def _note_slide(self, source: SlideFiles, path: str, sha: str | None) -> None:
        old = self.entries.get(path)
        if sha is not None and (source.bytes, erased_digest(sha)) in self._gone:
            self.erased.add(path)
            self.entries.pop(path, None)
            return
        if old is not None and old["outcome"] == "archived":  # a new slide that has the name of one that has left
            self._displace(path)
            old = None
        entry = self._slide_entry(source, path, old, sha)
        if entry["outcome"] == "duplicate":
            self._displace(path)
        elif old is not None and self._by_digest.get(old["sha256"]) is old:
            del self._by_digest[old["sha256"]]  # the old content is gone: nothing can be a copy of it
        if entry["outcome"] == "slide" and entry["sha256"]:
            self._by_digest[entry["sha256"]] = entry
        self.entries[path] = entry

    def note_absent(self, left_folder: Callable[[str], bool]) -> None:
        """Mark finished slides whose files have left the scan folder as archived, and forget other files that have.

        left_folder: returns whether the file of a path would have been found in the scan folder.
        """
        for path, entry in list(self.entries.items()):
            if path in self._present or not left_folder(path):
                continue
            row = self._rows.get(entry["slide_id"]) if _has_own_id(entry) else None
            if row is None:
                del self.entries[path]
            elif row["status"] == "done":
                entry |= {"outcome": "archived", "reason": None}
        for slide_id, entry in self._lost.items():
            if self._rows[slide_id]["status"] == "done":
                path = entry["path"] if entry["path"] and entry["path"] not in self.entries else f"archived:{slide_id}"
                entry["path"] = path
                self.entries[path] = entry
        self._lost.clear()

    def note_lost_folder(self, left_folder: Callable[[str], bool]) -> int:
        """Note that the scan folder has no slides at all, as when its share is not mounted; returns how many it had."""
        slides = [entry for path, entry in self.entries.items() if entry["outcome"] == "slide" and left_folder(path)]
        for entry in slides:
            entry["reason"] = LOST_FOLDER
        return len(slides)

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
        if entry is None or entry["outcome"] not in ("slide", "duplicate", "archived"):
            return False
        if entry["outcome"] == "duplicate":
            original = self._by_digest.get(entry["sha256"])
            if original is None or self._is_free(original, {}):
                return False  # its original has changed or is gone: now it is a slide of its own, or that slide
        return _stat_of(entry) == source.stat_key

    def _slide_entry(self, source: SlideFiles, path: str, old: Row | None, sha: str | None) -> Row:
        owner = self._by_digest.get(sha) if sha is not None else None
        if owner is not None and owner["path"] != path:
            copy_of = "copy of " + (owner["path"] if self._pseudonymizer.key is None else owner["slide_id"])
            return _entry(path, *source.stat_key, sha, "duplicate", owner["slide_id"], copy_of)
        slide_id = old["slide_id"] if old is not None and _has_own_id(old) else None
        slide_id = slide_id or self._unused_id(source, sha or sha256(path.encode()).hexdigest())
        self._ids.add(slide_id.lower())
        self._lost.pop(slide_id, None)
        return _entry(path, *source.stat_key, sha, "slide", slide_id, None)

    def _unused_id(self, source: SlideFiles, sha: str) -> str:
        """The id by the file's name, with a short content hash if another slide has it.

        Case is ignored, as shares often do.
        """
        wanted = self._pseudonymizer.slide(source.path.stem)
        lost = self._lost.get(wanted)
        is_own = lost is None or lost["path"] in ("", printable_path(source.path))
        if wanted.lower() not in self._ids and is_own:
            return wanted
        taken = self._ids | {slide_id.lower() for slide_id in self._lost}
        return next(name for n in range(8, 65) if (name := f"{wanted}-{sha[:n]}").lower() not in taken)


def _digest(source: SlideFiles) -> str | None:
    """SHA-256 of a slide; None where it cannot be read, which its row will report. Raises FileNotFoundError."""
    try:
        return fingerprint_slide(source.members).sha256
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _stat_of(entry: Row) -> tuple[int, int, int]:
    """The key of an entry that changes when any of its files changes, as `SlideFiles.stat_key`."""
    return entry["bytes"], entry["mtime_ns"], entry["n_files"]


def _has_own_id(entry: Row) -> bool:
    """Whether an entry has a slide id of its own."""
    return entry["slide_id"] is not None and entry["outcome"] != "duplicate"


def _entry(path: str, *values: Any) -> Row:
    names = ("bytes", "mtime_ns", "n_files", "sha256", "outcome", "slide_id", "reason")
    entry = {"path": path, **dict(zip(names, values, strict=True))}
    return {**entry, "reason": printable_path(entry["reason"])} if entry["reason"] else entry
