"""Ray: connect, what it may use, stop. Nothing else starts it.

Locally every port is bound to loopback and asks for a token; Ray's own files live in a folder of ours that goes with
the run, for Ray itself never removes them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil

from her2batch.errors import STOPPED, HeadLost, InputError, StoreError, one_line
from her2batch.pipeline.cost_model import cores
from her2batch.settings import Resources

OBJECT_STORE = 200_000_000
"""Bytes: pixels don't cross it, embeddings of split slides do."""

RAY_FOLDER = Path("/tmp")  # noqa: S108  (mkdtemp makes a folder of our own in it)

LINGERS_S = 120.0
"""Ray's agents outlive a killed driver by a minute."""

PING_S = 5.0

PULSE_S, PULSES = 2.0, 5
"""A cluster's head is asked for a sign of life this often; so many misses in a row, and it is gone."""

LOOK_S, LEAVES_S = 0.5, 10.0
"""How often Ray's parts are looked at; how long a run may go on without one of them."""

PARTS = ("raylet", "gcs_server")
"""Ray's own processes that nothing goes on without."""

PART_LOST, GOES_ON = "a part of Ray on this machine has died", "the same command goes on from what is committed"

SIGNALS = (signal.SIGINT, signal.SIGTERM)

READER = "reader"
"""Custom resource of nodes that read and write. Where a cluster has it, slides are opened on those nodes alone."""

NO_CLUSTER = "start one with `ray start --head`, or leave --address away to use this machine"


@dataclass
class RaySession:
    """A connection to Ray. head: HOST:PORT of a cluster's head.  grows: take what further nodes bring."""

    ray: ModuleType
    workers: int
    gpus: float
    stopped: threading.Event = field(default_factory=threading.Event)
    head: str | None = None
    grows: bool = False
    parts: tuple[psutil.Process, ...] = ()  # of Ray on this machine, where we started it
    _checked: float = -PULSE_S  # monotonic clock

    def nodes(self) -> dict[str, dict[str, float]]:
        """The nodes that are there, by id: what each has. Raises HeadLost.

        The head is knocked at anew each time: a question to one that died since the last knock would hang.
        """
        self._checked = -PULSE_S
        self.check()
        return {one["NodeID"]: one["Resources"] for one in self.ray.nodes() if one["Alive"]}

    def places(self) -> int:
        """Workers there is room for now."""
        return max(self.workers, _places(self.nodes())) if self.grows else self.workers

    def has(self, resource: str) -> bool:
        """Whether any node has a custom resource."""
        return any(resource in one for one in self.nodes().values())

    def check(self) -> None:
        """Raise HeadLost when the cluster's head has gone, or a part of our own Ray.

        Ray itself would wait a minute, then end the process, or wait for a worker that nobody can start.
        """
        if not all(map(_runs, self.parts)):
            raise HeadLost(PART_LOST, None, GOES_ON)
        at = time.monotonic()
        if self.head is None or at - self._checked < PULSE_S:
            return
        for miss in range(PULSES):
            try:
                _ping_head(self.head)
                self._checked = time.monotonic()
                return
            except OSError as error:
                if miss == PULSES - 1:
                    remedy = "start the cluster again, then the same command: it goes on from what is committed"
                    raise HeadLost(
                        f"the head of the Ray cluster at {self.head} is gone ({error})", None, remedy
                    ) from error
            self.stopped.wait(PULSE_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _parts() -> tuple[psutil.Process, ...]:
    """Ray's PARTS that this process has started, dead ones among them."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if one.name() in PARTS:
                found.append(one)
    return tuple(found)


def _places(nodes: dict[str, dict[str, float]]) -> int:
    """CPUs of the nodes that read and write: those with the resource READER, or all where none has it."""
    readers = [one for one in nodes.values() if READER in one] or list(nodes.values())
    return int(sum(one.get("CPU", 0.0) for one in readers))


@contextmanager
def connect(resources: Resources, stopped: threading.Event | None = None) -> Iterator[RaySession]:
    """A session on this machine or on the cluster at `address`; on the way out Ray is stopped and its files removed.

    SIGINT and SIGTERM set its event `stopped`, which may be given.  A process that is connected already (a notebook,
    the tests) keeps its connection.  Raises InputError when there is no cluster at the address.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _session(sys.modules["ray"], resources, stopped)
        return
    local = resources.address == "local"
    if local and "ray" in sys.modules and not _token.cache_info().currsize:
        remedy = "connect before importing ray, or call ray.init() yourself: its connection is used"
        raise InputError("ray was imported before it could be bound to this machine", None, remedy)
    stopped = stopped or threading.Event()
    with stoppable(stopped) as handle:
        folder = _folder() if local else None
        before = dict(os.environ)
        ray = _import_ray(folder)
        try:
            with _watched(folder), _shut_down(ray):
                with _as_interrupt():
                    _start(ray, resources, folder)
                    handle()
                    session = _session(ray, resources, stopped)
                yield session
        finally:
            os.environ.clear()
            os.environ.update(before)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """A folder for Ray's files, short because a socket's path has a limit; those of runs that were killed go."""
    for left in RAY_FOLDER.glob("h2b-*-*"):
        pid = left.name.split("-")[1]
        with suppress(OSError):
            old = time.time() - left.stat().st_mtime > LINGERS_S and left.stat().st_uid == os.getuid()
            if old and pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"h2b-{os.getpid()}-", dir=RAY_FOLDER))


