"""What may be forgotten: copies that spare a resume thousands of small reads, and that nothing depends on.

A memo lies in `tables/runs/`. Its first 32 bytes are the SHA-256 of the rest, an Arrow stream (a Parquet file would
not notice every damage: its footer has no checksum). One that is missing, damaged or has other columns is empty, and
what it held is read from where it came from.
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

READERS = 8
"""Threads that read rows: 0.6 ms a row on two cores, 1.1 ms with one; on a network share they wait side by side."""

AT_ONCE = 500
"""Rows that are put together at a time: one alone takes 50 kB, beside others 1 kB."""

SETTLED_NS = 2_000_000_000
"""A file that was changed this shortly before could be changed again within one tick of its clock (ext4 4 ms, FAT 2 s),
so that size and time of change would not tell."""

DIGEST = hashlib.sha256().digest_size

Stamp = tuple[int, int]
"""Size in bytes and time of last change in ns: what says that a file is as it was."""

STAMP = [pa.field("file", pa.string()), pa.field("file_bytes", pa.int64()), pa.field("file_mtime_ns", pa.int64())]


def load_cache(path: Path, schema: pa.Schema) -> pa.Table:
    """A memo's table; empty when there is none that can be believed."""
    with suppress(OSError, pa.ArrowInvalid):
        data = path.read_bytes()
        if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
            table = pa.ipc.open_stream(pa.py_buffer(data[DIGEST:])).read_all()
            if table.schema.equals(schema):
                return table
    return schema.empty_table()


def save_cache(path: Path, table: pa.Table) -> None:
    """Write a memo. A disk that refuses it costs the next run some seconds and nothing else."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    body = sink.getvalue()
    with suppress(OSError), atomic_write(path) as part:
        part.write_bytes(hashlib.sha256(body).digest() + bytes(body))


def read_rows(folder: Path, known: pa.Table) -> pa.Table:
    """Every row file of a folder as one table, in order of file name. A damaged file is left out.

    Columns of `slides`, behind them each file's name, size and time of change. Rows come from the known ones where
    these three agree, all others from their files: whatever is known, the table is the same.
    """
    files = _stamps(folder)
    same = [files.get(name) == stamp for name, stamp in _stamps_of(known).items()]
    known = known.filter(pa.array(same, pa.bool_()))
    fresh = sorted(files.keys() - set(known["file"].to_pylist()))
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(fresh), AT_ONCE):
            read = pool.map(lambda name: _row(folder / name, files[name]), fresh[start : start + AT_ONCE])
            known = pa.concat_tables([known, pa.concat_tables(read).combine_chunks()])
    return known.sort_by("file")


def settled_rows(table: pa.Table) -> pa.Table:
    """The rows that a memo may keep: without those of the last two seconds, by the clock that stamped the files."""
    times = table["file_mtime_ns"].to_numpy()
    return table.filter(pa.array(times < times.max(initial=0) - SETTLED_NS, pa.bool_()))


def update_cache(folder: Path, memo: Path) -> None:
    """Bring the memo of a folder's rows up to date, if it isn't."""
    known = load_cache(memo, cached_row_schema())
    table = settled_rows(read_rows(folder, known))
    if _stamps_of(table) != _stamps_of(known):
        save_cache(memo, table.combine_chunks())


def cached_row_schema() -> pa.Schema:
    """Columns of `slides` and the stamp of the file that holds the row."""
    return pa.schema([*schemas.table_schema("slides"), *STAMP])


def _stamps(folder: Path) -> dict[str, Stamp]:
    """File name → size and time of change of every row file."""
    found: dict[str, Stamp] = {}
    if is_remote(folder):
        here = list_objects(folder).items()
        return {name: stamp for name, stamp in here if name.endswith(".parquet") and not name.startswith(".")}
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # it was taken away this moment
                    facts = entry.stat()
                    found[entry.name] = (facts.st_size, facts.st_mtime_ns)
    return found


def _stamps_of(table: pa.Table) -> Mapping[str, Stamp]:
    """The same of a table's rows, in their order."""
    names, sizes, times = (table[field.name].to_pylist() for field in STAMP)
    return dict(zip(names, zip(sizes, times, strict=True), strict=True))


def _row(path: Path, stamp: Stamp) -> pa.Table:
    """A row file and its stamp; empty when it is damaged. Columns that it lacks, being an older one, are null."""
    schema = schemas.table_schema("slides")
    try:
        table = read_checksummed(path).slice(0, 1)
        if not table.schema.equals(schema):
            table = pa.Table.from_pylist(table.to_pylist(), schema)
            if table["slide_id"].null_count:  # a table of something else
                table = schema.empty_table()
    except (OSError, pa.ArrowException):
        table = schema.empty_table()
    stamps = ([value] * table.num_rows for value in (path.name, *stamp))
    return pa.table([*table.columns, *stamps], schema=cached_row_schema())
