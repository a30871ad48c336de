"""The log of a run: one file of JSON lines per run, in `tables/runs`.

Only the driver writes it. It names slides by their ids, which are pseudonyms in a cohort with pseudonyms.
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

import pyarrow as pa

from her2batch.errors import Her2BatchError, StoreError
from her2batch.files.locations import make_draft_folder, upload
from her2batch.files.locks import is_locked
from her2batch.files.parquet import read_parquet
from her2batch.store.cohort import Cohort

FOLLOW_S = 1.0
"""Seconds between two reads of a run log that is being followed."""

UPLOADED_EVENTS = ("started", "progress", "ended")
"""Events after which the log is uploaded to an object store."""


class RunLog:
    """The log of one run, open for writing. A write error does not stop the run: only the slides' rows matter."""

    def __init__(self, cohort: Cohort, run: str) -> None:
        self._target = cohort.runs / f"{run}.jsonl"
        self._remote_draft = (
            TemporaryDirectory(prefix=".draft-", dir=make_draft_folder(cohort.root)) if cohort.remote else None
        )
        self._path = (
            Path(self._remote_draft.name) / self._target.name if self._remote_draft is not None else self._target
        )
        try:
            self._file = self._path.open("a", buffering=1)
        except OSError:
            self._file = Path(os.devnull).open("a", buffering=1)  # noqa: SIM115  (closed in __exit__)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            text = f": {error}" if isinstance(error, Her2BatchError) else ""  # other errors may name a slide file
            self.write("ended", error=f"{type(error).__name__}{text}")
        with suppress(OSError):  # closing tries again to write a line that failed
            self._file.close()
        if self._remote_draft is not None:
            self._remote_draft.cleanup()

    def write(self, event: str, **values: Any) -> None:
        """Add a line with the time, the event and its values."""
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
        try:
            self._file.write(json.dumps(line, default=str) + "\n")
            if self._remote_draft is not None and event in UPLOADED_EVENTS:
                upload(self._path, self._target)
        except (OSError, StoreError):
            return


def latest_log(cohort: Cohort) -> Path | None:
    """The log of the cohort's latest run; None if there is none."""
    return max(cohort.runs.glob("*.jsonl"), key=lambda path: path.name.split("-", 1)[-1], default=None)


def log_entries(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Events of a log from a byte position on, each with the position after it. An incomplete last line is left out.

    Lines that are no events, as after damage of the disk, are skipped: nothing depends on a log.
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


def finished_times(cohort: Cohort) -> dict[str, datetime]:
    """When each slide was finished last: slide_id → time. Tables of runs that can't be read are left out."""
    times: dict[str, datetime] = {}
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        try:
            table = read_parquet(path).select(["slide_id", "finished"])
        except (OSError, KeyError, pa.ArrowInvalid):
            continue
        for slide_id, finished in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if finished is not None and (slide_id not in times or finished > times[slide_id]):
                times[slide_id] = finished
    return times
