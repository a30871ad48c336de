"""The plain loop: one slide after the other in this process, without Ray. The reference that Ray's bytes must equal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from her2batch.errors import SlideError
from her2batch.pipeline.queue import JobSource
from her2batch.pipeline.worker import SlideResult, SlideWorker
from her2batch.runtime.sandbox import LOST, SlideSandbox
from her2batch.settings import Resources

PAUSE_S = 0.5
"""Between two looks for a slide, where there is none at present."""


def run_serially(
    worker: SlideWorker, supply: JobSource, stopped: threading.Event | None = None, resources: Resources | None = None
) -> Iterator[SlideResult]:
    """Slides in the order of their supply, until it is stopped.

    A slide is opened in a process of its own before it is opened here; resources: what time and memory that may take.
    What crashes or hangs only later takes this process along: Ray's workers are safe from that too.
    """
    worker.ready()
    stopped, resources = stopped or threading.Event(), resources or Resources()
    trial = SlideSandbox(worker.context.plan.reader, resources.patience, stopped, resources.worker_memory)
    try:
        while not supply.ended() and not stopped.is_set():
            todo = supply.next()
            if todo is None:
                time.sleep(PAUSE_S)
                continue
            trouble = trial.opened(todo.source.path).trouble
            if trouble is None:
                yield worker.run(todo)
            elif not stopped.is_set():
                yield worker.fail(todo, SlideError(trouble, todo.source.path, LOST))
    finally:
        trial.close()
