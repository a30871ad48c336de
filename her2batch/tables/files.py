"""Files that appear whole or not at all, and the Parquet settings that make equal tables equal bytes."""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from her2batch.errors import StoreError
from her2batch.tables.places import create_only, drop, free_bytes, is_remote, put, scratch

CHUNK = 1 << 20

LOOKS, BETWEEN_S = 10, 0.03
"""How often, and how far apart in seconds, a lock that is held is asked for."""

OUTLIVE_S = 90.0
"""Workers end with their run, or when the next one wants the folder: Ray's take a minute at most."""

SEAL = b"her2batch.sha256"
"""Key in a Parquet file's metadata of the SHA-256 of the whole file, taken with zeros in the digest's place."""

AFTER_KEY = len(SEAL) + 2
"""From a key to its value in a footer (Thrift's compact protocol): one byte for the field, one for the length."""

SEALED = re.compile(b"|".join(re.escape(SEAL[:k]) + b"." + re.escape(SEAL[k + 1 :]) for k in range(len(SEAL))), re.S)
"""The key, also with one byte of it damaged: such a file is not one without a seal."""

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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # `verify` may write beside an ingest
    try:
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(place: Path) -> Iterator[None]:
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


@contextmanager
def hold(folder: Path) -> Iterator[str]:
    """Hold a folder for one writer; the kernel frees it when the process ends, however it ends. Gives who holds it.

    Raises StoreError naming the holder's host and pid.
    """
    if is_remote(folder):
        with _hold_far(folder) as mine:
            yield mine
        return
    with writing(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            with writing(folder):
                _lock(handle, LOOKS)
        except BlockingIOError as error:
            holder = os.read(handle, 4096).decode(errors="replace").strip() or "another process"
            raise StoreError(f"is in use by {holder}", folder, "wait until it has ended") from error
        mine = _me()
        with writing(folder):
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
    if not create_only(lock, f"{mine}\n".encode()):
        holder = lock.read_text().strip()
        found = re.fullmatch(r"host (\S+), pid (\d+), since \S+, boot (\S+)", holder)
        here = found is not None and found[1] == socket.gethostname() and found[3] == _boot()
        if found is None or not here or psutil.pid_exists(int(found[2])):
            remedy = f"wait until it has ended; if it is gone for certain, remove the object {lock}"
            raise StoreError(f"is in use by {holder.partition(', boot')[0]}", folder, remedy)
        drop(lock)
        if not create_only(lock, f"{mine}\n".encode()):
            raise StoreError("is in use by another process, since this moment", folder, "wait until it has ended")
    try:
        yield mine
    finally:
        with suppress(OSError):
            scratch(folder).rmdir()
        drop(lock)


@contextmanager
def working(folder: Path, workers: Path, holder: str) -> Iterator[None]:
    """A worker of the run that holds a folder is at work: until it ends, `settled` waits, however the run ended.

    workers: the file that they lock together.  Raises StoreError when another run has taken the folder.
    """
    with writing(folder):
        handle = None if is_remote(folder) else os.open(workers, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        with writing(folder):
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_SH)
            now = (folder / ".lock").read_text().strip()
        if now != holder:
            raise StoreError(f"has been taken over by {now}", folder, "this run has ended; nothing is to do")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def settled(folder: Path, workers: Path) -> None:
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
    with _writer(table, path) as writer:
        writer.write_table(table, row_group_size=65536)


def write_sealed(table: pa.Table, path: Path) -> None:
    """The same with the file's own SHA-256 in its metadata: nothing else knows what it should be like."""
    with _writer(table, path) as writer:
        writer.write_table(table, row_group_size=65536)
        writer.add_key_value_metadata({SEAL.decode(): "0" * 64})
    data = path.read_bytes()
    start = data.rindex(SEAL) + AFTER_KEY
    path.write_bytes(data[:start] + _digest(data, start) + data[start + 64 :])


def read_sealed(path: Path) -> pa.Table:
    """A sealed file's table. Raises OSError or pa.ArrowInvalid when any bit of the file is not as it was written.

    A file without a seal is an earlier version's, and read as such.
    """
    data = path.read_bytes()
    start = max((found.start() + AFTER_KEY for found in SEALED.finditer(data)), default=None)
    if start is not None and data[start : start + 64] != _digest(data, start):
        raise OSError(errno.EBADMSG, "its content differs from its SHA-256", str(path))
    return _checked(pa.BufferReader(data)).replace_schema_metadata(None)


def _digest(data: bytes, start: int) -> bytes:
    return hashlib.sha256(data[:start] + b"0" * 64 + data[start + 64 :]).hexdigest().encode()


def _writer(table: pa.Table, path: Path) -> pq.ParquetWriter:
    vectors = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    plain = [name for name in table.column_names if name not in vectors]
    return pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        use_dictionary=plain or False,
        use_byte_stream_split=[f"{name}.list.element" for name in vectors] or False,
        write_page_checksum=True,
        store_schema=True,
    )


def read_parquet(path: Path) -> pa.Table:
    """One Parquet file, its page checksums verified. Raises OSError or pa.ArrowInvalid when it is damaged.

    So it is when it names types beyond Arrow's own, whose libraries read what they are from the file and may run it
    (Ray before 2.55 did); and when it claims too many rows, for equal values take next to no room.
    """
    if is_remote(path):
        return _checked(pa.BufferReader(path.read_bytes()))
    with pa.OSFile(str(path)) as source:  # not mapped: a file that is cut while it is read would end the process
        return _checked(source)


def _checked(source: pa.NativeFile) -> pa.Table:
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
