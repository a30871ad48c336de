"""Processes slides one after the other in this process, without Ray. The results on Ray must have the same bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from her2batch.errors import SlideError
from her2batch.pipeline.growth.added_encoders import worker_for
from her2batch.pipeline.queue import JobSource
from her2batch.pipeline.worker import SlideResult, SlideWorker
from her2batch.runtime.sandbox import LOST, SlideSandbox
from her2batch.settings import Resources

PAUSE_S = 0.5
"""Seconds between two looks for a slide, where there is none at present."""


def run_serially(
    worker: SlideWorker, source: JobSource, stopped: threading.Event | None = None, resources: Resources | None = None
) -> Iterator[SlideResult]:
    """Process slides in the order of their source, until the run is stopped.

    Each slide is opened in a sandbox process before it is opened here.  resources: limits of the sandbox's time and
    memory. A crash or hang that happens later ends this process too; runs on Ray are safe from that.
    """
    worker.ready()
    stopped, resources = stopped or threading.Event(), resources or Resources()
    sandbox = SlideSandbox(worker.context.plan.reader, resources.patience, stopped, resources.worker_memory)
    try:
        while not source.is_exhausted() and not stopped.is_set():
            job = source.next_job()
            if job is None:
                time.sleep(PAUSE_S)
                continue
            if job.encoders:  # read from a pyramid, which this package has written
                yield worker_for(worker, job).run(job)
                continue
            error_code = sandbox.try_open(job.source.path).error_code
            if error_code is None:
                yield worker.run(job)
            elif not stopped.is_set():
                yield worker.fail(job, SlideError(error_code, job.source.path, LOST))
    finally:
        sandbox.close()
