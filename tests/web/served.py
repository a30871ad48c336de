"""The application without Ray, on a port of this machine, for a browser and for curl."""

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
from her2batch.web.ingest_jobs import IngestJobs, IngestSlide
from her2batch.web.proxy import NO_PROXY, ProxyAccess

TOKEN = "a-token-for-the-tests-only"


def application(
    cohort: Path,
    scans: Path | None = None,
    work: IngestSlide | None = None,
    codes: tuple[str, ...] = (),
    access: ProxyAccess = NO_PROXY,
) -> Any:
    """Return the application with its own ingest jobs."""
    jobs = IngestJobs(work, codes, retry_s=0.1)

    async def call_jobs(method: str, *args: Any) -> Any:
        return getattr(jobs, method)(*args)

    return create_app(cohort, TOKEN, call_jobs, scans, access)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve the application; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", forwarded_allow_ips=""))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
