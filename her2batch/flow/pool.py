"""Who does it when: slides over Ray actors, or one after the other in a plain loop.

The actors are fused: the process that decodes runs the models and writes, so no pixel crosses Ray. What travels is a
slide's name, the small state of a begun one, and the arrays of its tiles.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from her2batch.errors import Her2BatchError, SlideError, StoreError
from her2batch.flow.session import Session
from her2batch.way.census import Todo
from her2batch.way.stages import chosen
from her2batch.way.work import Begun, Finished, Worker

RETRIES = 2
"""A slide that loses its worker is tried again this often; then it is `worker-lost`."""

PATIENCE_S = 0.5
"""How long one look at the running calls may take before a stop is noticed."""

START_S = 300
"""How long workers may take to start and load their models."""

GPU_CALLS = 2
"""Calls that a GPU worker has at once: while the GPU works on one, the next slide is opened and its first batch
decoded, so that it waits for neither, nor for Ray."""

LOST_IN_A_ROW = 12
"""Workers lost with no slide finished between: it is not the slides, Ray itself is gone."""


def plain(worker: Worker, todos: Iterable[Todo]) -> Iterator[Finished]:
    """The reference: one slide after the other, in this process."""
    worker.ready()
    for todo in todos:
        yield worker.run(todo)


def share(session: Session, worker: Worker, todos: Iterable[Todo], memory: int) -> Iterator[Finished]:
    """The same on Ray, in the order slides finish. Raises StoreError when Ray is lost, and what `ready` raises."""
    driver = _Driver(session, worker, memory)
    try:
        yield from driver.run(deque(todos))
    finally:
        driver.release()


class Actor:
    """A worker in a process of its own. The only class Ray sees."""

    def __init__(self, worker: Worker, roles: tuple[str, ...] | None, memory: int, with_gpu: bool) -> None:
        _limit(memory if not with_gpu else None)
        if not with_gpu:  # importing cucim or torch would take some 500 MB on every GPU in sight
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import cv2

        cv2.setNumThreads(1)
        worker.load_reader()
        device = _best_device() if with_gpu else "cpu"
        self._worker = replace(worker, context=replace(worker.context, device=device), made={})
        self._roles = roles

    def ready(self) -> int:
        """The process id, once the stages are made. Raises what making them raises: missing weights, first of all."""
        self._worker.ready(self._roles)
        return os.getpid()

    def begin(self, todo: Todo, always: bool) -> tuple[Finished | Begun, dict[str, Any]]:
        """See Worker.begin."""
        return self._worker.begin(todo, share=True, always=always)

    def measure(self, todo: Todo, state: dict[str, Any], name: str, lo: int, hi: int) -> dict[str, Any] | Finished:
        """See Worker.measure."""
        return self._worker.measure(todo, state, name, lo, hi)

    def finish(self, todo: Todo, state: dict[str, Any], *parts: dict[str, Any] | Finished) -> Finished:
        """See Worker.finish; a part that failed has committed the slide already."""
        failed = [part for part in parts if isinstance(part, Finished)]
        return failed[0] if failed else self._worker.finish(todo, state, *parts)  # type: ignore[arg-type]


@dataclass
class _Slide:
    """A slide on its way."""

    todo: Todo
    state: Any = None  # reference to the begun state
    parts: dict[int, Any] = field(default_factory=dict)  # references, by position
    wanted: int = 0


@dataclass(frozen=True)
class _Call:
    """One call an actor can make: begin, measure or finish of a slide."""

    what: str
    slide_id: str
    role: str = "slide"
    lo: int = 0
    hi: int = 0
    position: int = 0


class _Driver:
    """Hands calls to idle actors: first what ends a slide that has begun, then new slides."""

    def __init__(self, session: Session, worker: Worker, memory: int) -> None:
        self._session, self._ray, self._worker, self._memory = session, session.ray, worker, memory
        self._gpu_roles = _gpu_roles(worker) if session.gpus > 0 else ()
        self._idle: dict[str, list[Any]] = {}
        self._calls: dict[str, deque[_Call]] = {}
        self._running: dict[Any, tuple[Any, str, _Call]] = {}
        self._slides: dict[str, _Slide] = {}
        self._deaths: Counter[str] = Counter()
        self._lost_in_a_row = 0
        self._buried: set[Any] = set()
        self._make_pools()

    def run(self, todos: deque[Todo]) -> Iterator[Finished]:
        while (todos or self._slides) and not self._session.stopped.is_set():
            self._hand_out(todos)
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=PATIENCE_S)
            for reference in done:
                yield from self._take(reference)

    def release(self) -> None:
        """End the actors; what they had not committed is a draft, and swept."""
        actors = [actor for idle in self._idle.values() for actor in idle]
        for actor in [*actors, *(actor for actor, _, _ in self._running.values())]:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    # -- pools -------------------------------------------------------------------------------------------------

    def _make_pools(self) -> None:
        """One CPU pool; one pool a GPU role, each actor with its share of a GPU and decode threads of its own."""
        wanted = {"cpu": self._session.workers} | {role: max(1, int(self._session.gpus)) for role in self._gpu_roles}
        actors = {pool: [self._actor(pool) for _ in range(count)] for pool, count in wanted.items()}
        try:
            self._ray.get([actor.ready.remote() for some in actors.values() for actor in some], timeout=START_S)
        except self._ray.exceptions.RayError as error:
            raise _cause(error) from error
        self._idle = {pool: some * _calls_at_once(pool) for pool, some in actors.items()}
        self._calls = {pool: deque() for pool in actors}

    def _actor(self, pool: str) -> Any:
        gpu = pool != "cpu"
        fraction = self._session.gpus / max(1, int(self._session.gpus)) / len(self._gpu_roles) if gpu else 0
        limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if not gpu:
            limits["CUDA_VISIBLE_DEVICES"] = ""
        # Ray counts CPUs to place workers; a GPU actor brings its own threads and takes no worker's place
        options = {
            "num_cpus": 0 if gpu else 1,
            "num_gpus": fraction,
            "max_restarts": 0,
            "max_concurrency": _calls_at_once(pool),
            "runtime_env": {"env_vars": limits},
        }
        sharing = len(self._gpu_roles) * max(1, int(self._session.gpus))
        threads = max(1, self._session.workers // sharing) if gpu else 0
        worker = replace(self._worker, threads=threads)
        roles = (pool,) if gpu else tuple(one for one in _roles(worker) if one not in self._gpu_roles)
        return self._ray.remote(Actor).options(**options).remote(worker, roles, self._memory, gpu)

    # -- calls -------------------------------------------------------------------------------------------------

    def _hand_out(self, todos: deque[Todo]) -> None:
        for pool, idle in self._idle.items():
            calls = self._calls[pool]
            while idle and (calls or (pool == "cpu" and todos)):
                if not calls:
                    todo = todos.popleft()
                    self._slides[todo.slide_id] = _Slide(todo)
                    calls.append(_Call("begin", todo.slide_id))
                self._start(idle.pop(), pool, calls.popleft())

    def _start(self, actor: Any, pool: str, call: _Call) -> None:
        slide = self._slides[call.slide_id]
        if call.what == "begin":
            reference, slide.state = actor.begin.options(num_returns=2).remote(slide.todo, bool(self._gpu_roles))
        elif call.what == "measure":
            reference = actor.measure.remote(slide.todo, slide.state, call.role, call.lo, call.hi)
        else:
            parts = [slide.parts[k] for k in sorted(slide.parts)]
            reference = actor.finish.remote(slide.todo, slide.state, *parts)
        self._running[reference] = (actor, pool, call)

    def _take(self, reference: Any) -> Iterator[Finished]:
        actor, pool, call = self._running.pop(reference)
        slide = self._slides.get(call.slide_id)
        try:
            result = self._ray.get(reference) if call.what != "measure" else self._finished_part(reference)
        except self._ray.exceptions.RayActorError as error:
            self._bury(actor, pool, error)
            yield from self._lost(call, slide)
            return
        except self._ray.exceptions.RayError as error:
            raise _cause(error) from error
        self._idle[pool].append(actor)
        self._lost_in_a_row = 0
        if slide is None:
            return
        if isinstance(result, Finished):
            self._forget(call.slide_id)
            yield result
        elif isinstance(result, Begun):
            self._spread(slide, result)
        else:
            slide.parts[call.position] = reference
            if len(slide.parts) == slide.wanted:
                self._calls["cpu"].appendleft(_Call("finish", call.slide_id))

    def _finished_part(self, reference: Any) -> Finished | None:
        """A part stays where it is, unless it says that the slide failed."""
        result = self._ray.get(reference)
        return result if isinstance(result, Finished) else None

    def _spread(self, slide: _Slide, begun: Begun) -> None:
        asides = [(stage.name, 0, 0) for stage in chosen(self._worker.context.bundle) if stage.over == "aside"]
        calls = [*begun.ranges, *asides]
        slide.wanted = len(calls)
        for position, (role, lo, hi) in enumerate(calls):
            pool = role if role in self._gpu_roles else "cpu"
            self._calls[pool].append(_Call("measure", begun.slide_id, role, lo, hi, position))

    # -- losses ------------------------------------------------------------------------------------------------

    def _bury(self, actor: Any, pool: str, error: Exception) -> None:
        """Put a new actor in a dead one's place, once: it may have died under two calls."""
        if actor in self._buried:
            return
        self._buried.add(actor)
        self._idle[pool] = [one for one in self._idle[pool] if one != actor]
        self._idle[pool] += [self._replace(pool, error)] * _calls_at_once(pool)

    def _replace(self, pool: str, error: Exception) -> Any:
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= LOST_IN_A_ROW or not self._ray.is_initialized():
            raise StoreError(
                "Ray lost its workers one after the other", None, "run the same command again: it goes on from here"
            ) from error
        return self._actor(pool)

    def _lost(self, call: _Call, slide: _Slide | None) -> Iterator[Finished]:
        """The worker died under a call: try the call again, twice; then the slide is lost, not the batch."""
        if slide is None:
            return
        self._deaths[call.slide_id] += 1
        if self._deaths[call.slide_id] <= RETRIES:
            self._calls["cpu" if call.role not in self._gpu_roles else call.role].appendleft(call)
            return
        self._forget(call.slide_id)
        tries = RETRIES + 1
        error = SlideError(
            "worker-lost", slide.todo.source.path, f"its worker died {tries} times while it worked on it"
        )
        yield self._worker.fail(slide.todo, error)

    def _forget(self, slide_id: str) -> None:
        self._slides.pop(slide_id, None)
        for pool, calls in self._calls.items():
            self._calls[pool] = deque(call for call in calls if call.slide_id != slide_id)


