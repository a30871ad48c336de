"""Files and folders that survive a crash of the machine, and errors of the disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from her2batch.errors import StoreError
from her2batch.files.locations import free_bytes, is_remote, upload

CHUNK = 1 << 20
"""Bytes that are read at a time for a digest."""


@contextmanager
def atomic_write(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Write a file that appears complete or not at all, also after a crash: fsync, rename, fsync of the folder.

    Gives the path to write to, in the folder of `path` or in another one of the same disk.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="her2batch-") as temporary:
            part = Path(temporary) / path.name
            yield part
            upload(part, path)
        return
    part = (folder or path.parent) / f".{path.name}.{os.getpid()}.part"  # `verify` may write beside an ingest
    try:
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise an OSError of the disk as a StoreError with the folder and its free space."""
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(str(folder))
        if elsewhere or isinstance(error, (ConnectionError, BlockingIOError)):  # of a slide file, a pipe or a lock
            raise
        free = free_bytes(folder)
        space = "" if free is None else f"; {free / 1e9:.2f} GB are free there"
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = "free disk space, or repair the disk or its access rights; then the same command continues"
        raise StoreError(f"can't be written to ({reason}{space})", folder, remedy) from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Each is forced to the disk before anything is written into it."""
    if is_remote(path) or path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Force a file, or the list of names of a folder, to the disk. Raises OSError if that fails."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
