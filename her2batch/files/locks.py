"""Locks of folders: one writer at a time, workers that outlive their run, on a disk and on an object store."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from her2batch.errors import StoreError
from her2batch.files.atomic import disk_errors
from her2batch.files.locations import create_exclusively, delete_objects, draft_folder, is_remote

LOOKS, BETWEEN_S = 10, 0.03
"""How often, and how far apart in seconds, a lock that is held is asked for."""


OUTLIVE_S = 90.0
"""Workers end with their run, or when the next one wants the folder: Ray's take a minute at most."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[str]:
    """Hold a folder for one writer; the kernel frees it when the process ends, however it ends. Gives who holds it.

    Raises StoreError naming the holder's host and pid.
    """
    if is_remote(folder):
        with _hold_far(folder) as mine:
            yield mine
        return
    with disk_errors(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            with disk_errors(folder):
                _lock(handle, LOOKS)
        except BlockingIOError as error:
            holder = os.read(handle, 4096).decode(errors="replace").strip() or "another process"
            raise StoreError(f"is in use by {holder}", folder, "wait until it has ended") from error
        mine = _me()
        with disk_errors(folder):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{mine}\n".encode(), 0)
        yield mine
    finally:
        with suppress(OSError):  # a share may complain; the lock is let go all the same, and what it says is for people
            os.close(handle)


def _lock(handle: int, looks: int) -> None:
    """Lock an open file. Whoever only asks whether it is locked (`held`) has it for an instant: ask again."""
    for left in range(looks, 0, -1):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left == 1:
                raise
            time.sleep(BETWEEN_S)
    return None


def _me() -> str:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"host {socket.gethostname()}, pid {os.getpid()}, since {started}"


@contextmanager
def _hold_far(folder: Path) -> Iterator[str]:
    """The same on an object store, by an object that can be made only once. One whose process is gone gives way.

    On the way out the folder for drafts goes from this machine, unless a draft is left in it.
    """
    lock = folder / ".lock"
    mine = f"{_me()}, boot {_boot()}"
    if not create_exclusively(lock, f"{mine}\n".encode()):
        holder = lock.read_text().strip()
        found = re.fullmatch(r"host (\S+), pid (\d+), since \S+, boot (\S+)", holder)
        here = found is not None and found[1] == socket.gethostname() and found[3] == _boot()
        if found is None or not here or psutil.pid_exists(int(found[2])):
            remedy = f"wait until it has ended; if it is gone for certain, remove the object {lock}"
            raise StoreError(f"is in use by {holder.partition(', boot')[0]}", folder, remedy)
        delete_objects(lock)
        if not create_exclusively(lock, f"{mine}\n".encode()):
            raise StoreError("is in use by another process, since this moment", folder, "wait until it has ended")
    try:
        yield mine
    finally:
        with suppress(OSError):
            draft_folder(folder).rmdir()
        delete_objects(lock)


@contextmanager
def worker_lock(folder: Path, workers: Path, holder: str) -> Iterator[None]:
    """A worker of the run that holds a folder is at work: until it ends, `settled` waits, however the run ended.

    workers: the file that they lock together.  Raises StoreError when another run has taken the folder.
    """
    with disk_errors(folder):
        handle = None if is_remote(folder) else os.open(workers, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        with disk_errors(folder):
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_SH)
            now = (folder / ".lock").read_text().strip()
        if now != holder:
            raise StoreError(f"has been taken over by {now}", folder, "this run has ended; nothing is to do")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def wait_for_workers(folder: Path, workers: Path) -> None:
    """Wait until no worker of a dead run is at work. Raises StoreError. Only by who holds the folder."""
    if is_remote(folder) or not workers.exists():
        return
    handle = os.open(workers, os.O_RDWR)
    try:
        _lock(handle, round(OUTLIVE_S / BETWEEN_S))
    except BlockingIOError as error:
        what = f"a worker of an earlier run has been writing to it for {OUTLIVE_S:.0f} s"
        raise StoreError(what, folder, "end it (fuser -v names it), then run again: " + str(workers)) from error
    finally:
        os.close(handle)


def _boot() -> str:
    """What names this start of this machine: a pid means something within it."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def is_locked(folder: Path) -> bool:
    """Whether a writer holds a folder now."""
    if is_remote(folder):
        return (folder / ".lock").exists()
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
