"""Files that appear whole or not at all, and the Parquet settings that make equal tables equal bytes."""

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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file that appears complete or not at all, safe against a crash of the machine: fsync, rename, fsync folder."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="her2batch-") as folder:
            part = Path(folder) / path.name
            yield part
            upload(part, path)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # `verify` may write beside an ingest
    try:
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """What the disk refuses, as an error of ours that names the place and what is free there."""
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(str(place))
        if elsewhere or isinstance(error, (ConnectionError, BlockingIOError)):  # of a slide, who reads us, a lock
            raise
        free = free_bytes(place)
        room = "" if free is None else f"; {free / 1e9:.2f} GB are free there"
        why = os.strerror(error.errno) if error.errno else str(error)
        remedy = "make room, or mend the disk or its rights, then the same command goes on from what is committed"
        raise StoreError(f"can't be written to ({why}{room})", place, remedy) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each safe against a crash of the machine before anything is put into it."""
    if is_remote(path) or path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk. An OSError means: not written."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
