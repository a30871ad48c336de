"""A worker in a process of its own, as Ray holds it."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.slide_state import SlidePart, SlideState
from her2batch.pipeline.worker import PartialSlide, SlideResult, SlideWorker
from her2batch.plugins import restore_rows
from her2batch.runtime.telemetry import TileMeter


class Actor:
    """A worker in a process of its own. The only class Ray sees."""

    def __init__(
        self,
        worker: SlideWorker,
        roles: tuple[str, ...] | None,
        memory: int,
        with_gpu: bool,
        registered: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Prepare the process. registered: rows of the driver's registries, see `plugins.registered_rows`."""
        _limit(memory if not with_gpu else None)
        restore_rows(registered or {})
        if not with_gpu:  # importing cucim or torch would take some 500 MB on every GPU in sight
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import cv2

        cv2.setNumThreads(1)
        worker.load_reader()
        device = _best_device() if with_gpu else "cpu"
        self._worker = replace(worker, context=replace(worker.context, device=device), works={})
        self._roles = roles
        self._tiles = TileMeter(roles[0] if with_gpu and roles else "cpu")

    def ready(self) -> str:
        """The node it is on, once the stages are made. Raises what making them raises: missing weights, most often."""
        self._worker.ready(self._roles)
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def begin(self, job: SlideJob, always: bool) -> tuple[SlideResult | PartialSlide, SlideState | None]:
        """See SlideWorker.begin."""
        result, state = self._worker.begin(job, share=True, always=always)
        if isinstance(result, SlideResult):
            self._tiles.add(result.row["n_tiles"] or 0)
        return result, state

    def measure(self, job: SlideJob, state: SlideState, role: str, lo: int, hi: int) -> SlidePart | SlideResult:
        """See SlideWorker.measure."""
        part = self._worker.measure(job, state, role, lo, hi)
        if not isinstance(part, SlideResult):
            self._tiles.add(part.n_tiles)
        return part

    def finish(self, job: SlideJob, state: SlideState, *parts: SlidePart | SlideResult) -> SlideResult:
        """See SlideWorker.finish; a part that failed has committed the slide already."""
        failed = [part for part in parts if isinstance(part, SlideResult)]
        done = [part for part in parts if isinstance(part, SlidePart)]
        return failed[0] if failed else self._worker.finish(job, state, *done)


def _best_device() -> str:
    from her2batch.models.device import best_device  # torch: only where a GPU is at hand

    return best_device()


def _limit(memory: int | None) -> None:
    """Cap what this process may hold: beyond, an allocation fails and the slide is `out-of-memory`."""
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.RLIM_INFINITY))
