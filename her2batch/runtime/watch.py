"""Watches a scan folder while the scanner writes to it: a slide is processed once its files are complete.

Files are complete when their size, time of change and inode are the same in two checks at least `settle` seconds apart,
no partial copy lies beside them, and the slide opens, its tile table valid to the last byte. A slide that does not open
is processed all the same when it has not changed for GIVE_UP times as long, and the ingest reports what is wrong with
it; so is a slide beside a partial copy that has not grown for as long.
Times are of this machine's monotonic clock. The files' own times are compared with each other only, because the clocks
of network shares may be wrong.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import watchfiles

from her2batch.pipeline.inventory import InventoryUpdater, SlideJob
from her2batch.pipeline.queue import SlideQueue
from her2batch.runtime.sandbox import SlideSandbox
from her2batch.settings import RunWindow
from her2batch.slides.discover import PARTIAL_SUFFIXES, DiscoveredSlides, SlideFiles

GIVE_UP = 5
"""Settle times after which a file that does not open is processed all the same."""

SEARCHES_PER_SETTLE = 3
"""Searches of the folder in a settle time."""

SHORTEST_S, LONGEST_S = 0.2, 20.0
"""Least and most seconds between two searches."""

LISTEN_S = 2.0
"""Longest time that the listening thread may take to end."""

FileKey = tuple[tuple[int, int, int], ...]
"""Size, time of change in ns, and inode of every file of a slide."""


@dataclass
class _FileState:
    """What was found of a slide's files.  since: when their key was first seen.  tried: when they were last opened."""

    key: FileKey
    since: float
    reason: str = ""
    opens: bool = False
    tried: float = -1.0


class FileStability:
    """Decides which slides are complete, and gives the reason for those that are not."""

    def __init__(self, settle: float, open_failure: Callable[[Path], str | None]) -> None:
        """settle: seconds.  open_failure: returns why a slide does not open, or None."""
        self._settle, self._open_failure = settle, open_failure
        self._states: dict[Path, _FileState] = {}
        self._partials: dict[Path, _FileState] = {}
        self._unsettled = f"not at rest for {settle:g} s yet"

    def is_complete(self, source: SlideFiles, at: float, names: Iterable[str]) -> bool:
        """Check a slide.  at: time of the monotonic clock.  names: of all files in its folder."""
        try:
            key = file_key(source)
        except FileNotFoundError:
            self._states.pop(source.path, None)
            return False
        state = self._states.get(source.path)
        if state is None or state.key != key:
            self._states[source.path] = _FileState(key, at, self._unsettled)
            return False
        if at - state.since < self._settle:
            return False
        partial = find_partial_copy(source.path.name, names)
        if partial and not self._abandoned(source.path.with_name(partial), at):
            state.reason = f"a partial copy lies beside it: {partial}"
            return False
        if not state.opens and at - state.tried >= self._settle:
            failure = self._open_failure(source.path)
            state.tried, state.opens, state.reason = at, failure is None, f"does not open yet: {failure}"
        return state.opens or at - state.since >= GIVE_UP * self._settle

    def _abandoned(self, partial: Path, at: float) -> bool:
        """Whether a partial copy has not grown for so long that the program that copied it must have ended."""
        try:
            facts = partial.stat()
        except FileNotFoundError:
            return False
        key = ((facts.st_size, facts.st_mtime_ns, facts.st_ino),)
        state = self._partials.setdefault(partial, _FileState(key, at))
        if state.key != key:
            self._partials[partial] = _FileState(key, at)
            return False
        return at - state.since >= GIVE_UP * self._settle

    def reason(self, source: SlideFiles) -> str:
        """Why a slide is not complete."""
        state = self._states.get(source.path)
        return state.reason if state is not None else self._unsettled

    def forget(self, source: SlideFiles) -> None:
        """Drop the state of a slide that was handed over; if it changes, it is checked anew."""
        self._states.pop(source.path, None)


def file_key(source: SlideFiles) -> FileKey:
    """What must not change between two checks. Raises FileNotFoundError when one of the files is gone."""
    facts = (path.stat() for path in source.members)
    return tuple((file.st_size, file.st_mtime_ns, file.st_ino) for file in facts)


