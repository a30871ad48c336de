"""Parquet files whose equal tables are equal bytes, checked when they are read."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from her2batch.files.locations import is_remote

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


def write_parquet(table: pa.Table, path: Path) -> None:
    """One Parquet file with page checksums; equal tables give equal bytes for one pyarrow version.

    Embeddings are stored without a dictionary and byte-split: 10 % smaller and twice as fast to write as the default.
    """
    with _writer(table, path) as writer:
        writer.write_table(table, row_group_size=65536)


def write_checksummed(table: pa.Table, path: Path) -> None:
    """The same with the file's own SHA-256 in its metadata: nothing else knows what it should be like."""
    with _writer(table, path) as writer:
        writer.write_table(table, row_group_size=65536)
        writer.add_key_value_metadata({SEAL.decode(): "0" * 64})
    data = path.read_bytes()
    start = data.rindex(SEAL) + AFTER_KEY
    path.write_bytes(data[:start] + _digest(data, start) + data[start + 64 :])


def read_checksummed(path: Path) -> pa.Table:
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
