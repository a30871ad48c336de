"""The Ray actor: a worker in a process of its own, and how it is started on a cluster."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from her2batch.pipeline.growth.added_encoders import worker_for
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.slide_state import SlidePart, SlideState
from her2batch.pipeline.stages import active_stages
from her2batch.pipeline.worker import PartialSlide, SlideResult, SlideWorker
from her2batch.plugins import registered_rows, restore_rows
from her2batch.runtime.ray_session import READER_RESOURCE, RaySession
from her2batch.runtime.telemetry import TileMetrics

if TYPE_CHECKING:
    from her2batch.models.execution.batch_size import BatchSizes

GPU_CALLS = 2
"""Calls that a GPU actor has at once: while the GPU works on one, the next slide is opened and its first batch decoded,
so that the GPU waits neither for them nor for Ray."""

TINY_SHARE = 0.001
"""Of a custom resource: enough to choose the node, and never exhausted."""


class Actor:
    """A worker in a process of its own. The only class that Ray creates for an ingest."""

    def __init__(
        self,
        worker: SlideWorker,
        roles: tuple[str, ...] | None,
        memory: int,
        gpu_share: float,
        registered: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Prepare the process.

        gpu_share: of a GPU; 0: it uses none.  registered: rows of the driver's registries, see
        `plugins.registered_rows`.
        """
        with_gpu = gpu_share > 0
        _limit(memory if not with_gpu else None)
        restore_rows(registered or {})
        if not with_gpu:  # importing cucim or torch would take some 500 MB on every visible GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import cv2

        cv2.setNumThreads(1)
        worker.load_reader()
        device = _best_device() if with_gpu else "cpu"
        tiles_on = None if not with_gpu else worker.context.tile_device if device == "cpu" else device
        batches = _batch_sizes(worker, gpu_share) if device != "cpu" else None
        context = replace(worker.context, device=device, tile_device=tiles_on, batches=batches)
        self._worker = replace(worker, context=context, works={})
        self._roles = roles
        self._tiles = TileMetrics(roles[0] if with_gpu and roles else "cpu")

    def ready(self) -> str:
        """Id of the actor's node, once its stages are made. Raises what making them raises, such as missing weights."""
        self._worker.ready(self._roles)
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def begin(self, job: SlideJob, always: bool) -> tuple[SlideResult | PartialSlide, SlideState | None]:
        """See SlideWorker.begin."""
        result, state = worker_for(self._worker, job).begin(job, share=True, always=always)
        if isinstance(result, SlideResult):
            self._tiles.add(result.row["n_tiles"] or 0)
        return result, state

    def measure(self, job: SlideJob, state: SlideState, role: str, lo: int, hi: int) -> SlidePart | SlideResult:
        """See SlideWorker.measure."""
        part = worker_for(self._worker, job).measure(job, state, role, lo, hi)
        if not isinstance(part, SlideResult):
            self._tiles.add(part.n_tiles)
        return part

    def finish(self, job: SlideJob, state: SlideState, *parts: SlidePart | SlideResult) -> SlideResult:
        """See SlideWorker.finish; a part that failed has committed the slide already."""
        failed = [part for part in parts if isinstance(part, SlideResult)]
        done = [part for part in parts if isinstance(part, SlidePart)]
        return failed[0] if failed else worker_for(self._worker, job).finish(job, state, *done)


def _best_device() -> str:
    from her2batch.models.device import best_device  # imports torch: only where there is a GPU

    return best_device()


def _batch_sizes(worker: SlideWorker, share: float) -> BatchSizes:
    from her2batch.models.execution.batch_size import BatchSizes  # imports torch too

    return BatchSizes(worker.cohort.batch_sizes, share)


def _limit(memory: int | None) -> None:
    """Limit the memory of this process: beyond it an allocation fails, and the slide fails with `out-of-memory`."""
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.RLIM_INFINITY))


def create_actor(
    session: RaySession, worker: SlideWorker, gpu_role: str | None, all_gpu_roles: tuple[str, ...], memory: int
) -> Any:
    """Start an actor: for one role on a share of a GPU, or, with gpu_role None, for all other roles on a CPU."""
    gpu = gpu_role is not None
    gpu_count = max(1, int(session.gpus))
    limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if not gpu:
        limits["CUDA_VISIBLE_DEVICES"] = ""
    # Ray counts CPUs to place workers; a GPU actor has threads of its own and takes no worker's slot
    share = session.gpus / gpu_count / len(all_gpu_roles) if gpu else 0
    options: dict[str, Any] = {
        "num_cpus": 0 if gpu else 1,
        "num_gpus": share,
        "max_restarts": 0,
        "max_concurrency": GPU_CALLS if gpu else 1,
        "runtime_env": {"env_vars": limits},
    }
    if not gpu and session.has_resource(READER_RESOURCE):
        options["resources"] = {READER_RESOURCE: TINY_SHARE}
    threads = max(1, session.workers // (len(all_gpu_roles) * gpu_count)) if gpu else 0
    worker = replace(worker, threads=threads)
    roles = (gpu_role,) if gpu_role is not None else _cpu_roles(worker, all_gpu_roles)
    return session.ray.remote(Actor).options(**options).remote(worker, roles, memory, share, registered_rows())


def calls_at_once(pool: str) -> int:
    """Calls that an actor of a pool gets at once."""
    return 1 if pool == "cpu" else GPU_CALLS


def gpu_roles(worker: SlideWorker) -> tuple[str, ...]:
    """Roles whose models gain from a GPU: embedding, a patch resolution, thumbnails; not the stain encoder."""
    context = worker.context
    return tuple(dict.fromkeys(stage.role for stage in active_stages(context) if stage.gpu(context)))


def _cpu_roles(worker: SlideWorker, all_gpu_roles: tuple[str, ...]) -> tuple[str, ...]:
    roles = dict.fromkeys(stage.role for stage in active_stages(worker.context))
    return tuple(role for role in roles if role not in all_gpu_roles)
