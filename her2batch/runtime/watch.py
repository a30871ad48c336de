"""A scans folder while the scanner writes to it: a slide is taken up when its file is finished, and not before.

A path is a candidate when size, time of change and inode of all its files are the same in two looks at least `settle`
seconds apart, no partial copy lies beside it, and it opens, its tile table valid to the last byte. What does not open
is handed over all the same when it has not changed for GIVE_UP times as long: the ingest says what is wrong with it;
and so is a slide beside a partial copy that has not grown for as long.
The time is this machine's monotonic clock; a file's own times are compared with each other only, for the clocks of
shares are wrong.
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
"""Settle times after which a file that does not open is handed over."""

LOOKS = 3
"""Looks at the folder in a settle time."""

SHORTEST_S, LONGEST_S = 0.2, 20.0
"""Between two looks."""

LISTEN_S = 2.0
"""How long the thread that listens may take to end."""

Key = tuple[tuple[int, int, int], ...]
"""Size, time of change in ns and inode of every file of a slide."""


@dataclass
class _Sight:
    key: Key
    since: float
    why: str = ""
    opens: bool = False
    tried: float = -1.0


class FileStability:
    """Which slides are finished. `why` of one that isn't: in words."""

    def __init__(self, settle: float, fails: Callable[[Path], str | None]) -> None:
        """settle: seconds.  fails: why a slide does not open, None when it does."""
        self._settle, self._fails = settle, fails
        self._sights: dict[Path, _Sight] = {}
        self._partials: dict[Path, _Sight] = {}
        self._restless = f"not at rest for {settle:g} s yet"

    def finished(self, source: SlideFiles, at: float, names: Iterable[str]) -> bool:
        """Look at a slide at a moment of the monotonic clock. names: all that lies in its folder."""
        try:
            key = key_of(source)
        except FileNotFoundError:
            self._sights.pop(source.path, None)
            return False
        sight = self._sights.get(source.path)
        if sight is None or sight.key != key:
            self._sights[source.path] = _Sight(key, at, self._restless)
            return False
        if at - sight.since < self._settle:
            return False
        partial = partial_beside(source.path.name, names)
        if partial and not self._abandoned(source.path.with_name(partial), at):
            sight.why = f"a partial copy lies beside it: {partial}"
            return False
        if not sight.opens and at - sight.tried >= self._settle:
            failure = self._fails(source.path)
            sight.tried, sight.opens, sight.why = at, failure is None, f"does not open yet: {failure}"
        return sight.opens or at - sight.since >= GIVE_UP * self._settle

    def _abandoned(self, partial: Path, at: float) -> bool:
        """Whether a partial copy has not grown for so long that nobody works on it: a copier died."""
        try:
            facts = partial.stat()
        except FileNotFoundError:
            return False
        key = ((facts.st_size, facts.st_mtime_ns, facts.st_ino),)
        sight = self._partials.setdefault(partial, _Sight(key, at))
        if sight.key != key:
            self._partials[partial] = _Sight(key, at)
            return False
        return at - sight.since >= GIVE_UP * self._settle

    def why(self, source: SlideFiles) -> str:
        """Why a slide is not finished."""
        sight = self._sights.get(source.path)
        return sight.why if sight is not None else self._restless

    def forget(self, source: SlideFiles) -> None:
        """It was taken up; should it change, it starts anew."""
        self._sights.pop(source.path, None)


def key_of(source: SlideFiles) -> Key:
    """What must stay as it is. Raises FileNotFoundError when one of the files is gone."""
    facts = (path.stat() for path in source.members)
    return tuple((one.st_size, one.st_mtime_ns, one.st_ino) for one in facts)


def partial_beside(name: str, names: Iterable[str]) -> str | None:
    """A name in the same folder that is this slide on its way: a.svs.part, a.part, ~a.svs, or rsync's .a.svs.Xy12Zq."""
    stem = name.rsplit(".", 1)[0]
    for other in names:
        if other == name:
            continue
        ending = other.lower().endswith(PARTIAL_SUFFIXES) and other.lstrip("~.").startswith((name, f"{stem}."))
        if ending or other.startswith((f".{name}.", f"~{name}")):
            return other
    return None


class FolderWatch:
    """A supply that looks into the folder for as long as the window is open."""

    def __init__(
        self,
        register: InventoryUpdater,
        queue: SlideQueue,
        scans: Path,
        window: RunWindow,
        reader: str,
        stopped: threading.Event,
    ) -> None:
        """reader: what opens a slide for trial.  stopped: set when the run is to end."""
        self._register, self._queue, self._scans, self._linger = register, queue, scans, window.linger
        self._trial = SlideSandbox(reader, stopped=stopped)
        self._settling = FileStability(window.settle, self._trial.fails)
        self._every = min(LONGEST_S, max(SHORTEST_S, window.settle / LOOKS))
        self._looked = -self._every
        self._taken: dict[Path, tuple[int, int, int]] = {}
        self._unfinished: list[SlideFiles] = []
        self._stirred, self._ended = threading.Event(), threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> FolderWatch:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._trial.close()
        self._listener.join(LISTEN_S)

    # -- as a supply -------------------------------------------------------------------------------------------

    def next(self) -> SlideJob | None:
        """A finished slide, urgent ones first."""
        self.look()
        return self._queue.next()

    def ended(self) -> bool:
        """Whether the window has ended; without lingering, whether nothing is left that could still be finished."""
        if self._queue.closed():
            return True
        if self._linger:
            return False
        self.look()
        return not self._queue.left and not self._unfinished

    def look(self) -> None:
        """Search the folder, when it is time to or something has stirred there."""
        at = time.monotonic()
        stirred = self._stirred.is_set() and at - self._looked > SHORTEST_S
        if (at - self._looked < self._every and not stirred) or self._queue.closed():
            return
        self._stirred.clear()
        found = self._register.look()
        self._looked = at = time.monotonic()
        fresh = [source for source in found.slides if not self._is_taken(source)]
        names: dict[Path, list[str]] = {}
        ready, self._unfinished = [], []
        for source in fresh:
            if self._register.knows(source) or self._settling.finished(source, at, _names(source.path.parent, names)):
                ready.append(source)
            else:
                self._unfinished.append(source)
        for source in ready:
            self._taken[source.path] = source.stat_key
            self._settling.forget(source)
        if ready:
            self._queue.put(self._register.admit(DiscoveredSlides(ready, [], {})))

    @property
    def left(self) -> list[SlideJob]:
        """Finished slides that nobody has begun."""
        return self._queue.left

    def close(self) -> None:
        """The end: a last look, and what is not finished by the scanner is left to the next run."""
        found = self._register.look()
        self._register.admit(DiscoveredSlides([], found.ignored, {}))
        for source in found.slides:
            if not self._is_taken(source):
                self._register.defer(source, self._settling.why(source))

    # -- looking -----------------------------------------------------------------------------------------------

    def _is_taken(self, source: SlideFiles) -> bool:
        return self._taken.get(source.path) == source.stat_key

    def _listen(self) -> None:
        """Look sooner when the kernel says that something stirs. A share says nothing: there the looks are enough."""
        with contextlib.suppress(OSError, RuntimeError):
            for _ in watchfiles.watch(self._scans, stop_event=self._ended, raise_interrupt=False, rust_timeout=200):
                self._stirred.set()


def _names(folder: Path, known: dict[Path, list[str]]) -> list[str]:
    if folder not in known:
        known[folder] = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return known[folder]
