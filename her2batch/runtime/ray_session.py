"""Connects to Ray and stops it. No other module starts Ray.

On this machine every port is bound to loopback and requires a token. Ray's own files are in a folder that is removed
with the run, because Ray itself never removes them.
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
from her2batch.pipeline.cost_model import available_cores
from her2batch.settings import Resources

OBJECT_STORE_BYTES = 200_000_000
"""Bytes: pixels do not cross it, embeddings of shared slides do."""

RAY_FOLDER = Path("/tmp")  # noqa: S108  (mkdtemp makes a private folder in it)

ORPHAN_S = 120.0
"""Age from which the folder of a killed run may be removed: Ray's agents outlive the driver by a minute."""

PING_S = 5.0
"""Seconds after which a connection to a cluster's head times out."""

HEARTBEAT_S, HEARTBEATS = 2.0, 5
"""Seconds between two checks of a cluster's head, and the failures in a row after which it is taken to be gone."""

PROCESS_CHECK_S, PROCESS_LOST_S = 0.5, 10.0
"""Seconds between two checks of Ray's processes, and until a run ends that has lost one of them."""

RAY_PROCESSES = ("raylet", "gcs_server")
"""Names of Ray's own processes that a run needs."""

PROCESS_LOST = "a part of Ray on this machine has died"
RUN_AGAIN = "run the same command again to continue"

SIGNALS = (signal.SIGINT, signal.SIGTERM)

READER_RESOURCE = "reader"
"""Custom resource of nodes that read and write. Where a cluster has it, slides are opened on those nodes only."""

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Environment variable with the address of a cluster, which Ray prefers to the one that it is called with."""

OWN_VARIABLES = frozenset({
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "RAY_USAGE_STATS_ENABLED", "RAY_DISABLE_IMPORT_WARNING", "RAY_AUTH_MODE",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_TOKEN_PATH",
})  # fmt: skip
"""Environment variables that a session sets."""

NO_CLUSTER = "start one with `ray start --head`, or omit --address to use this machine"


@dataclass
class RaySession:
    """A connection to Ray.

    head: HOST:PORT of a cluster's head.  grows: use the cores of nodes that join.  processes: of Ray on this machine,
    where it was started here.
    """

    ray: ModuleType
    workers: int
    gpus: float
    stopped: threading.Event = field(default_factory=threading.Event)
    head: str | None = None
    grows: bool = False
    processes: tuple[psutil.Process, ...] = ()
    _checked: float = -HEARTBEAT_S  # monotonic clock

    def nodes(self) -> dict[str, dict[str, float]]:
        """Resources of the nodes that are alive, by node id. Raises HeadLost.

        The head is checked first each time, because a request to one that has died would hang.
        """
        self._checked = -HEARTBEAT_S
        self.check()
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def worker_slots(self) -> int:
        """Number of workers that the nodes have room for now."""
        return max(self.workers, _count_worker_slots(self.nodes())) if self.grows else self.workers

    def has_resource(self, resource: str) -> bool:
        """Whether any node has a custom resource."""
        return any(resource in node for node in self.nodes().values())

    def check(self) -> None:
        """Raise HeadLost when the cluster's head has gone, or a process of Ray on this machine.

        Ray itself would wait for a minute and then end the process, or wait for a worker that cannot be started.
        """
        if not all(map(_is_running, self.processes)):
            raise HeadLost(PROCESS_LOST, None, RUN_AGAIN)
        at = time.monotonic()
        if self.head is None or at - self._checked < HEARTBEAT_S:
            return
        for miss in range(HEARTBEATS):
            try:
                _ping_head(self.head)
                self._checked = time.monotonic()
                return
            except OSError as error:
                if miss == HEARTBEATS - 1:
                    remedy = "start the cluster again, then run the same command again to continue"
                    raise HeadLost(
                        f"the head of the Ray cluster at {self.head} is gone ({error})", None, remedy
                    ) from error
            self.stopped.wait(HEARTBEAT_S)


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _ray_processes() -> tuple[psutil.Process, ...]:
    """The RAY_PROCESSES that this process has started, dead ones included."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() in RAY_PROCESSES:
                found.append(child)
    return tuple(found)


def _count_worker_slots(nodes: dict[str, dict[str, float]]) -> int:
    """CPUs of the nodes that read and write: those with the resource READER, or all where none has it."""
    readers = [node for node in nodes.values() if READER_RESOURCE in node] or list(nodes.values())
    return int(sum(node.get("CPU", 0.0) for node in readers))


