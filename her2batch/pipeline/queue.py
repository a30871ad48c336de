"""Queue of slides to process: urgent slides first, then the largest, until the run's window ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from her2batch.errors import InputError
from her2batch.pipeline.inventory import SlideJob

Clock = Callable[[], datetime]


def local_now() -> datetime:
    """Local time with its time zone."""
    return datetime.now().astimezone()


class JobSource(Protocol):
    """Source of slides to process."""

    def next_job(self) -> SlideJob | None:
        """A slide that may be begun now, or None if there is none at present."""

    def is_exhausted(self) -> bool:
        """Whether no more slides will come."""

    def refresh(self) -> None:
        """Look for new slides. Called regularly, also while no worker is idle."""


class SlideQueue:
    """Queue of known slides. Those that have not been begun when the window ends stay in `waiting`."""

    def __init__(
        self,
        jobs: Iterable[SlideJob] = (),
        urgent: UrgentList | None = None,
        until: datetime | None = None,
        clock: Clock = local_now,
    ) -> None:
        """until: end of the window; None: none."""
        self.waiting: list[SlideJob] = []
        self._urgent, self._until, self._clock = urgent, until, clock
        self.put(jobs)

    def put(self, jobs: Iterable[SlideJob]) -> None:
        """Add slides. One that is waiting already is replaced, because its file has changed."""
        added = list(jobs)
        ids = {job.slide_id for job in added}
        kept = [job for job in self.waiting if job.slide_id not in ids]
        self.waiting = sorted(kept + added, key=_largest_first)

    def next_job(self) -> SlideJob | None:
        """The first slide, as long as the window is open."""
        if not self.waiting or self.is_closed():
            return None
        urgent = self._urgent
        at = next((k for k, job in enumerate(self.waiting) if urgent(job)), 0) if urgent is not None else 0
        return self.waiting.pop(at)

    def is_exhausted(self) -> bool:
        """Whether the queue is empty or the window has ended."""
        return not self.waiting or self.is_closed()

    def refresh(self) -> None:
        """Do nothing: all slides are known."""

    def is_closed(self) -> bool:
        """Whether the window has ended."""
        return self._until is not None and self._clock() >= self._until


def _largest_first(job: SlideJob) -> tuple[bool, int, str]:
    """Sort key: new slides before finished ones that get encoders; of each, large slides first, which take longest."""
    return bool(job.encoders), -job.source.bytes, job.slide_id


class UrgentList:
    """Urgent slides: those under a folder, or those that a text file lists, one name a line.

    A name is that of the slide file, with or without its suffix, or the patient's. The text file is read again when it
    has changed, so that a case can be made urgent during a run.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError when neither a folder nor a file is there."""
        if not path.exists():
            remedy = "give a folder under SCANS, or a text file with one slide name a line"
            raise InputError("there is no such list of urgent slides", path, remedy)
        self._path = path.absolute()
        self._stamp: tuple[int, int] = (-1, -1)
        self._names: frozenset[str] = frozenset()

    def __call__(self, job: SlideJob) -> bool:
        """Whether a slide is urgent."""
        if self._path.is_dir():
            return self._path in job.source.path.absolute().parents
        source = job.source.path
        return not self._read_names().isdisjoint(
            (source.name, source.stem, job.slide_id, job.patient_id or source.name)
        )

    def _read_names(self) -> frozenset[str]:
        try:
            facts = self._path.stat()
            if (facts.st_size, facts.st_mtime_ns) != self._stamp:
                lines = self._path.read_text(errors="replace").splitlines()
                self._names = frozenset(line.strip() for line in lines if line.strip())
                self._stamp = (facts.st_size, facts.st_mtime_ns)
        except OSError:
            return self._names  # the file was removed: its last content applies
        return self._names


def next_occurrence(of_day: str, after: datetime) -> datetime:
    """The next moment at which the local clock shows a time of day, HH:MM or HH:MM:SS.

    A time that daylight saving skips is an hour later.
    """
    hour, minute, second = (int(part) for part in f"{of_day}:00".split(":")[:3])
    today = after.astimezone().replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
    moments = (
        moment
        for day in (today, today + timedelta(days=1))
        for fold in (0, 1)  # when the clock is put back, a time occurs twice
        if (moment := _local_moment(day.replace(fold=fold))) > after
    )
    return min(moments)


def _local_moment(local: datetime) -> datetime:
    """The moment of a local time, by its timestamp: `astimezone` is two hours off for a time that is skipped."""
    found = datetime.fromtimestamp(local.timestamp()).astimezone()
    shows = found.replace(tzinfo=None, fold=0) == local.replace(fold=0)
    return found if shows or not local.fold else _local_moment(local.replace(fold=0))
