"""Who does it when: slides over Ray actors.

The actors are fused: the process that decodes runs the models and writes, so no pixel crosses Ray. What travels is a
slide's name, the small state of a begun one, and the arrays of its tiles.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from her2batch.errors import HeadLost, Her2BatchError, SlideError, StoreError, one_line
from her2batch.pipeline.cost_model import CPU_TILES_S, OTHER_ENCODER
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.queue import JobSource
from her2batch.pipeline.stages import active_stages
from her2batch.pipeline.tile_reader import TILES_PER_BATCH
from her2batch.pipeline.worker import SHARED_FROM_BATCHES, PartialSlide, SlideResult, SlideWorker
from her2batch.plugins import registered_rows
from her2batch.runtime.actor import Actor
from her2batch.runtime.ray_session import READER_RESOURCE, RaySession
from her2batch.runtime.telemetry import Meters
from her2batch.settings import Plan, Resources

RETRIES = 2
"""A slide that loses its worker is tried again this often; then it is `worker-lost`."""

PATIENCE_S = 0.5
"""How long one look at the running calls may take before a stop is noticed."""

START_S = 600
"""How long a run waits while no worker is there: they load their models, or the cluster has yet to bring up a node."""

GROW_S = 5.0
"""How often a cluster is asked whether it has grown."""

A_LITTLE = 0.001
"""Of a custom resource: enough to choose the node, and never short."""

GPU_CALLS = 2
"""Calls that a GPU worker has at once: while the GPU works on one, the next slide is opened and its first batch
decoded, so that it waits for neither, nor for Ray."""

SLACK = 5
"""A machine's cores may be this much slower than the one that costs were measured on, or as busy."""

LOST_IN_A_ROW = 12
"""Workers lost with no slide finished between: it is not the slides, Ray itself is gone."""

AGAIN = "run the same command again: it goes on from here"
ROOM = "see that the disk of Ray's files (/tmp on this machine) has room"


def run_on_ray(
    session: RaySession, worker: SlideWorker, source: JobSource, resources: Resources, meters: Meters
) -> Iterator[SlideResult]:
    """The same on Ray, in the order slides finish. Raises StoreError when Ray is lost, and what `ready` raises."""
    driver = _Scheduler(session, worker, resources, meters)
    try:
        yield from driver.run(source)
    except HeadLost:
        raise
    except BaseException:
        driver.release()
        raise
    driver.release()


@dataclass
class _ActiveSlide:
    """A slide on its way."""

    job: SlideJob
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


class _Running(NamedTuple):
    """A call that an actor works on. since: monotonic."""

    actor: Any
    pool: str
    call: _Call
    slide: _ActiveSlide
    since: float


