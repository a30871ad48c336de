"""Ingest jobs of a server: slides that were posted are ingested one at a time. Also the one-time codes of links.

A cohort has one writer, so a server has one `IngestJobs`, however many replicas of the page run. Job ids (the tickets
of the REST API) live as long as the server. The result of a job is in the cohort; posting its slide again returns it.
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

IngestSlide = Callable[[Path], dict[str, Any]]
"""Ingests one slide file and returns slide_id, error_code, error. Raises StoreError while another run writes there."""

RETRY_S = 5.0
"""Seconds between two attempts while another run holds the cohort."""

MAX_JOBS = 10_000
"""Jobs whose status is kept."""


class IngestJobs:
    """Queue of posted slides with their status, and the one-time codes of links. Thread-safe."""

    def __init__(self, ingest_slide: IngestSlide | None, codes: tuple[str, ...] = (), retry_s: float = RETRY_S) -> None:
        """ingest_slide: None if no slide may be posted.  codes: one-time codes of links."""
        self._ingest_slide, self._retry_s = ingest_slide, retry_s
        self._codes = list(codes)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._jobs: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._paths: dict[str, Path] = {}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._run_jobs, daemon=True)
        if ingest_slide is not None:
            self._thread.start()

    def redeem_code(self, code: str) -> bool:
        """Return whether the code of a link is valid and unused. It can't be used again."""
        with self._lock:
            for known in self._codes:
                if hmac.compare_digest(known.encode(), code.encode()):
                    self._codes.remove(known)
                    return True
        return False

    def submit(self, path: str) -> dict[str, Any]:
        """Put a slide into the queue and return its job. A queued slide keeps its job. Raises InputError."""
        if self._ingest_slide is None:
            raise InputError("this server accepts no slides", None, "start it with --scans FOLDER")
        with self._lock:
            for job_id, queued in self._paths.items():
                if queued == Path(path):
                    return dict(self._jobs[job_id])
            job_id = secrets.token_hex(8)
            self._jobs[job_id] = {"id": job_id, "state": "queued", "queued": _now()}
            self._paths[job_id] = Path(path)
            while len(self._jobs) > MAX_JOBS and (oldest := next(iter(self._jobs))) not in self._paths:
                del self._jobs[oldest]
            self._queue.put(job_id)
            return dict(self._jobs[job_id])

    def status(self, job_id: str) -> dict[str, Any] | None:
        """Return the status of a job; None for an unknown id."""
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None else dict(job)

    def close(self) -> None:
        """Start no more jobs. The job that runs continues to its end, or to that of the process."""
        self._closed.set()

    def _run_jobs(self) -> None:
        while not self._closed.is_set():
            try:
                job_id = self._queue.get(timeout=0.2)
            except Empty:
                continue
            self._update(job_id, state="running", started=_now())
            self._update(job_id, **self._run_job(job_id), ended=_now())
            with self._lock:
                del self._paths[job_id]

    def _run_job(self, job_id: str) -> dict[str, Any]:
        """Ingest one slide as soon as no other run holds the cohort, and return the result."""
        assert self._ingest_slide is not None
        while True:
            try:
                result = self._ingest_slide(self._paths[job_id])
                return {**result, "state": "failed" if result.get("error_code") else "done", "waiting": None}
            except StoreError as error:
                self._update(job_id, waiting=str(error))
                if self._closed.wait(self._retry_s):
                    return {"state": "failed", "error_code": "stopped", "error": "the server was stopped"}
            except Her2BatchError as error:
                return {"state": "failed", "error_code": "refused", "error": str(error), "waiting": None}
            except Exception as error:  # noqa: BLE001  (the next jobs must run; the client gets the error)
                return {"state": "failed", "error_code": "internal", "error": f"{type(error).__name__}: {error}"}

    def _update(self, job_id: str, **facts: Any) -> None:
        with self._lock:
            self._jobs[job_id] |= facts


def resolve_scan_path(path: str, scans: Path | None) -> Path:
    """Return a posted path as an absolute path with symbolic links resolved.

    Raises InputError for a path that is not a file below the scan folder.
    """
    if scans is None:
        raise InputError("this server accepts no slides", None, "start it with --scans FOLDER")
    root = scans.resolve()
    try:
        resolved = (root / path).resolve()
        inside = resolved != root and resolved.is_relative_to(root) and resolved.is_file()
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise InputError("the path is not a file under the scan folder of this server", None, "post a path below it")
    return resolved


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