def _calls_at_once(pool: str) -> int:
    return 1 if pool == "cpu" else GPU_CALLS


def _roles(worker: Worker) -> tuple[str, ...]:
    """Names by which `Worker.ready` makes all stages: grids, and stages of the whole slide."""
    stages = chosen(worker.context.bundle)
    return tuple(dict.fromkeys(one.name if one.over in ("slide", "aside") else one.over for one in stages))


def _gpu_roles(worker: Worker) -> tuple[str, ...]:
    """Roles whose models want a GPU: embedding, a patch resolution, thumbnails. The stain encoder wants none."""
    only_stain = set(worker.context.plan.encoders) == {"stain"}
    stages = [one for one in chosen(worker.context.bundle) if one.gpu and not (one.name == "embed" and only_stain)]
    return tuple(dict.fromkeys(one.name if one.over == "aside" else one.over for one in stages))


def _best_device() -> str:
    from her2batch.models.device import best_device  # torch: only where a GPU is at hand

    return best_device()


def _limit(memory: int | None) -> None:
    """Cap what this process may hold: beyond, an allocation fails and the slide is `out-of-memory`."""
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.RLIM_INFINITY))


def _cause(error: Exception) -> Exception:
    """What really stopped a worker: one of ours, the disk, or Ray's own word."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Her2BatchError):
        return cause
    if isinstance(cause, OSError):
        return StoreError(f"the store can't be written to: {cause}", None, "free disk space, then run again")
    return StoreError(f"a worker stopped: {error}", None, "run the same command again: it goes on from here")