class _Scheduler:
    """Hands calls to idle actors: first what ends a slide that has begun, then new slides.

    Actors are there when they say that they are ready: until then, and while a lost one's successor waits for a place,
    no call waits for them. So nodes may come and go.
    """

    def __init__(self, session: RaySession, worker: SlideWorker, resources: Resources, meters: Meters) -> None:
        self._session, self._ray, self._worker, self._meters = session, session.ray, worker, meters
        self._memory, self._patience = resources.worker_memory, step_limit(worker.context.plan, resources.patience)
        self._gpu_roles = _gpu_roles(worker) if session.gpus > 0 else ()
        self._pool_sizes = {"cpu": session.workers} | {role: max(1, int(session.gpus)) for role in self._gpu_roles}
        self._starting: dict[Any, tuple[Any, str]] = {}
        self._node_of_actor: dict[Any, str] = {}  # of every actor that has been ready
        self._idle: dict[str, list[Any]] = {pool: [] for pool in self._pool_sizes}
        self._calls: dict[str, deque[_Call]] = {pool: deque() for pool in self._pool_sizes}
        self._running: dict[Any, _Running] = {}
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
                self._session.stopped.wait(PATIENCE_S)
                continue
            done, _ = self._ray.wait(references, num_returns=1, timeout=PATIENCE_S)
            for reference in done:
                if reference in self._starting:
                    self._accept_actor(reference)
                else:
                    yield from self._collect(reference)

    def release(self) -> None:
        """End the actors; what they had not committed is a draft, and swept."""
        actors = {actor for idle in self._idle.values() for actor in idle}
        actors |= {one.actor for one in self._running.values()} | {actor for actor, _ in self._starting.values()}
        for actor in actors:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    # -- pools -------------------------------------------------------------------------------------------------

    def _start_actor(self, pool: str) -> None:
        """Ask for one more actor: one CPU pool; one pool a GPU role, each actor with its share of a GPU."""
        actor = self._actor(pool)
        self._starting[actor.ready.remote()] = (actor, pool)

    def _accept_actor(self, reference: Any) -> None:
        """An actor is ready, or was lost before it was. Raises what making its stages raised."""
        actor, pool = self._starting.pop(reference)
        try:
            self._node_of_actor[actor] = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._count_loss(error)
            self._start_actor(pool)
            return
        except self._ray.exceptions.RayError as error:
            raise _cause(error) from error
        self._idle[pool] += [actor] * _calls_at_once(pool)

    def _use_new_nodes(self) -> None:
        """Use the places of nodes that have come; say so when there is no worker at all for too long."""
        at = time.monotonic()
        if at - self._grown_at < GROW_S:
            return
        self._grown_at = at
        self._meters.queues({pool: len(calls) for pool, calls in self._calls.items()})
        if self._node_of_actor.keys() - self._lost_actors():
            self._without_worker_since = at
        elif at - self._without_worker_since > START_S:
            what = f"no worker could be started in {START_S} s"
            raise StoreError(what, None, "see that the cluster has free CPUs (ray status), then run again")
        places = self._session.places()
        while self._pool_sizes["cpu"] < places:
            self._pool_sizes["cpu"] += 1
            self._start_actor("cpu")

    def _lost_actors(self) -> set[Any]:
        """Actors whose node has gone."""
        there = self._session.nodes()
        return {actor for actor, node in self._node_of_actor.items() if node not in there}

    def _actor(self, pool: str) -> Any:
        gpu = pool != "cpu"
        fraction = self._session.gpus / max(1, int(self._session.gpus)) / len(self._gpu_roles) if gpu else 0
        limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if not gpu:
            limits["CUDA_VISIBLE_DEVICES"] = ""
        # Ray counts CPUs to place workers; a GPU actor brings its own threads and takes no worker's place
        options: dict[str, Any] = {
            "num_cpus": 0 if gpu else 1,
            "num_gpus": fraction,
            "max_restarts": 0,
            "max_concurrency": _calls_at_once(pool),
            "runtime_env": {"env_vars": limits},
        }
        if not gpu and self._session.has(READER_RESOURCE):
            options["resources"] = {READER_RESOURCE: A_LITTLE}
        sharing = len(self._gpu_roles) * max(1, int(self._session.gpus))
        threads = max(1, self._session.workers // sharing) if gpu else 0
        worker = replace(self._worker, threads=threads)
        roles = (pool,) if gpu else tuple(one for one in _roles(worker) if one not in self._gpu_roles)
        start = self._ray.remote(Actor).options(**options).remote
        return start(worker, roles, self._memory, gpu, registered_rows())

    # -- calls -------------------------------------------------------------------------------------------------

    def _assign_calls(self, source: JobSource) -> None:
        for pool, idle in self._idle.items():
            calls = self._calls[pool]
            while idle:
                if not calls and (pool != "cpu" or not self._begin_next(source, calls)):
                    break
                self._submit(idle.pop(), pool, calls.popleft())

    def _begin_next(self, source: JobSource, calls: deque[_Call]) -> bool:
        """Begin a further slide, if there is one."""
        later = [job for job in self._postponed if job.slide_id not in self._slides]
        job = later[0] if later else source.next_job()
        if job is None:
            return False
        self._postponed = [one for one in self._postponed if one is not job]
        if job.slide_id in self._slides:  # its file changed while it was read: what is read now comes to nothing
            self._postponed.append(job)
            return False
        self._slides[job.slide_id] = _ActiveSlide(job)
        calls.append(_Call("begin", job.slide_id))
        return True

    def _submit(self, actor: Any, pool: str, call: _Call) -> None:
        slide = self._slides[call.slide_id]
        if call.what == "begin":
            reference, slide.state = actor.begin.options(num_returns=2).remote(slide.job, bool(self._gpu_roles))
        elif call.what == "measure":
            reference = actor.measure.remote(slide.job, slide.state, call.role, call.lo, call.hi)
        else:
            parts = [slide.parts[k] for k in sorted(slide.parts)]
            reference = actor.finish.remote(slide.job, slide.state, *parts)
        self._running[reference] = _Running(actor, pool, call, slide, time.monotonic())

    def _collect(self, reference: Any) -> Iterator[SlideResult]:
        actor, pool, call, slide, _ = self._running.pop(reference)
        overdue = reference in self._overdue
        self._overdue.discard(reference)
        node = self._node_of_actor.get(actor)
        current = self._slides.get(call.slide_id) is slide
        lost = self._ray.exceptions
        try:
            result = self._ray.get(reference) if call.what != "measure" else self._finished_part(reference)
        except lost.RayActorError as error:
            self._replace_actor(actor, pool, error)
            if current and overdue:
                yield self._fail_slide(slide, SlideError("timeout", slide.job.source.path, self._words(call)))
            elif current:
                yield from self._retry_or_fail(call, slide, node)
            return
        except (lost.ObjectLostError, lost.OwnerDiedError) as error:
            self._idle[pool].append(actor)
            if current:
                yield from self._restart_slide(slide, error)
            return
        except lost.RayError as error:
            raise _cause(error) from error
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
            if len(slide.parts) == slide.wanted:
                self._calls["cpu"].appendleft(_Call("finish", call.slide_id))

    def _finished_part(self, reference: Any) -> SlideResult | None:
        """A part stays where it is, unless it says that the slide failed."""
        result = self._ray.get(reference)
        return result if isinstance(result, SlideResult) else None

    def _share_slide(self, slide: _ActiveSlide, begun: PartialSlide) -> None:
        slide.wanted = len(begun.calls)
        for position, (role, lo, hi) in enumerate(begun.calls):
            pool = role if role in self._gpu_roles else "cpu"
            self._calls[pool].append(_Call("measure", begun.slide_id, role, lo, hi, position))

    # -- losses ------------------------------------------------------------------------------------------------

    def _replace_actor(self, actor: Any, pool: str, error: Exception) -> None:
        """Hire a successor of a dead actor, once: it may have died under two calls."""
        if self._node_of_actor.pop(actor, None) is None:
            return
        self._idle[pool] = [one for one in self._idle[pool] if one != actor]
        self._count_loss(error)
        self._start_actor(pool)

    def _count_loss(self, error: Exception) -> None:
        self._lost_in_a_row += 1
        if (
            self._lost_in_a_row >= max(LOST_IN_A_ROW, 2 * sum(self._pool_sizes.values()))
            or not self._ray.is_initialized()
        ):
            raise StoreError("Ray lost its workers one after the other", None, f"{ROOM}, then {AGAIN}") from error

    def _restart_slide(self, slide: _ActiveSlide, error: Exception) -> Iterator[SlideResult]:
        """What a slide's other calls had left went with its node: start it anew."""
        self._count_loss(error)
        self._drop_slide(slide.job.slide_id)
        self._slides[slide.job.slide_id] = _ActiveSlide(slide.job)
        self._calls["cpu"].appendleft(_Call("begin", slide.job.slide_id))
        yield from ()

    def _retry_or_fail(self, call: _Call, slide: _ActiveSlide, node: str | None) -> Iterator[SlideResult]:
        """The worker died under a call: try the call again, twice; then the slide is lost, not the batch.

        node: where it was; one that has gone altogether is no fault of the slide's.
        """
        self._deaths[call.slide_id] += node in self._session.nodes()
        if self._deaths[call.slide_id] <= RETRIES:
            self._calls["cpu" if call.role not in self._gpu_roles else call.role].appendleft(call)
            return
        what = f"its worker died {RETRIES + 1} times while it worked on it"
        yield self._fail_slide(slide, SlideError("worker-lost", slide.job.source.path, what))

    def _end_overdue(self) -> None:
        """End the workers of calls that go on for too long: a library may hang where nothing in its process helps."""
        at = time.monotonic()
        for reference, one in self._running.items():
            if at - one.since > self._patience and reference not in self._overdue:
                self._overdue.add(reference)
                self._ray.kill(one.actor)

    def _words(self, call: _Call) -> str:
        return f"its step '{call.what}' did not come to an end in {self._patience:.0f} s"

    def _fail_slide(self, slide: _ActiveSlide, error: SlideError) -> SlideResult:
        self._drop_slide(slide.job.slide_id)
        return self._worker.fail(slide.job, error)

    def _drop_slide(self, slide_id: str) -> None:
        self._slides.pop(slide_id, None)
        for pool, calls in self._calls.items():
            self._calls[pool] = deque(call for call in calls if call.slide_id != slide_id)


def step_limit(plan: Plan, patience: float) -> float:
    """Seconds a call may take: what the user allows, and SLACK times what its encoders take on a core."""
    tile_s = sum(1 / CPU_TILES_S.get(name, OTHER_ENCODER[0]) for name in plan.encoders if name != "stain")
    return patience + SLACK * SHARED_FROM_BATCHES * TILES_PER_BATCH * tile_s


def _calls_at_once(pool: str) -> int:
    return 1 if pool == "cpu" else GPU_CALLS


def _roles(worker: SlideWorker) -> tuple[str, ...]:
    """Roles of all stages."""
    return tuple(dict.fromkeys(stage.role for stage in active_stages(worker.context)))


def _gpu_roles(worker: SlideWorker) -> tuple[str, ...]:
    """Roles whose models want a GPU: embedding, a patch resolution, thumbnails. The stain encoder wants none."""
    context = worker.context
    return tuple(dict.fromkeys(stage.role for stage in active_stages(context) if stage.gpu(context)))


def _cause(error: Exception) -> Exception:
    """What really stopped a worker: one of ours, a full disk, or Ray's own word, which fills many lines."""
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    while isinstance(cause := getattr(error, "cause", None), Exception):
        error = cause
    if isinstance(error, Her2BatchError):
        return error
    if isinstance(error, OSError):
        return StoreError(f"the store can't be written to: {error}", None, "free disk space, then run again")
    if isinstance(error, (OutOfDiskError, ObjectStoreFullError)):
        return StoreError("Ray's object store is full, and so is its disk", None, f"{ROOM}, then {AGAIN}")
    return StoreError(f"a worker stopped: {one_line(error)}", None, AGAIN)
