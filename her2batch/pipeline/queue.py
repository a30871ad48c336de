"""Slides to do, in the order in which they are begun: urgent ones first, then the largest, until the window ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from her2batch.errors import InputError
from her2batch.pipeline.inventory import SlideJob

Clock = Callable[[], datetime]


def now() -> datetime:
    """Local time, with its zone."""
    return datetime.now().astimezone()


class JobSource(Protocol):
    """Where slides to do come from."""

    def next(self) -> SlideJob | None:
        """One that may be begun now; None: there is none at present."""

    def ended(self) -> bool:
        """Whether none will come any more."""

    def look(self) -> None:
        """See what has come: asked for now and then, also while nobody wants a slide."""


class SlideQueue:
    """Slides that are known. What nobody has begun when the window ends stays in `left`."""

    def __init__(
        self,
        todos: Iterable[SlideJob] = (),
        urgent: UrgentList | None = None,
        until: datetime | None = None,
        clock: Clock = now,
    ) -> None:
        """until: when the window ends; None: never."""
        self.left: list[SlideJob] = []
        self._urgent, self._until, self._clock = urgent, until, clock
        self.put(todos)

    def put(self, todos: Iterable[SlideJob]) -> None:
        """Further slides. One that waits already is replaced: its file has changed."""
        fresh = list(todos)
        ids = {todo.slide_id for todo in fresh}
        kept = [todo for todo in self.left if todo.slide_id not in ids]
        self.left = sorted(kept + fresh, key=_largest_first)

    def next(self) -> SlideJob | None:
        """The first of them, as long as the window is open."""
        if not self.left or self.closed():
            return None
        urgent = self._urgent
        at = next((k for k, todo in enumerate(self.left) if urgent(todo)), 0) if urgent is not None else 0
        return self.left.pop(at)

    def ended(self) -> bool:
        """Whether all have been handed out, or the window has ended."""
        return not self.left or self.closed()

    def look(self) -> None:
        """All is known already."""

    def closed(self) -> bool:
        """Whether the window has ended."""
        return self._until is not None and self._clock() >= self._until


def _largest_first(todo: SlideJob) -> tuple[int, str]:
    """For a short tail."""
    return -todo.source.bytes, todo.slide_id


class UrgentList:
    """Which slides come first: those under a folder, or those whose name stands in a text file, a line each.

    A name is that of the file, with its suffix or without, or the patient's. The text file is read again when it has
    changed, so that a case can be made urgent while the night runs.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError when there is neither folder nor file."""
        if not path.exists():
            remedy = "give a folder under SCANS, or a text file with a slide's name a line"
            raise InputError("there is no such list of urgent slides", path, remedy)
        self._path = path.absolute()
        self._stamp: tuple[int, int] = (-1, -1)
        self._names: frozenset[str] = frozenset()

    def __call__(self, todo: SlideJob) -> bool:
        """Whether a slide is urgent."""
        if self._path.is_dir():
            return self._path in todo.source.path.absolute().parents
        source = todo.source.path
        return not self._listed().isdisjoint((source.name, source.stem, todo.slide_id, todo.patient_id or source.name))

    def _listed(self) -> frozenset[str]:
        try:
            facts = self._path.stat()
            if (facts.st_size, facts.st_mtime_ns) != self._stamp:
                words = self._path.read_text(errors="replace").splitlines()
                self._names = frozenset(one.strip() for one in words if one.strip())
                self._stamp = (facts.st_size, facts.st_mtime_ns)
        except OSError:
            return self._names  # taken away: what it said last holds
        return self._names


def next_time(of_day: str, after: datetime) -> datetime:
    """The next moment at which a local clock shows a time of day, HH:MM or HH:MM:SS.

    A time that the night's change of the clocks leaves out is an hour later.
    """
    hour, minute, second = (int(part) for part in f"{of_day}:00".split(":")[:3])
    today = after.astimezone().replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
    moments = (
        moment
        for day in (today, today + timedelta(days=1))
        for fold in (0, 1)  # where the clock is put back a time comes twice
        if (moment := _moment(day.replace(fold=fold))) > after
    )
    return min(moments)


def _moment(wall: datetime) -> datetime:
    """When a local clock shows a time. By its timestamp: `astimezone` is two hours off where a time is left out."""
    found = datetime.fromtimestamp(wall.timestamp()).astimezone()
    shows = found.replace(tzinfo=None, fold=0) == wall.replace(fold=0)
    return found if shows or not wall.fold else _moment(wall.replace(fold=0))
