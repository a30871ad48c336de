"""A slide's files as bytes: identity, stretches that hold nothing, and whether a TIFF's directories are whole.

TIFF layout: TIFF 6.0, section 2, and BigTIFF (libtiff's design note): a header, then a chain of directories of
entries (tag, type, count, value or where it lies), each directory ending in the offset of the next, the last in 0.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError

ByteRange = tuple[int, int]

PAGE = 512
"""Bytes: disks and copy tools lose data in multiples of this."""

CHUNK = 4 << 20

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag → bytes of one value."""

SUBDIRECTORIES = 330
TELLING = frozenset({256, 257, 270, 347})
"""Tags without which nobody knows what the slide is: its size, description, JPEG tables."""

TILE_LISTS = frozenset({273, 279, 324, 325})
MOST_DIRECTORIES, MOST_ENTRIES, MOST_TILES = 10_000, 4_000, 20_000_000
LONGEST = {270: 32_000_000, 347: 100_000, 700: 32_000_000}
"""Tag → bytes its value may have: descriptions are searched, and a tile is decoded behind its JPEG tables."""


@dataclass(frozen=True)
class Fingerprint:
    """Content of a slide. sha256: of the file; of several files, of their sorted digests, whatever they are called.

    holes: byte ranges (start, end) of whole zero pages; for several files, as if they stood one after the other.
    """

    sha256: str
    bytes: int
    holes: tuple[ByteRange, ...]


def fingerprint_slide(paths: Sequence[Path]) -> Fingerprint:
    """Read every file of a slide once. Raises OSError."""
    digests: list[str] = []
    holes: list[ByteRange] = []
    position = 0
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                for start, end in _zero_pages(chunk):
                    _add(holes, position + start, position + end)
                position += len(chunk)
        digests.append(digest.hexdigest())
    sha = digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return Fingerprint(sha, position, tuple(holes))


