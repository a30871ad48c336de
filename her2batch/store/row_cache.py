"""Caches of a cohort: copies that spare a resume thousands of small reads. They may be deleted at any time.

A cache is a file in `tables/runs/`. Its first 32 bytes are the SHA-256 of the rest, an Arrow stream (Parquet would not
notice every damage, because its footer has no checksum). A cache that is missing, is damaged or has other columns
counts as empty; the rows are then read from their own files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from her2batch.files.atomic import atomic_write
from her2batch.files.locations import is_remote, list_objects
from her2batch.files.parquet import read_checksummed
from her2batch.store import schemas

READ_THREADS = 8
"""Threads that read rows: 0.6 ms per row on two cores, 1.1 ms with one; on a network share they wait in parallel."""

ROWS_PER_TABLE = 500
"""Rows that are combined into one table at a time: a table of one row takes 50 kB, a row in a larger one 1 kB."""

SETTLED_NS = 2_000_000_000
"""A file that changed more recently than this (ns) could change again within the resolution of its modification time
(ext4 4 ms, FAT 2 s), and size and time would not show it."""

DIGEST = hashlib.sha256().digest_size

Stamp = tuple[int, int]
"""Size in bytes and modification time in ns of a file, by which a change is noticed."""

STAMP = [pa.field("file", pa.string()), pa.field("file_bytes", pa.int64()), pa.field("file_mtime_ns", pa.int64())]


def load_cache(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a cache; empty if it is missing, damaged or has another schema."""
    with suppress(OSError, pa.ArrowInvalid):
        data = path.read_bytes()
        if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
            table = pa.ipc.open_stream(pa.py_buffer(data[DIGEST:])).read_all()
            if table.schema.equals(schema):
                return table
    return schema.empty_table()


def save_cache(path: Path, table: pa.Table) -> None:
    """Write a cache. A write error is ignored: it costs the next run some seconds."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    body = sink.getvalue()
    with suppress(OSError), atomic_write(path) as part:
        part.write_bytes(hashlib.sha256(body).digest() + bytes(body))


def read_rows(folder: Path, cached: pa.Table) -> pa.Table:
    """Rows of all row files of a folder as one table, ordered by file name. Damaged files are left out.

    Columns: those of `slides`, then each file's name, size and modification time. A row is taken from `cached` if these
    three agree, and read from its file otherwise: the cache does not change the table.
    """
    files = _stamps(folder)
    unchanged = [files.get(name) == stamp for name, stamp in _stamps_of(cached).items()]
    rows = cached.filter(pa.array(unchanged, pa.bool_()))
    new = sorted(files.keys() - set(rows["file"].to_pylist()))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(new), ROWS_PER_TABLE):
            parts = pool.map(lambda name: _read_row(folder / name, files[name]), new[start : start + ROWS_PER_TABLE])
            rows = pa.concat_tables([rows, pa.concat_tables(parts).combine_chunks()])
    return rows.sort_by("file")


def settled_rows(table: pa.Table) -> pa.Table:
    """The rows that may be cached: without those of the last two seconds before the newest one."""
    times = table["file_mtime_ns"].to_numpy()
    return table.filter(pa.array(times < times.max(initial=0) - SETTLED_NS, pa.bool_()))


def update_cache(folder: Path, cache: Path) -> None:
    """Write the rows of a folder to their cache, if it is not up to date."""
    cached = load_cache(cache, cached_row_schema())
    table = settled_rows(read_rows(folder, cached))
    if _stamps_of(table) != _stamps_of(cached):
        save_cache(cache, table.combine_chunks())


def cached_row_schema() -> pa.Schema:
    """Columns of `slides`, then name, size and modification time of the row's file."""
    return pa.schema([*schemas.table_schema("slides"), *STAMP])


def _stamps(folder: Path) -> dict[str, Stamp]:
    """File name → size and modification time of every row file."""
    stamps: dict[str, Stamp] = {}
    if is_remote(folder):
        objects = list_objects(folder).items()
        return {name: stamp for name, stamp in objects if name.endswith(".parquet") and not name.startswith(".")}
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # deleted at this moment
                    facts = entry.stat()
                    stamps[entry.name] = (facts.st_size, facts.st_mtime_ns)
    return stamps


def _stamps_of(table: pa.Table) -> Mapping[str, Stamp]:
    """File name → size and modification time, from the rows of a table, in their order."""
    names, sizes, times = (table[field.name].to_pylist() for field in STAMP)
    return dict(zip(names, zip(sizes, times, strict=True), strict=True))


def _read_row(path: Path, stamp: Stamp) -> pa.Table:
    """Read a row file; empty if it is damaged. Columns that an earlier version did not write are null."""
    schema = schemas.table_schema("slides")
    try:
        table = read_checksummed(path).slice(0, 1)
        if not table.schema.equals(schema):
            table = pa.Table.from_pylist(table.to_pylist(), schema)
            if table["slide_id"].null_count:  # not a row of `slides`
                table = schema.empty_table()
    except (OSError, pa.ArrowException):
        table = schema.empty_table()
    stamps = ([value] * table.num_rows for value in (path.name, *stamp))
    return pa.table([*table.columns, *stamps], schema=cached_row_schema())
