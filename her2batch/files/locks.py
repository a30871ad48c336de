"""Locks of folders, on a disk and on an object store: one writer at a time, and workers that outlive their run."""

from __future__ import annotations

import errno
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

LOCK_ATTEMPTS, LOCK_RETRY_S = 10, 0.03
"""Number of attempts to get a lock, and seconds between two of them."""

WORKER_EXIT_S = 90.0
"""Seconds that the next run waits for workers of an ended run. Workers of Ray end within a minute."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Errors of `flock` on a file system without locks: NFS without its lock service, Lustre without flock, some FUSE."""

NO_LOCKS_REMEDY = (
    "mount the share with locks (NFS: with the lock service running or as version 4; Lustre: -o flock), or choose an "
    "--out on a local disk or on an object store"
)


@contextmanager
def lock_folder(folder: Path) -> Iterator[str]:
    """Lock a folder for one writer. The kernel unlocks it when the process ends, however it ends.

    Gives the text of the lock: host, process and time. Raises StoreError with the text of the lock if another process
    holds it.
    """
    if is_remote(folder):
        with _lock_remote_folder(folder) as text:
            yield text
        return
    with disk_errors(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            with disk_errors(folder), _lock_errors(folder):
                _lock(handle, LOCK_ATTEMPTS)
        except BlockingIOError as error:
            holder = os.read(handle, 4096).decode(errors="replace").strip() or "another process"
            raise StoreError(f"is in use by {holder}", folder, "wait until it has ended") from error
        text = _lock_text()
        with disk_errors(folder):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{text}\n".encode(), 0)
        yield text
    finally:
        with suppress(OSError):  # a network share may report an error here; the folder is unlocked all the same
            os.close(handle)


@contextmanager
def _lock_errors(folder: Path) -> Iterator[None]:
    """Raise the error of a file system without locks as a StoreError that names them and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        reason = os.strerror(error.errno)
        what = f"its file system gives no locks ({reason}), without which two runs could write to the cohort at once"
        raise StoreError(what, folder, NO_LOCKS_REMEDY) from error


def _lock(handle: int, attempts: int) -> None:
    """Lock an open file, in several attempts: `is_locked` in another process holds the lock for an instant."""
    for left in range(attempts, 0, -1):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left == 1:
                raise
            time.sleep(LOCK_RETRY_S)
    return None


def last_lock(folder: Path) -> str | None:
    """Return the text of the last lock of a folder: '' if none was obtained, None if nobody tried to lock it."""
    try:
        return (folder / ".lock").read_text(errors="replace").strip()
    except OSError:
        return None


def is_own_lock(text: str) -> bool:
    """Whether the text of a lock names this process."""
    return text.rpartition(", ")[0] == _lock_text().rpartition(", ")[0]


def _lock_text() -> str:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"host {socket.gethostname()}, pid {os.getpid()}, since {started}"


@contextmanager
def _lock_remote_folder(folder: Path) -> Iterator[str]:
    """Lock a prefix of an object store by an object that can be created only once.

    The lock of a process of this machine that has ended is replaced. At the end the local folder for drafts is deleted,
    unless a draft is left in it.
    """
    lock = folder / ".lock"
    text = f"{_lock_text()}, boot {_boot_id()}"
    if not create_exclusively(lock, f"{text}\n".encode()):
        holder = lock.read_text("utf-8").strip()
        match = re.fullmatch(r"host (\S+), pid (\d+), since \S+, boot (\S+)", holder)
        here = match is not None and match[1] == socket.gethostname() and match[3] == _boot_id()
        if match is None or not here or psutil.pid_exists(int(match[2])):
            remedy = f"wait until it has ended; if you are certain that it has, delete the object {lock}"
            raise StoreError(f"is in use by {holder.partition(', boot')[0]}", folder, remedy)
        delete_objects(lock)
        if not create_exclusively(lock, f"{text}\n".encode()):
            raise StoreError("was locked by another process just now", folder, "wait until it has ended")
    try:
        yield text
    finally:
        with suppress(OSError):
            draft_folder(folder).rmdir()
        delete_objects(lock)


@contextmanager
def worker_lock(folder: Path, workers: Path, holder: str) -> Iterator[None]:
    """Mark a worker of the run that holds a folder as writing: `wait_for_workers` of the next run waits for it.

    workers: the file that all workers lock together.  holder: text of the run's lock.
    Raises StoreError if another run has taken over the folder.
    """
    with disk_errors(folder):
        handle = None if is_remote(folder) else os.open(workers, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        with disk_errors(folder), _lock_errors(folder):
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_SH)
            now = (folder / ".lock").read_text("utf-8").strip()
        if now != holder:
            raise StoreError(f"has been taken over by {now}", folder, "this run has ended; there is nothing to do")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def wait_for_workers(folder: Path, workers: Path) -> None:
    """Wait until no worker of an ended run is writing. Raises StoreError if one still is. Call it under the lock."""
    if is_remote(folder) or not workers.exists():
        return
    handle = os.open(workers, os.O_RDWR)
    try:
        with _lock_errors(folder):
            _lock(handle, round(WORKER_EXIT_S / LOCK_RETRY_S))
    except BlockingIOError as error:
        what = f"a worker of an earlier run has been writing to it for {WORKER_EXIT_S:.0f} s"
        raise StoreError(what, folder, f"end it (fuser -v {workers} shows its process id), then run again") from error
    finally:
        os.close(handle)


def _boot_id() -> str:
    """Id of the current boot of this machine: a process id is unique within one boot only."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text("utf-8").strip() if path.exists() else "unknown"


def is_locked(folder: Path) -> bool:
    """Whether a writer holds the lock of a folder."""
    if is_remote(folder):
        return (folder / ".lock").exists()
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno not in NO_LOCKS  # where there are no locks, no run can hold one
    return False