@contextmanager
def connect(resources: Resources, stopped: threading.Event | None = None) -> Iterator[RaySession]:
    """Connect to Ray on this machine or to the cluster at `address`; at the end Ray is stopped and its files removed.

    SIGINT and SIGTERM set the session's event `stopped`, which may be given.  A process that is connected already (a
    notebook, the tests) keeps its connection.  Raises InputError when there is no cluster at the address.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _session(sys.modules["ray"], resources, stopped)
        return
    resources = resources.model_copy(update={"address": _cluster_address(resources.address)})
    local = resources.address == "local"
    if local and "ray" in sys.modules and not _token.cache_info().currsize:
        remedy = "connect before importing ray, or call ray.init() first: its connection is used"
        raise InputError("ray was imported before it could be bound to this machine", None, remedy)
    stopped = stopped or threading.Event()
    with stop_on_signals(stopped) as handle:
        folder = _make_ray_folder() if local else None
        before = dict(os.environ)
        os.environ.pop(ADDRESS_VARIABLE, None)  # with it, Ray would connect there and refuse the settings of a start
        ray = _import_ray(folder)
        try:
            with _watch_ray(folder), _shut_down(ray):
                with _exit_as_interrupt():
                    _start(ray, resources, folder)
                    handle()
                    session = _session(ray, resources, stopped)
                yield session
        finally:
            os.environ.clear()
            os.environ.update(before)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _cluster_address(address: str) -> str:
    """The address that --address stands for: `auto` is the cluster of RAY_ADDRESS, where this is set.

    Nothing else depends on the variable. Raises InputError when it is not the address of a cluster's head.
    """
    found = os.environ.get(ADDRESS_VARIABLE, "")
    if address != "auto" or found in ("", "auto"):
        return address
    if found == "local" or "://" in found.removeprefix("ray://"):
        what = f"{ADDRESS_VARIABLE}={found} is set, which is not the address of the head of a cluster"
        raise InputError(what, None, f"unset {ADDRESS_VARIABLE}, or give --address HOST:PORT, or omit --address")
    return found


def _variables_of_ray() -> str:
    """Settings of Ray in this environment that somebody has made, as a remark for the message of a failed start."""
    names = sorted(name for name in os.environ if name.startswith("RAY_") and name not in OWN_VARIABLES)
    return f"; if it fails again, unset {', '.join(names)}" if names else ""


def _make_ray_folder() -> Path:
    """Make a folder for Ray's files, and remove those of killed runs. Its name is short: socket paths have a limit."""
    for left in RAY_FOLDER.glob("h2b-*-*"):
        pid = left.name.split("-")[1]
        with suppress(OSError):
            old = time.time() - left.stat().st_mtime > ORPHAN_S and left.stat().st_uid == os.getuid()
            if old and pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"h2b-{os.getpid()}-", dir=RAY_FOLDER))


def _session(ray: ModuleType, resources: Resources, stopped: threading.Event | None) -> RaySession:
    session = RaySession(ray, 0, 0.0)
    nodes = session.nodes()
    gpus = sum(node.get("GPU", 0.0) for node in nodes.values()) if resources.gpus is None else resources.gpus
    cluster = resources.address != "local"
    return RaySession(
        ray,
        resources.workers or max(1, _count_worker_slots(nodes)),
        gpus,
        stopped or threading.Event(),
        head=ray.get_runtime_context().gcs_address if cluster else None,
        grows=cluster and not resources.workers,
        processes=() if cluster else tuple(filter(_is_running, _ray_processes())),
    )


@lru_cache(maxsize=1)
def _token() -> str:
    """The token of this process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def _import_ray(folder: Path | None) -> ModuleType:
    """Import Ray with settings that it reads at import: bind to 127.0.0.1 on Linux too, require a token, send no usage
    statistics, and set no signal handler beneath Python's, with which a SIGTERM during its start ends in SIGABRT.
    """
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    if folder is not None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        file = folder / "token"
        file.touch(mode=0o600)
        file.write_text(_token(), "utf-8")
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
    import ray

    ray._private.worker._worker_logs_enabled = False  # else it reports dead workers on stdout
    return ray


def _start(ray: ModuleType, resources: Resources, folder: Path | None) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if folder is None:
        _check_answers(resources.address)
        try:
            ray.init(address=resources.address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            what = f"no Ray cluster answers at {resources.address} ({one_line(error)})"
            raise InputError(what, None, f"{NO_CLUSTER}{_variables_of_ray()}") from error
        return
    try:
        ray.init(
            address="local",
            num_cpus=max(resources.workers or 0, available_cores()),
            num_gpus=resources.gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
            **common,
        )
    except Exception as error:  # Ray raises a bare Exception when a busy machine is too slow for it
        remedy = "the machine is too busy, or has too little memory: run the same command again later"
        remedy += _variables_of_ray()
        raise StoreError(f"Ray could not be started on this machine ({one_line(error)})", None, remedy) from error


@contextmanager
def _shut_down(ray: ModuleType) -> Iterator[None]:
    """Stop Ray at the end, unless its head has gone: it would wait for it."""
    try:
        yield
    except HeadLost:
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


@contextmanager
def _watch_ray(folder: Path | None) -> Iterator[None]:
    """End this process when a process of Ray on this machine has died, whether the run starts, works or stops.

    `RaySession.check` comes earlier and ends the run in order, but it is not called during a call to Ray: that would
    wait for a minute, cannot be interrupted, and would then end the process without a message.
    """
    if folder is None:
        yield
        return
    over, earlier = threading.Event(), set(_ray_processes())

    def watch() -> None:
        seen: set[psutil.Process] = set()
        since: float | None = None
        while not over.wait(PROCESS_CHECK_S):
            if len(seen) < len(RAY_PROCESSES):
                seen |= set(_ray_processes()) - earlier
            since = None if all(map(_is_running, seen)) else since or time.monotonic()
            if since is not None and time.monotonic() - since > PROCESS_LOST_S:
                os.write(2, f"her2batch: {HeadLost(PROCESS_LOST, None, RUN_AGAIN)}\n".encode())
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
def _exit_as_interrupt() -> Iterator[None]:
    """Treat the SystemExit of Ray's own SIGTERM handler, which is active while Ray starts, as a stop by the user."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error


def _check_answers(address: str) -> None:
    """Check that HOST:PORT answers: Ray itself would try for minutes. Raises InputError."""
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
def stop_on_signals(stopped: threading.Event) -> Iterator[Callable[[], None]]:
    """Handle signals: the first SIGINT or SIGTERM sets `stopped` and the run ends in order; the next ends it at once.

    Yields a function that sets the handlers again, because Ray sets its own handler of SIGTERM when it starts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def stop(_: int, __: FrameType | None) -> None:
        if stopped.is_set():
            os._exit(STOPPED)
        stopped.set()
        os.write(2, b"stopping: finished work is kept; run the same command again to continue\n")

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
