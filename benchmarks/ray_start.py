"""Seconds that Ray takes to start and stop with as many actors as an ingest has."""

from __future__ import annotations

import time

from her2batch.runtime.ray_session import connect
from her2batch.settings import Resources


class ReadyActor:
    """An actor that imports the same modules as a worker."""

    def ready(self) -> bool:
        """Return True after the import."""
        import her2batch.pipeline.worker

        return her2batch.pipeline.worker is not None


def time_ray(workers: int) -> float:
    """Return the seconds to start Ray and its actors, and to stop them."""
    started = time.perf_counter()
    with connect(Resources(workers=workers)) as session:
        ray = session.ray
        ray.get([ray.remote(ReadyActor).options(num_cpus=1).remote().ready.remote() for _ in range(workers)])
    return time.perf_counter() - started
