"""Prometheus metrics of a run, at Ray's own metrics endpoint of every node (names there begin with `ray_`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from her2batch.pipeline.progress import RunProgress
from her2batch.store.cohort import Row


class RunMetrics:
    """Metrics of the driver: slides, bytes, waiting calls, remaining time."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        self._slides = Counter("her2batch_slides", "slides that have ended", ("outcome",))
        self._source = Counter("her2batch_source_bytes", "bytes of the slides that have ended")
        self._store = Counter("her2batch_store_bytes", "bytes written to the store")
        self._waiting = Gauge("her2batch_calls_waiting", "calls that wait for a worker", ("pool",))
        self._left = Gauge("her2batch_seconds_left", "seconds until the slides that are known are done, at the most")

    def slide_ended(self, row: Row, progress: RunProgress) -> None:
        """Count a slide whose row is committed."""
        self._slides.inc(1, {"outcome": row["status"]})
        _add(self._source, row["bytes"] or 0)
        _add(self._store, sum(file["bytes"] for file in row["files"] or ()))
        if progress.left is not None:
            self._left.set(progress.left[1])

    def calls_waiting(self, waiting: Mapping[str, int]) -> None:
        """Set the number of calls that wait, by pool."""
        for pool, count in waiting.items():
            self._waiting.set(count, {"pool": pool})


class TileMetrics:
    """Metrics of an actor: tiles that its models have processed."""

    def __init__(self, pool: str) -> None:
        from ray.util.metrics import Counter

        self._tiles = Counter("her2batch_tiles", "tiles measured, embedded or classified", ("pool",))
        self._pool = pool

    def add(self, count: int) -> None:
        """Count further tiles."""
        if count > 0:
            self._tiles.inc(count, {"pool": self._pool})


def _add(counter: Any, count: int) -> None:
    if count > 0:  # Ray raises an error for 0
        counter.inc(count)
