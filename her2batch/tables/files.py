"""Files that appear whole or not at all, and the Parquet settings that make equal tables equal bytes."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from her2batch.errors import StoreError
from her2batch.tables.places import create_only, drop, is_remote, put

CHUNK = 1 << 20

EXTENSION = b"ARROW:extension:name"
ENCODED_SCHEMA = re.compile(rb"ARROW:schema\x18[\x80-\xff]*[\x00-\x7f]([A-Za-z0-9+/]+)")
"""Key and value of the footer's Thrift: a string is marked by 0x18, then its length as a varint."""

MOST_ROWS = 50_000_000
"""Of one table of a slide: a hundred times the tiles of the largest."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that appears complete or not at all, safe against a crash of the machine: fsync, rename, fsync folder."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="her2batch-") as folder:
            part = Path(folder) / path.name
            yield part
            put(part, path)
        return
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk. An OSError means: not written."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder for one writer; the kernel frees it when the process ends, however it ends.

    Raises StoreError naming the holder's host and pid.
    """
    if is_remote(folder):
        with _hold_far(folder):
            yield
        return
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 4096).decode(errors="replace").strip() or "another process"
            raise StoreError(f"is in use by {holder}", folder, "wait until it has ended") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{_me()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _me() -> str:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"host {socket.gethostname()}, pid {os.getpid()}, since {started}"


@contextmanager
def _hold_far(folder: Path) -> Iterator[None]:
    """The same on an object store, by an object that can be made only once. One whose process is gone gives way."""
    lock = folder / ".lock"
    mine = f"{_me()}, boot {_boot()}\n"
    if not create_only(lock, mine.encode()):
        holder = lock.read_text().strip()
        found = re.fullmatch(r"host (\S+), pid (\d+), since \S+, boot (\S+)", holder)
        here = found is not None and found[1] == socket.gethostname() and found[3] == _boot()
        if found is None or not here or psutil.pid_exists(int(found[2])):
            remedy = f"wait until it has ended; if it is gone for certain, remove the object {lock}"
            raise StoreError(f"is in use by {holder.partition(', boot')[0]}", folder, remedy)
        drop(lock)
        if not create_only(lock, mine.encode()):
            raise StoreError("is in use by another process, since this moment", folder, "wait until it has ended")
    try:
        yield
    finally:
        drop(lock)


def _boot() -> str:
    """What names this start of this machine: a pid means something within it."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def held(folder: Path) -> bool:
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


def write_parquet(table: pa.Table, path: Path) -> None:
    """One Parquet file with page checksums; equal tables give equal bytes for one pyarrow version.

    Embeddings are stored without a dictionary and byte-split: 10 % smaller and twice as fast to write as the default.
    """
    vectors = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    plain = [name for name in table.column_names if name not in vectors]
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=plain or False,
        use_byte_stream_split=[f"{name}.list.element" for name in vectors] or False,
        write_page_checksum=True,
        store_schema=True,
        row_group_size=65536,
    )


def read_parquet(path: Path) -> pa.Table:
    """One Parquet file, its page checksums verified. Raises OSError or pa.ArrowInvalid when it is damaged.

    So it is when it names types beyond Arrow's own, whose libraries read what they are from the file and may run it
    (Ray before 2.55 did); and when it claims too many rows, for equal values take next to no room.
    """
    source = pa.BufferReader(path.read_bytes()) if is_remote(path) else pa.memory_map(str(path))
    if EXTENSION in _schema_bytes(source):
        raise pa.ArrowInvalid("it names types that are not Arrow's own")
    file = pq.ParquetFile(source, page_checksum_verification=True)
    if file.metadata.num_rows > MOST_ROWS:
        raise pa.ArrowInvalid(f"it claims {file.metadata.num_rows} rows")
    return file.read()


def _schema_bytes(source: pa.NativeFile) -> bytes:
    """The Arrow schema in a Parquet file's footer as it stands there, unread."""
    size = source.size()
    source.seek(max(0, size - 8))
    length = min(int.from_bytes(source.read(4), "little") + 8, size)
    source.seek(size - length)
    found = ENCODED_SCHEMA.search(source.read(length))
    return base64.b64decode(found[1] + b"==") if found else b""


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
