"""Distributes slides over Ray actors.

An actor decodes tiles, runs the models and writes the results, so that no pixels cross Ray. What travels is a slide's
job, the SlideState of a slide that was begun, and the columns computed from its tiles.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from her2batch.errors import HeadLost, Her2BatchError, SlideError, StoreError, one_line
from her2batch.pipeline.cost_model import CPU_TILES_S, OTHER_ENCODER
from her2batch.pipeline.growth.added_encoders import worker_for
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.queue import JobSource
from her2batch.pipeline.tile_reader import TILES_PER_BATCH
from her2batch.pipeline.worker import SHARED_FROM_BATCHES, PartialSlide, SlideResult, SlideWorker
from her2batch.runtime.actor import calls_at_once, create_actor, gpu_roles
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.telemetry import RunMetrics
from her2batch.settings import Plan, Resources

RETRIES = 2
"""A slide that loses its worker is tried again this often; then it fails with the code `worker-lost`."""

POLL_S = 0.5
"""Longest wait for running calls before a stop is noticed."""

START_TIMEOUT_S = 600
"""Seconds that a run waits without any worker: they load their models, or the cluster is starting a node."""

NODE_CHECK_S = 5.0
"""Seconds between two looks for new nodes of the cluster."""

SLACK = 5
"""Factor by which a machine's cores may be slower, or busier, than those that the costs were measured on."""

LOST_IN_A_ROW = 12
"""Workers lost with no slide finished between them, from which Ray itself is taken to be gone."""

RUN_AGAIN = "run the same command again to continue"
FREE_SPACE = "make sure that the disk with Ray's files (/tmp on this machine) has free space"


def run_on_ray(
    session: RaySession, worker: SlideWorker, source: JobSource, resources: Resources, metrics: RunMetrics
) -> Iterator[SlideResult]:
    """Process slides on Ray, and yield them in the order in which they finish.

    Raises StoreError when Ray is lost, and what `SlideWorker.ready` raises.
    """
    scheduler = _Scheduler(session, worker, resources, metrics)
    try:
        yield from scheduler.run(source)
    except HeadLost:
        raise
    except BaseException:
        scheduler.release()
        raise
    scheduler.release()


@dataclass
class _ActiveSlide:
    """A slide that is being processed.

    state: reference to its SlideState, once it was begun.  parts: references to its SlideParts, by position; `n_parts`
    are needed before it can be finished.
    """

    job: SlideJob
    state: Any = None
    parts: dict[int, Any] = field(default_factory=dict)
    n_parts: int = 0


@dataclass(frozen=True)
class _Call:
    """One call of an actor: `begin`, `measure` or `finish` of a slide."""

    method: str
    slide_id: str
    role: str = "slide"
    lo: int = 0
    hi: int = 0
    position: int = 0


class _RunningCall(NamedTuple):
    """A call that an actor works on.  since: on the monotonic clock."""

    actor: Any
    pool: str
    call: _Call
    slide: _ActiveSlide
    since: float


