"""The one desk of a server: links that work once, and slides that were posted, read one after the other.

A cohort has one writer, so there is one desk however many copies of the page run. Its tickets live as long as the
server; what a slide's reading gave is in the cohort, and posting it again finds that.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from her2batch.errors import Her2BatchError, InputError, StoreError

Work = Callable[[Path], dict[str, Any]]
"""Read one slide into the cohort: its slide_id, error_code and error. Raises StoreError while others write there."""

RETRY_S = 5.0
"""Between two tries to get the cohort from another writer."""

KEPT = 10_000
"""Tickets that are remembered."""


class IngestJobs:
    """Posted slides in order, each with its ticket; and the codes of links. Safe for any number of threads."""

    def __init__(self, work: Work | None, codes: tuple[str, ...] = (), retry_s: float = RETRY_S) -> None:
        """work: None where nothing may be posted."""
        self._work, self._retry_s = work, retry_s
        self._codes = list(codes)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._tickets: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._paths: dict[str, Path] = {}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if work is not None:
            self._thread.start()

    def spend(self, code: str) -> bool:
        """Whether a link's code is one that nobody has used; from now on it is used."""
        with self._lock:
            for known in self._codes:
                if hmac.compare_digest(known.encode(), code.encode()):
                    self._codes.remove(known)
                    return True
        return False

    def submit(self, path: str) -> dict[str, Any]:
        """Put a slide into the queue; one that waits there already keeps its ticket. Raises InputError."""
        if self._work is None:
            raise InputError("nothing may be posted to this server", None, "start it with --scans FOLDER")
        with self._lock:
            for number, waiting in self._paths.items():
                if waiting == Path(path):
                    return dict(self._tickets[number])
            number = secrets.token_hex(8)
            self._tickets[number] = {"id": number, "state": "queued", "queued": _now()}
            self._paths[number] = Path(path)
            while len(self._tickets) > KEPT and (oldest := next(iter(self._tickets))) not in self._paths:
                del self._tickets[oldest]
            self._queue.put(number)
            return dict(self._tickets[number])

    def look(self, number: str) -> dict[str, Any] | None:
        """A ticket; None for one that isn't known."""
        with self._lock:
            found = self._tickets.get(number)
            return None if found is None else dict(found)

    def close(self) -> None:
        """Take nothing up any more. A slide that is being read goes on to its end, or to the process's."""
        self._closed.set()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                number = self._queue.get(timeout=0.2)
            except Empty:
                continue
            self._note(number, state="running", started=_now())
            self._note(number, **self._done(number), ended=_now())
            with self._lock:
                del self._paths[number]

    def _done(self, number: str) -> dict[str, Any]:
        """Read one slide, once the cohort is free."""
        assert self._work is not None
        while True:
            try:
                found = self._work(self._paths[number])
                return {**found, "state": "failed" if found.get("error_code") else "done", "waiting": None}
            except StoreError as error:
                self._note(number, waiting=str(error))
                if self._closed.wait(self._retry_s):
                    return {"state": "failed", "error_code": "stopped", "error": "the server was stopped"}
            except Her2BatchError as error:
                return {"state": "failed", "error_code": "refused", "error": str(error), "waiting": None}
            except Exception as error:  # noqa: BLE001  (the desk must go on; the client is told)
                return {"state": "failed", "error_code": "internal", "error": f"{type(error).__name__}: {error}"}

    def _note(self, number: str, **facts: Any) -> None:
        with self._lock:
            self._tickets[number] |= facts


def checked(path: str, scans: Path | None) -> Path:
    """A posted path, absolute, with its links followed. Raises InputError for one outside of the scans folder."""
    if scans is None:
        raise InputError("nothing may be posted to this server", None, "start it with --scans FOLDER")
    root = scans.resolve()
    try:
        found = (root / path).resolve()
        inside = found != root and found.is_relative_to(root) and found.is_file()
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise InputError("is no file under the scans folder of this server", None, "post a path below it")
    return found


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
