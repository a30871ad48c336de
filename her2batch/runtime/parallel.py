"""Runs one function over many items on Ray, or one after the other: training units, patches of slides, slides to score.

An item whose worker dies is tried again. An exception is the result of its own item; the others go on. With several
cores, the last item does not wait for a free one: eleven units on two cores take 5.5 rounds in place of 6, the last of
which would leave a core idle.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import floor
from typing import Any

from her2batch.errors import HeadLost, StoreError
from her2batch.plugins import registered_rows, restore_rows
from her2batch.runtime.ray_session import RaySession

RETRIES = 2
"""How often an item is tried again whose worker has died."""

POLL_S = 0.5
"""Longest wait for running items before a stop is noticed."""

Outcome = tuple[Any, Any]
"""An item, and the result or exception of its call."""


def map_unordered(
    session: RaySession | None,
    function: Callable[..., Any],
    items: Iterable[Any],
    gpus: float = 0.0,
    cpus: float = 1.0,
) -> Iterator[Outcome]:
    """(item, result or exception) in the order they finish; session None: a plain loop.

    function: at the top of a module, for it travels by name; called with the item and the device it may use.  gpus,
    cpus: that one call holds.
    """
    if session is None:
        for item in items:
            yield item, _result_or_error(function, item)
        return
    yield from _on_ray(session, function, deque(items), gpus if session.gpus > 0 else 0.0, cpus)


def _result_or_error(function: Callable[..., Any], item: Any) -> Any:
    try:
        return function(item, "cpu")
    except Exception as error:  # noqa: BLE001  (one item's fault; its caller decides what it costs)
        return error


def _on_ray(
    session: RaySession, function: Callable[..., Any], waiting: deque[Any], gpus: float, cpus: float
) -> Iterator[Outcome]:
    ray = session.ray
    limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if not gpus:
        limits["CUDA_VISIBLE_DEVICES"] = ""
    at_once = max(1, int(session.gpus / gpus)) if gpus else max(1, int(session.workers / cpus))
    extra = 0 if gpus or at_once == 1 else 1  # the last item
    share = floor(cpus * at_once / (at_once + extra) * 1e4) / 1e4
    options = {"num_cpus": share, "num_gpus": gpus, "max_retries": 0, "runtime_env": {"env_vars": limits}}
    call = ray.remote(_call).options(**options)
    running: dict[Any, Any] = {}
    deaths: Counter[int] = Counter()
    try:
        while (waiting or running) and not session.stopped.is_set():
            session.check()
            while waiting and len(running) < at_once + (extra if len(waiting) == 1 else 0):
                item = waiting.popleft()
                running[call.remote(function, item, bool(gpus), registered_rows())] = item
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
            for reference in done:
                item = running.pop(reference)
                result = _result(ray, reference)
                if isinstance(result, _Lost) and deaths[id(item)] < RETRIES:
                    deaths[id(item)] += 1
                    waiting.appendleft(item)
                    continue
                yield item, result.error if isinstance(result, _Lost) else result
    except HeadLost:
        running.clear()
        raise
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


class _Lost:
    """The error of an item whose worker has died."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _call(function: Callable[..., Any], item: Any, with_gpu: bool, registered: Mapping[str, Mapping[str, Any]]) -> Any:
    """What Ray runs: exceptions come back as values, so that their class survives the way."""
    restore_rows(registered)
    device = "cpu"
    if with_gpu:
        from her2batch.models.device import best_device  # torch, which not every function needs

        device = best_device()
    try:
        return function(item, device)
    except Exception as error:  # noqa: BLE001  (as in the plain loop)
        return error


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        return _Lost(StoreError(f"its worker died again and again ({type(error).__name__})", None, "resume the run"))
    except ray.exceptions.RayTaskError as error:  # what can't travel: an exception without a plain constructor
        return StoreError(str(error).strip().splitlines()[-1], None, "resume the run; if it repeats, report it")
