"""What happens in a run, as it happens: JSON lines, one file a run, beside the run's times.

Only the driver writes it. With pseudonyms it names slides by their ids, as everything in the store does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from her2batch.errors import Her2BatchError, StoreError
from her2batch.files.locations import make_draft_folder, upload
from her2batch.files.locks import is_locked
from her2batch.store.cohort import Cohort

FOLLOW_S = 1.0
"""Seconds between two reads of a run log that is being followed."""

SENT = ("started", "progress", "ended")
"""Events after which an object store gets the journal as it is."""


class RunLog:
    """One run's file, open for writing. A disk that refuses a line stops nothing: rows are what counts."""

    def __init__(self, cohort: Cohort, run: str) -> None:
        self._place = cohort.runs / f"{run}.jsonl"
        self._far = TemporaryDirectory(prefix=".draft-", dir=make_draft_folder(cohort.root)) if cohort.remote else None
        self._path = Path(self._far.name) / self._place.name if self._far is not None else self._place
        try:
            self._file = self._path.open("a", buffering=1)
        except OSError:
            self._file = Path(os.devnull).open("a", buffering=1)  # noqa: SIM115  (closed on the way out, as the other)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            words = f": {error}" if isinstance(error, Her2BatchError) else ""  # others' may name a slide's file
            self.say("ended", error=f"{type(error).__name__}{words}")
        with suppress(OSError):  # a line that the disk refused is tried once more
            self._file.close()
        if self._far is not None:
            self._far.cleanup()

    def say(self, event: str, **facts: Any) -> None:
        """Add a line: when, what, and its facts."""
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        try:
            self._file.write(json.dumps(line, default=str) + "\n")
            if self._far is not None and event in SENT:
                upload(self._path, self._place)
        except (OSError, StoreError):
            return


def latest_log(cohort: Cohort) -> Path | None:
    """The journal of the cohort's last run."""
    return max(cohort.runs.glob("*.jsonl"), key=lambda path: path.name.split("-", 1)[-1], default=None)


def log_entries(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Events from a byte of the file on, each with the byte behind it. A line that is being written is left.

    One that is no event (damage of the disk) is passed over: a journal is there to look at, nothing depends on it.
    """
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and "event" in event:
                yield start, event


def follow_run(cohort: Cohort) -> Iterator[dict[str, Any]]:
    """Yield the events of the cohort's latest run as they are written, until it ends or its process is gone.

    The last event is `ended`, or `gone` where the process ended without one. Raises StoreError when there is no cohort.
    """
    cohort.check()
    path, start = latest_log(cohort), 0
    while path is not None:
        for end, event in log_entries(path, start):
            start = end
            yield event
            if event["event"] == "ended":
                return
        if not is_locked(cohort.root):
            yield {"event": "gone"}
            return
        time.sleep(FOLLOW_S)
