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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil

from her2batch.errors import InputError
from her2batch.settings import Resources
from her2batch.way.costs import cores

OBJECT_STORE = 200_000_000
"""Bytes: pixels don't cross it, embeddings of split slides do."""

PLACE = Path("/tmp")  # noqa: S108  (mkdtemp makes a folder of our own in it)

LINGERS_S = 120.0
"""Ray's agents outlive a killed driver by a minute."""

KNOCK_S = 5.0

NO_CLUSTER = "start one with `ray start --head`, or leave --address away to use this machine"


@dataclass
class Session:
    """A connection to Ray."""

    ray: ModuleType
    workers: int
    gpus: float
    stopped: threading.Event = field(default_factory=threading.Event)


@contextmanager
def connect(resources: Resources) -> Iterator[Session]:
    """A session on this machine or on the cluster at `address`; on the way out Ray is stopped and its files removed.

    A process that is connected already (a notebook, the tests) keeps its connection.  Raises InputError when there is
    no cluster at the address.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _session(sys.modules["ray"], resources)
        return
    local = resources.address == "local"
    if local and "ray" in sys.modules and not _token.cache_info().currsize:
        remedy = "connect before importing ray, or call ray.init() yourself: its connection is used"
        raise InputError("ray was imported before it could be bound to this machine", None, remedy)
    folder = _folder() if local else None
    before = dict(os.environ)
    ray = _import_ray(folder)
    try:
        _start(ray, resources, folder)
        session = _session(ray, resources)
        with _signals(session):
            yield session
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """A folder for Ray's files, short because a socket's path has a limit; those of runs that were killed go."""
    for left in PLACE.glob("h2b-*-*"):
        pid = left.name.split("-")[1]
        with suppress(OSError):
            old = time.time() - left.stat().st_mtime > LINGERS_S and left.stat().st_uid == os.getuid()
            if old and pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"h2b-{os.getpid()}-", dir=PLACE))


def _session(ray: ModuleType, resources: Resources) -> Session:
    there = ray.cluster_resources()
    gpus = there.get("GPU", 0.0) if resources.gpus is None else resources.gpus
    return Session(ray, resources.workers or int(there.get("CPU", 1)), gpus)


@lru_cache(maxsize=1)
def _token() -> str:
    """One token a process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def _import_ray(folder: Path | None) -> ModuleType:
    """Ray reads these at import: bind to 127.0.0.1 on Linux too, ask for a token, send nothing home."""
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

    return ray


def _start(ray: ModuleType, resources: Resources, folder: Path | None) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if folder is None:
        _answers(resources.address)
        try:
            ray.init(address=resources.address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster answers at {resources.address} ({error})", None, NO_CLUSTER) from error
        return
    ray.init(
        num_cpus=max(resources.workers or 0, cores()),
        num_gpus=resources.gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
        **common,
    )


def _answers(address: str) -> None:
    """Knock at HOST:PORT: Ray itself would try for minutes. Raises InputError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address} ({error})", None, NO_CLUSTER) from error


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """Ours instead of Ray's: the first SIGINT or SIGTERM asks the run to end in order, the next ends it at once.

    Ray's own handler for SIGTERM ends in SIGABRT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        if session.stopped.is_set():
            os._exit(128 + number)
        session.stopped.set()
        sys.stderr.write("stopping: what is committed stays; the same command goes on from here\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