class _Scheduler:
    """Assigns calls to idle actors: first those that finish a slide that was begun, then new slides.

    There is one pool of CPU actors, and one pool for each role that uses GPUs. An actor gets calls once it has reported
    that it is ready; none waits for an actor that is starting or being replaced. So nodes may come and go.
    """

    def __init__(self, session: RaySession, worker: SlideWorker, resources: Resources, metrics: RunMetrics) -> None:
        self._session, self._ray, self._worker, self._metrics = session, session.ray, worker, metrics
        self._memory, self._patience = resources.worker_memory, step_limit(worker.context.plan, resources.patience)
        self._gpu_roles = gpu_roles(worker) if session.gpus > 0 else ()
        self._pool_sizes = {"cpu": session.workers} | {role: max(1, int(session.gpus)) for role in self._gpu_roles}
        self._starting: dict[Any, tuple[Any, str]] = {}
        self._node_of_actor: dict[Any, str] = {}  # of every actor that has reported ready
        self._idle: dict[str, list[Any]] = {pool: [] for pool in self._pool_sizes}
        self._calls: dict[str, deque[_Call]] = {pool: deque() for pool in self._pool_sizes}
        self._running: dict[Any, _RunningCall] = {}
        self._overdue: set[Any] = set()
        self._slides: dict[str, _ActiveSlide] = {}
        self._postponed: list[SlideJob] = []
        self._deaths: Counter[str] = Counter()
        self._lost_in_a_row = 0
        self._grown_at, self._without_worker_since = 0.0, time.monotonic()
        for pool, count in self._pool_sizes.items():
            for _ in range(count):
                self._start_actor(pool)

    def run(self, source: JobSource) -> Iterator[SlideResult]:
        while (self._slides or self._postponed or not source.is_exhausted()) and not self._session.stopped.is_set():
            self._session.check()
            self._use_new_nodes()
            source.refresh()
            self._end_overdue()
            self._assign_calls(source)
            references = [*self._running, *self._starting]
            if not references:
                self._session.stopped.wait(POLL_S)
                continue
            done, _ = self._ray.wait(references, num_returns=1, timeout=POLL_S)
            for reference in done:
                if reference in self._starting:
                    self._accept_actor(reference)
                else:
                    yield from self._collect(reference)

    def release(self) -> None:
        """End the actors. Slides that are not committed are drafts, which the next run removes."""
        actors = {actor for idle in self._idle.values() for actor in idle}
        actors |= {running.actor for running in self._running.values()}
        actors |= {actor for actor, _ in self._starting.values()}
        for actor in actors:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    # -- pools -------------------------------------------------------------------------------------------------

    def _start_actor(self, pool: str) -> None:
        """Start one more actor of a pool."""
        gpu_role = None if pool == "cpu" else pool
        actor = create_actor(self._session, self._worker, gpu_role, self._gpu_roles, self._memory)
        self._starting[actor.ready.remote()] = (actor, pool)

    def _accept_actor(self, reference: Any) -> None:
        """Accept an actor that is ready, or replace one that was lost before. Raises what making its stages raised."""
        actor, pool = self._starting.pop(reference)
        try:
            self._node_of_actor[actor] = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._count_loss(error)
            self._start_actor(pool)
            return
        except self._ray.exceptions.RayError as error:
            raise _root_error(error) from error
        self._idle[pool] += [actor] * calls_at_once(pool)

    def _use_new_nodes(self) -> None:
        """Start actors on new nodes. Raises StoreError when there has been no worker at all for too long."""
        at = time.monotonic()
        if at - self._grown_at < NODE_CHECK_S:
            return
        self._grown_at = at
        self._metrics.calls_waiting({pool: len(calls) for pool, calls in self._calls.items()})
        if self._node_of_actor.keys() - self._lost_actors():
            self._without_worker_since = at
        elif at - self._without_worker_since > START_TIMEOUT_S:
            what = f"no worker could be started in {START_TIMEOUT_S} s"
            raise StoreError(what, None, "make sure that the cluster has free CPUs (ray status), then run again")
        slots = self._session.worker_slots()
        while self._pool_sizes["cpu"] < slots:
            self._pool_sizes["cpu"] += 1
            self._start_actor("cpu")

    def _lost_actors(self) -> set[Any]:
        """Actors whose node has gone."""
        nodes = self._session.nodes()
        return {actor for actor, node in self._node_of_actor.items() if node not in nodes}

    # -- calls -------------------------------------------------------------------------------------------------

    def _assign_calls(self, source: JobSource) -> None:
        for pool, idle in self._idle.items():
            calls = self._calls[pool]
            while idle:
                if not calls and (pool != "cpu" or not self._begin_next(source, calls)):
                    break
                self._submit(idle.pop(), pool, calls.popleft())

    def _begin_next(self, source: JobSource, calls: deque[_Call]) -> bool:
        """Begin the next slide, if there is one."""
        postponed = [job for job in self._postponed if job.slide_id not in self._slides]
        job = postponed[0] if postponed else source.next_job()
        if job is None:
            return False
        self._postponed = [other for other in self._postponed if other is not job]
        if job.slide_id in self._slides:  # its file has changed while it is processed: that result will not count
            self._postponed.append(job)
            return False
        self._slides[job.slide_id] = _ActiveSlide(job)
        calls.append(_Call("begin", job.slide_id))
        return True

    def _submit(self, actor: Any, pool: str, call: _Call) -> None:
        slide = self._slides[call.slide_id]
        if call.method == "begin":
            reference, slide.state = actor.begin.options(num_returns=2).remote(slide.job, bool(self._gpu_roles))
        elif call.method == "measure":
            reference = actor.measure.remote(slide.job, slide.state, call.role, call.lo, call.hi)
        else:
            parts = [slide.parts[k] for k in sorted(slide.parts)]
            reference = actor.finish.remote(slide.job, slide.state, *parts)
        self._running[reference] = _RunningCall(actor, pool, call, slide, time.monotonic())

    def _collect(self, reference: Any) -> Iterator[SlideResult]:
        actor, pool, call, slide, _ = self._running.pop(reference)
        overdue = reference in self._overdue
        self._overdue.discard(reference)
        node = self._node_of_actor.get(actor)
        current = self._slides.get(call.slide_id) is slide
        ray_errors = self._ray.exceptions
        try:
            result = self._ray.get(reference) if call.method != "measure" else self._finished_part(reference)
        except ray_errors.RayActorError as error:
            self._replace_actor(actor, pool, error)
            if current and overdue:
                yield self._fail_slide(slide, SlideError("timeout", slide.job.source.path, self._timeout_text(call)))
            elif current:
                yield from self._retry_or_fail(call, slide, node)
            return
        except (ray_errors.ObjectLostError, ray_errors.OwnerDiedError) as error:
            self._idle[pool].append(actor)
            if current:
                yield from self._restart_slide(slide, error)
            return
        except ray_errors.RayError as error:
            raise _root_error(error) from error
        self._idle[pool].append(actor)
        self._lost_in_a_row = 0
        if not current:
            return
        if isinstance(result, SlideResult):
            self._drop_slide(call.slide_id)
            yield result
        elif isinstance(result, PartialSlide):
            self._share_slide(slide, result)
        else:
            slide.parts[call.position] = reference
            if len(slide.parts) == slide.n_parts:
                self._calls["cpu"].appendleft(_Call("finish", call.slide_id))

    def _finished_part(self, reference: Any) -> SlideResult | None:
        """The result if the slide has failed; a part stays where it is, until the slide is finished."""
        result = self._ray.get(reference)
        return result if isinstance(result, SlideResult) else None

    def _share_slide(self, slide: _ActiveSlide, begun: PartialSlide) -> None:
        slide.n_parts = len(begun.calls)
        if not begun.calls:  # a slide without tiles
            self._calls["cpu"].appendleft(_Call("finish", begun.slide_id))
        for position, (role, lo, hi) in enumerate(begun.calls):
            pool = role if role in self._gpu_roles else "cpu"
            self._calls[pool].append(_Call("measure", begun.slide_id, role, lo, hi, position))

    # -- losses ------------------------------------------------------------------------------------------------

    def _replace_actor(self, actor: Any, pool: str, error: Exception) -> None:
        """Start a successor of a dead actor, once, though it may have died under two calls."""
        if self._node_of_actor.pop(actor, None) is None:
            return
        self._idle[pool] = [other for other in self._idle[pool] if other != actor]
        self._count_loss(error)
        self._start_actor(pool)

    def _count_loss(self, error: Exception) -> None:
        self._lost_in_a_row += 1
        most = max(LOST_IN_A_ROW, 2 * sum(self._pool_sizes.values()))
        if self._lost_in_a_row >= most or not self._ray.is_initialized():
            remedy = f"{FREE_SPACE}, then {RUN_AGAIN}"
            raise StoreError("Ray has lost its workers one after the other", None, remedy) from error

    def _restart_slide(self, slide: _ActiveSlide, error: Exception) -> Iterator[SlideResult]:
        """Begin a slide anew whose results so far were lost with their node."""
        self._count_loss(error)
        self._drop_slide(slide.job.slide_id)
        self._slides[slide.job.slide_id] = _ActiveSlide(slide.job)
        self._calls["cpu"].appendleft(_Call("begin", slide.job.slide_id))
        yield from ()

    def _retry_or_fail(self, call: _Call, slide: _ActiveSlide, node: str | None) -> Iterator[SlideResult]:
        """Repeat a call whose worker died; after RETRIES the slide fails, and the batch goes on.

        node: of the worker. If the whole node has gone, this does not count against the slide.
        """
        self._deaths[call.slide_id] += node in self._session.nodes()
        if self._deaths[call.slide_id] <= RETRIES:
            self._calls["cpu" if call.role not in self._gpu_roles else call.role].appendleft(call)
            return
        what = f"its worker died {RETRIES + 1} times while it processed the slide"
        yield self._fail_slide(slide, SlideError("worker-lost", slide.job.source.path, what))

    def _end_overdue(self) -> None:
        """End the workers of calls that take too long: nothing inside a process can end a library that hangs."""
        at = time.monotonic()
        for reference, running in self._running.items():
            if at - running.since > self._patience and reference not in self._overdue:
                self._overdue.add(reference)
                self._ray.kill(running.actor)

    def _timeout_text(self, call: _Call) -> str:
        return f"its step '{call.method}' did not end within {self._patience:.0f} s"

    def _fail_slide(self, slide: _ActiveSlide, error: SlideError) -> SlideResult:
        self._drop_slide(slide.job.slide_id)
        return worker_for(self._worker, slide.job).fail(slide.job, error)

    def _drop_slide(self, slide_id: str) -> None:
        self._slides.pop(slide_id, None)
        for pool, calls in self._calls.items():
            self._calls[pool] = deque(call for call in calls if call.slide_id != slide_id)


def step_limit(plan: Plan, patience: float) -> float:
    """Seconds that a call may take: what the user allows, and SLACK times what its encoders take on a core."""
    tile_s = sum(1 / CPU_TILES_S.get(name, OTHER_ENCODER[0]) for name in plan.encoders if name != "stain")
    return patience + SLACK * SHARED_FROM_BATCHES * TILES_PER_BATCH * tile_s


def _root_error(error: Exception) -> Exception:
    """The error that stopped a worker: one of this package, a full disk, or the message of Ray, in one line."""
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    while isinstance(cause := getattr(error, "cause", None), Exception):
        error = cause
    if isinstance(error, Her2BatchError):
        return error
    if isinstance(error, OSError):
        return StoreError(f"the store cannot be written to: {error}", None, "free disk space, then run again")
    if isinstance(error, (OutOfDiskError, ObjectStoreFullError)):
        return StoreError("Ray's object store is full, and so is its disk", None, f"{FREE_SPACE}, then {RUN_AGAIN}")
    return StoreError(f"a worker stopped: {one_line(error)}", None, RUN_AGAIN)
