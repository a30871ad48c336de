"""The application without Ray: on a port of this machine, for a browser and for curl."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from her2batch.web.app import create_app
from her2batch.web.ingest_jobs import IngestJobs, Work

TOKEN = "a-token-for-the-tests-only"


def application(cohort: Path, scans: Path | None = None, work: Work | None = None, codes: tuple[str, ...] = ()) -> Any:
    """The application with a desk of its own."""
    desk = IngestJobs(work, codes, retry_s=0.1)

    async def ask(method: str, *args: Any) -> Any:
        return getattr(desk, method)(*args)

    return create_app(cohort, TOKEN, ask, scans)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address where it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