def _session(ray: ModuleType, resources: Resources, stopped: threading.Event | None) -> RaySession:
    session = RaySession(ray, 0, 0.0)
    there = session.nodes()
    gpus = sum(one.get("GPU", 0.0) for one in there.values()) if resources.gpus is None else resources.gpus
    cluster = resources.address != "local"
    return RaySession(
        ray,
        resources.workers or max(1, _places(there)),
        gpus,
        stopped or threading.Event(),
        head=ray.get_runtime_context().gcs_address if cluster else None,
        grows=cluster and not resources.workers,
        parts=() if cluster else tuple(filter(_runs, _parts())),
    )


@lru_cache(maxsize=1)
def _token() -> str:
    """One token a process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def _import_ray(folder: Path | None) -> ModuleType:
    """Ray reads these at import: bind to 127.0.0.1 on Linux too, ask for a token, send nothing home, and set no handler
    of its own beneath Python's, with which a SIGTERM while it starts ends in SIGABRT.
    """
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    if folder is not None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        file = folder / "token"
        file.touch(mode=0o600)
        file.write_text(_token())
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
    import ray

    ray._private.worker._worker_logs_enabled = False  # else it tells of a dead worker on stdout, asked to or not
    return ray


def _start(ray: ModuleType, resources: Resources, folder: Path | None) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if folder is None:
        _answers(resources.address)
        try:
            ray.init(address=resources.address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {resources.address} ({one_line(error)})", None, NO_CLUSTER
            ) from error
        return
    try:
        ray.init(
            num_cpus=max(resources.workers or 0, cores()),
            num_gpus=resources.gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
            **common,
        )
    except Exception as error:  # Ray raises a bare Exception when a busy machine is too slow for it
        remedy = "the machine is too busy, or has too little memory: run the same command again when it has calmed down"
        raise StoreError(f"Ray could not be started on this machine ({one_line(error)})", None, remedy) from error


@contextmanager
def _shut_down(ray: ModuleType) -> Iterator[None]:
    """Stop Ray on the way out, but where it has lost its head: it would ask it for leave."""
    try:
        yield
    except HeadLost:
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


@contextmanager
def _watched(folder: Path | None) -> Iterator[None]:
    """Where a part of Ray on this machine dies nobody waits for it for ever, whatever is going on: start, work, stop.

    `Session.check` is sooner and ends in order, but not asked in a call of Ray's: that would wait for a minute, nothing
    interrupts it, and the process would end without a word of ours.
    """
    if folder is None:
        yield
        return
    over, earlier = threading.Event(), set(_parts())

    def watch() -> None:
        seen: set[psutil.Process] = set()
        since: float | None = None
        while not over.wait(LOOK_S):
            if len(seen) < len(PARTS):
                seen |= set(_parts()) - earlier
            since = None if all(map(_runs, seen)) else since or time.monotonic()
            if since is not None and time.monotonic() - since > LEAVES_S:
                os.write(2, f"her2batch: {HeadLost(PART_LOST, None, GOES_ON)}\n".encode())
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        child.kill()
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _as_interrupt() -> Iterator[None]:
    """While Ray starts its own handler of SIGTERM is there, which leaves with 15: a stop like any other."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error


def _answers(address: str) -> None:
    """Knock at HOST:PORT: Ray itself would try for minutes. Raises InputError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        _ping_head(f"{host}:{port}")
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address} ({error})", None, NO_CLUSTER) from error


def _ping_head(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=PING_S).close()


@contextmanager
def stoppable(stopped: threading.Event) -> Iterator[Callable[[], None]]:
    """Our handlers: the first SIGINT or SIGTERM asks the run to end in order, the next ends it at once.

    Gives what sets them again: Ray, when it starts, sets its own handler of SIGTERM, which leaves with 15.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def stop(_: int, __: FrameType | None) -> None:
        if stopped.is_set():
            os._exit(STOPPED)
        stopped.set()
        os.write(2, b"stopping: what is committed stays; the same command goes on from here\n")

    def handle() -> None:
        for number in SIGNALS:
            signal.signal(number, stop)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handle()
    try:
        yield handle
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