def find_partial_copy(name: str, names: Iterable[str]) -> str | None:
    """A partial copy of a slide among the names in its folder: a.svs.part, a.part, ~a.svs, or rsync's .a.svs.Xy12Zq."""
    stem = name.rsplit(".", 1)[0]
    for other in names:
        if other == name:
            continue
        ending = other.lower().endswith(PARTIAL_SUFFIXES) and other.lstrip("~.").startswith((name, f"{stem}."))
        if ending or other.startswith((f".{name}.", f"~{name}")):
            return other
    return None


class FolderWatch:
    """Source of slides that searches the scan folder for as long as the run's window is open."""

    def __init__(
        self,
        updater: InventoryUpdater,
        queue: SlideQueue,
        scans: Path,
        window: RunWindow,
        reader: str,
        stopped: threading.Event,
    ) -> None:
        """reader: that opens slides for trial.  stopped: set when the run is to end."""
        self._updater, self._queue, self._scans, self._linger = updater, queue, scans, window.linger
        self._sandbox = SlideSandbox(reader, stopped=stopped)
        self._stability = FileStability(window.settle, self._sandbox.open_failure)
        self._every = min(LONGEST_S, max(SHORTEST_S, window.settle / SEARCHES_PER_SETTLE))
        self._searched_at = -self._every
        self._handed_over: dict[Path, tuple[int, int, int]] = {}
        self._incomplete: list[SlideFiles] = []
        self._changed, self._ended = threading.Event(), threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> FolderWatch:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sandbox.close()
        self._listener.join(LISTEN_S)

    # -- as a source of jobs -------------------------------------------------------------------------------------------

    def next_job(self) -> SlideJob | None:
        """A complete slide, urgent ones first."""
        self.refresh()
        return self._queue.next_job()

    def is_exhausted(self) -> bool:
        """Whether the window has ended; without `linger` also whether all slides of the folder were handed over."""
        if self._queue.is_closed():
            return True
        if self._linger:
            return False
        self.refresh()
        return not self._queue.waiting and not self._incomplete

    def refresh(self) -> None:
        """Search the folder if it is time, or if something has changed there."""
        at = time.monotonic()
        changed = self._changed.is_set() and at - self._searched_at > SHORTEST_S
        if (at - self._searched_at < self._every and not changed) or self._queue.is_closed():
            return
        self._changed.clear()
        found = self._updater.discover()
        self._searched_at = at = time.monotonic()
        new = [source for source in found.slides if not self._is_handed_over(source)]
        names: dict[Path, list[str]] = {}
        ready, self._incomplete = [], []
        for source in new:
            beside = _names_in(source.path.parent, names)
            if self._updater.is_settled(source) or self._stability.is_complete(source, at, beside):
                ready.append(source)
            else:
                self._incomplete.append(source)
        for source in ready:
            self._handed_over[source.path] = source.stat_key
            self._stability.forget(source)
        if ready:
            self._queue.put(self._updater.admit(DiscoveredSlides(ready, [], {})))

    @property
    def waiting(self) -> list[SlideJob]:
        """Complete slides that have not been begun."""
        return self._queue.waiting

    def close(self) -> None:
        """Search a last time, and leave the slides that are not complete to the next run."""
        found = self._updater.discover()
        self._updater.admit(DiscoveredSlides([], found.ignored, {}))
        for source in found.slides:
            if not self._is_handed_over(source):
                self._updater.defer(source, self._stability.reason(source))

    # -- searching -----------------------------------------------------------------------------------------------

    def _is_handed_over(self, source: SlideFiles) -> bool:
        return self._handed_over.get(source.path) == source.stat_key

    def _listen(self) -> None:
        """Note changes that the kernel reports. A network share reports none: there the regular searches find them."""
        with contextlib.suppress(OSError, RuntimeError):
            for _ in watchfiles.watch(self._scans, stop_event=self._ended, raise_interrupt=False, rust_timeout=200):
                self._changed.set()


def _names_in(folder: Path, known: dict[Path, list[str]]) -> list[str]:
    if folder not in known:
        known[folder] = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return known[folder]