def _zero_pages(chunk: bytes) -> list[ByteRange]:
    """Runs of zero pages in a chunk. One word a page is looked at first: 1 % of the time that hashing takes."""
    words = PAGE // 8
    pages: NDArray[np.uint64] = np.frombuffer(chunk, "<u8", count=len(chunk) // PAGE * words).reshape(-1, words)
    empty = pages[:, 0] == 0
    candidates = np.flatnonzero(empty)
    empty[candidates] = ~pages[candidates].any(axis=1)
    edges = np.flatnonzero(np.diff(empty, prepend=False, append=False)) * PAGE
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _add(holes: list[ByteRange], start: int, end: int) -> None:
    if holes and holes[-1][1] == start:
        holes[-1] = (holes[-1][0], end)
    else:
        holes.append((start, end))


class _Layout(NamedTuple):
    order: str  # < or >
    number: str  # struct codes of: the number of entries, an entry, an offset
    entry: str
    offset: str
    first: int  # offset of the first directory
    high_words: bool  # NDPI: behind a directory stand the upper 32 bits of its entries' offsets


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    start: int  # of the value, in the file
    length: int


def is_tiff(path: Path) -> bool:
    """Whether the first bytes are those of a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in TIFF_MAGIC


def check_directories(path: Path, high_words: bool = False) -> tuple[tuple[ByteRange, ...], tuple[ByteRange, ...]]:
    """Walk every directory; nothing is read but the directories themselves.

    Returns the byte ranges of what must never be zeros (directories, sizes, descriptions), and those of the lists of
    tiles.  Raises SlideError `truncated` when something lies beyond the end of the file or is empty, `unreadable`
    for loops and absurd counts.  high_words: the file is an NDPI, where offsets have 64 bits of their own kind.
    """
    size = path.stat().st_size
    fixed: list[ByteRange] = []
    lists: list[ByteRange] = []
    with path.open("rb") as file:
        layout = _layout(path, file.read(16), high_words)
        pending, seen = [layout.first], set[int]()
        while pending:
            at = pending.pop()
            if at in seen or len(seen) >= MOST_DIRECTORIES:
                raise SlideError("unreadable", path, "its directories form a loop, or are too many")
            seen.add(at)
            end, entries, following = _directory(path, file, layout, at, size)
            fixed.append((at, end))
            for one in entries:
                if one.tag in TELLING:
                    fixed.append((one.start, one.start + one.length))
                elif one.tag in TILE_LISTS:
                    lists.append((one.start, one.start + one.length))
                elif one.tag == SUBDIRECTORIES:
                    pending += _offsets(path, file, layout, one)
            pending += [following] if following else []
    return tuple(fixed), tuple(lists)


def _layout(path: Path, head: bytes, high_words: bool) -> _Layout:
    if head[:4] not in TIFF_MAGIC:
        raise SlideError("unreadable", path, "it is no TIFF file")
    order = "<" if head[:1] == b"I" else ">"
    big = b"+" in head[:4]
    if len(head) < 16:
        raise SlideError("truncated", path, "the file ends after its header")
    wide = big or high_words
    first = struct.unpack_from(order + ("Q" if wide else "I"), head, 8 if big else 4)[0]
    if big:
        return _Layout(order, "Q", "HHQ8s", "Q", first, False)
    return _Layout(order, "H", "HHI4s", "Q" if wide else "I", first, high_words)


def _directory(path: Path, file: BinaryIO, layout: _Layout, at: int, size: int) -> tuple[int, list[_Entry], int]:
    """A directory at an offset: where it ends, its entries, the offset of the next."""
    head, body, foot = (struct.Struct(layout.order + code) for code in (layout.number, layout.entry, layout.offset))
    number = _unpack(path, file, at, head)[0]
    if number == 0 or number > MOST_ENTRIES:
        code = "truncated" if number == 0 else "unreadable"
        raise SlideError(code, path, f"its directory at byte {at} has {number} entries")
    start, listed = at + head.size, number * body.size
    end = start + listed + foot.size + (4 * number if layout.high_words else 0)
    if end > size:
        raise SlideError("truncated", path, f"the file ends at {size} bytes, inside a directory")
    file.seek(start)
    data = file.read(end - start)
    high = struct.unpack(f"{layout.order}{number}I", data[listed + foot.size :]) if layout.high_words else (0,) * number
    entries = list(_entries(path, layout, data[:listed], high, start, size))
    return end, entries, foot.unpack_from(data, listed)[0]


def _entries(path: Path, layout: _Layout, data: bytes, high: Sequence[int], start: int, size: int) -> Iterator[_Entry]:
    body = struct.Struct(layout.order + layout.entry)
    offset = struct.Struct(layout.order + ("I" if layout.high_words else layout.offset))
    for position, upper in zip(range(0, len(data), body.size), high, strict=True):
        tag, kind, count, value = body.unpack_from(data, position)
        length = SIZES.get(kind, 0) * count
        inline = start + position + body.size - offset.size
        where = inline if length <= offset.size else offset.unpack(value)[0] + (upper << 32)
        if kind == 0:
            raise SlideError("truncated", path, f"an entry of its directory at byte {start} is empty")
        if where + length > size:
            raise SlideError("truncated", path, f"the file ends at {size} bytes, before the value of tag {tag}")
        if tag in TILE_LISTS and count > MOST_TILES:
            raise SlideError("unreadable", path, f"a level lists {count} tiles")
        if length > LONGEST.get(tag, length):
            raise SlideError("unreadable", path, f"its tag {tag} has {length} bytes")
        yield _Entry(tag, kind, count, where, length)


def _offsets(path: Path, file: BinaryIO, layout: _Layout, entry: _Entry) -> list[int]:
    """The directories that an entry points to."""
    if entry.values > MOST_DIRECTORIES or SIZES.get(entry.kind, 0) < 4:
        raise SlideError("unreadable", path, f"a level lists {entry.values} directories of its own")
    code = "Q" if SIZES[entry.kind] == 8 else "I"
    return list(_unpack(path, file, entry.start, struct.Struct(f"{layout.order}{entry.values}{code}")))


def _unpack(path: Path, file: BinaryIO, at: int, what: struct.Struct) -> tuple[int, ...]:
    if at < 8 or at + what.size > os.fstat(file.fileno()).st_size:  # seeking too far is an error of its own
        raise SlideError("truncated", path, f"the file ends before its directory at byte {at}")
    file.seek(at)
    return what.unpack(file.read(what.size))
