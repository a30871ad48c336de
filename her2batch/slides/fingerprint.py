"""Checks of the raw bytes of a slide: SHA-256, ranges of zeros, and completeness of TIFF directories.

TIFF layout (TIFF 6.0, section 2; BigTIFF: design note of libtiff): a header, then a chain of directories. A directory
has entries (tag, type, count, value or its offset) and ends with the offset of the next directory, or 0.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError

ByteRange = tuple[int, int]
"""First byte, and the byte after the last."""

PAGE_BYTES = 512
"""Size of a page, bytes. Disks and copy programs lose data in multiples of it."""

READ_CHUNK_BYTES = 4 << 20

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag → number of bytes of one value."""

SUBDIRECTORIES = 330
DESCRIPTIVE_TAGS = frozenset({256, 257, 270, 347})
"""Tags needed to interpret the slide: width, height, description, JPEG tables."""

TILE_LIST_TAGS = frozenset({273, 279, 324, 325})
MAX_DIRECTORIES, MAX_ENTRIES, MAX_TILES = 10_000, 4_000, 20_000_000
MAX_DESCRIPTIVE_BYTES = 100_000_000
"""Largest size of all descriptions and JPEG tables together. Directories may share one, which is read with each."""

MAX_DEPTH = 8
"""Largest number of directories one inside the other, as SubIFDs."""

MAX_VALUE_BYTES = {270: 32_000_000, 347: 100_000, 700: 32_000_000}
"""Tag → largest number of bytes of its value: descriptions are searched, and JPEG tables are decoded with each tile."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a slide's content.

    sha256: of the file; for several files, of their sorted digests, independent of their names.  bytes: of all files.
    holes: byte ranges (start, end) of complete pages of zeros; several files count as concatenated.
    """

    sha256: str
    bytes: int
    holes: tuple[ByteRange, ...]


def fingerprint_slide(paths: Sequence[Path]) -> Fingerprint:
    """Read every file of a slide once and return its fingerprint. Raises OSError."""
    digests: list[str] = []
    holes: list[ByteRange] = []
    position = 0
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(READ_CHUNK_BYTES):
                digest.update(chunk)
                for start, end in _zero_pages(chunk):
                    _append_hole(holes, position + start, position + end)
                position += len(chunk)
        digests.append(digest.hexdigest())
    sha = digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return Fingerprint(sha, position, tuple(holes))


def _zero_pages(chunk: bytes) -> list[ByteRange]:
    """Return the ranges of zero pages in a chunk. Testing one word of each page first takes 1 % of the hashing time."""
    words = PAGE_BYTES // 8
    pages: NDArray[np.uint64] = np.frombuffer(chunk, "<u8", count=len(chunk) // PAGE_BYTES * words).reshape(-1, words)
    empty = pages[:, 0] == 0
    candidates = np.flatnonzero(empty)
    empty[candidates] = ~pages[candidates].any(axis=1)
    edges = np.flatnonzero(np.diff(empty, prepend=False, append=False)) * PAGE_BYTES
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _append_hole(holes: list[ByteRange], start: int, end: int) -> None:
    if holes and holes[-1][1] == start:
        holes[-1] = (holes[-1][0], end)
    else:
        holes.append((start, end))


class _TiffLayout(NamedTuple):
    order: str  # byte order: < or >
    number: str  # struct code of the number of entries
    entry: str  # struct code of an entry
    offset: str  # struct code of an offset
    first: int  # offset of the first directory
    high_words: bool  # NDPI: a directory is followed by the upper 32 bits of its entries' offsets


class _Entry(NamedTuple):
    tag: int
    kind: int  # type of the values
    values: int  # number of values
    start: int  # byte offset of the first value
    length: int  # bytes of all values


def is_tiff(path: Path) -> bool:
    """Return whether the file starts like a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in TIFF_MAGIC


@dataclass(frozen=True)
class Directory:
    """A directory of a TIFF and the byte ranges of the values that it points to.

    at, end: the directory itself.  parent: offset of the directory of which it is a SubIFD; None for the main chain.
    descriptive: sizes, descriptions, JPEG tables.  tile_lists: offsets and sizes of tiles or strips.
    """

    at: int
    end: int
    parent: int | None
    descriptive: tuple[ByteRange, ...]
    tile_lists: tuple[ByteRange, ...]


def check_directories(path: Path, high_words: bool = False) -> tuple[tuple[ByteRange, ...], tuple[ByteRange, ...]]:
    """Walk through all directories of a TIFF. Nothing but the directories is read.

    Returns two tuples of byte ranges: those that must not be zeros (directories, sizes, descriptions), and those of
    the tile lists. Raises SlideError as `read_directories` does.
    """
    directories = read_directories(path, high_words)
    fixed = [((item.at, item.end), *item.descriptive) for item in directories]
    return tuple(chain.from_iterable(fixed)), tuple(chain.from_iterable(item.tile_lists for item in directories))


def read_directories(path: Path, high_words: bool = False) -> list[Directory]:
    """Return all directories of a TIFF: the main chain in its order, then the SubIFDs of each directory.

    A directory may be pointed to more than once: writers list all SubIFDs of a page and also chain them. It is read
    once. Only a chain that returns to itself, or to the directory that it hangs from, is a loop.  high_words: the file
    is an NDPI, which stores the upper 32 bits of offsets separately.  Raises SlideError `truncated` when something
    lies beyond the end of the file or is empty, `unreadable` for loops and implausible counts.
    """
    with path.open("rb") as file:
        walk = _DirectoryWalk(path, file, _parse_header(path, file.read(16), high_words))
        walk.follow_chain(walk.layout.first, None)
        for item in walk.found:  # grows meanwhile
            for offset in walk.subdirectories.pop(item.at, ()):
                walk.follow_chain(offset, item)
    return walk.found


class _DirectoryWalk:
    """The directories of a TIFF that were found so far."""

    def __init__(self, path: Path, file: BinaryIO, layout: _TiffLayout) -> None:
        self.path, self.file, self.layout = path, file, layout
        self.size = os.fstat(file.fileno()).st_size
        self.found: list[Directory] = []
        self.subdirectories: dict[int, list[int]] = {}  # of directories whose SubIFDs were not followed yet
        self._by_offset: dict[int, Directory] = {}
        self._pointers = self._descriptive_bytes = 0

    def follow_chain(self, at: int, parent: Directory | None) -> None:
        """Add the directories of a chain that were not found before. Raises SlideError.

        at: offset of the first.  parent: the directory whose SubIFDs they are.
        """
        own, ancestors = set[int](), set(self._ancestors(parent))
        self._pointers += 1
        too_many = self._pointers >= MAX_DIRECTORIES or len(ancestors) > MAX_DEPTH
        while at:
            if at in own or at in ancestors or too_many or len(self.found) >= MAX_DIRECTORIES:
                raise SlideError("unreadable", self.path, "its TIFF directories form a loop, or there are too many")
            if at in self._by_offset:
                return
            own.add(at)
            at = self._add(at, None if parent is None else parent.at)

    def _ancestors(self, item: Directory | None) -> Iterator[int]:
        while item is not None:
            yield item.at
            item = None if item.parent is None else self._by_offset[item.parent]

    def _add(self, at: int, parent: int | None) -> int:
        """Read a directory: return the offset of the next one in its chain, or 0."""
        end, entries, following = _read_directory(self.path, self.file, self.layout, at, self.size)
        self._descriptive_bytes += sum(entry.length for entry in entries if entry.tag in DESCRIPTIVE_TAGS)
        if self._descriptive_bytes > MAX_DESCRIPTIVE_BYTES:
            raise SlideError("unreadable", self.path, "its descriptions have an implausible size")
        ranges = [(entry.tag, (entry.start, entry.start + entry.length)) for entry in entries]
        descriptive = tuple(span for tag, span in ranges if tag in DESCRIPTIVE_TAGS)
        item = Directory(at, end, parent, descriptive, tuple(span for tag, span in ranges if tag in TILE_LIST_TAGS))
        self.found.append(item)
        self._by_offset[at] = item
        for entry in entries:
            if entry.tag == SUBDIRECTORIES:
                offsets = _subdirectory_offsets(self.path, self.file, self.layout, entry)
                self.subdirectories.setdefault(at, []).extend(offsets)
        return following


def _parse_header(path: Path, head: bytes, high_words: bool) -> _TiffLayout:
    if head[:4] not in TIFF_MAGIC:
        raise SlideError("unreadable", path, "the file is not a TIFF")
    order = "<" if head[:1] == b"I" else ">"
    big = b"+" in head[:4]
    if len(head) < 16:
        raise SlideError("truncated", path, "the file ends after its header")
    offset = "Q" if big or high_words else "I"
    first = struct.unpack_from(order + offset, head, 8 if big else 4)[0]
    if big:
        return _TiffLayout(order, "Q", "HHQ8s", offset, first, False)
    return _TiffLayout(order, "H", "HHI4s", offset, first, high_words)


def _read_directory(
    path: Path, file: BinaryIO, layout: _TiffLayout, at: int, size: int
) -> tuple[int, list[_Entry], int]:
    """Read the directory at an offset: return where it ends, its entries, and the offset of the next one."""
    head, body, foot = (struct.Struct(layout.order + code) for code in (layout.number, layout.entry, layout.offset))
    number = _unpack(path, file, at, head)[0]
    if number == 0 or number > MAX_ENTRIES:
        code = "truncated" if number == 0 else "unreadable"
        raise SlideError(code, path, f"its TIFF directory at byte {at} has {number} entries")
    start, length = at + head.size, number * body.size
    end = start + length + foot.size + (4 * number if layout.high_words else 0)
    if end > size:
        raise SlideError("truncated", path, f"the file ends at {size} bytes, inside a directory")
    file.seek(start)
    data = file.read(end - start)
    high = struct.unpack(f"{layout.order}{number}I", data[length + foot.size :]) if layout.high_words else (0,) * number
    entries = list(_entries(path, layout, data[:length], high, start, size))
    return end, entries, foot.unpack_from(data, length)[0]


def _entries(
    path: Path, layout: _TiffLayout, data: bytes, high: Sequence[int], start: int, size: int
) -> Iterator[_Entry]:
    body = struct.Struct(layout.order + layout.entry)
    offset = struct.Struct(layout.order + ("I" if layout.high_words else layout.offset))
    for position, upper in zip(range(0, len(data), body.size), high, strict=True):
        tag, kind, count, value = body.unpack_from(data, position)
        length = TYPE_BYTES.get(kind, 0) * count
        inline = start + position + body.size - offset.size
        where = inline if length <= offset.size else offset.unpack(value)[0] + (upper << 32)
        if kind == 0:
            raise SlideError("truncated", path, f"an entry of its TIFF directory at byte {start} is empty")
        if where + length > size:
            raise SlideError("truncated", path, f"the file ends at {size} bytes, before the value of tag {tag}")
        if tag in TILE_LIST_TAGS and count > MAX_TILES:
            raise SlideError("unreadable", path, f"a level lists {count} tiles, which is implausible")
        if length > MAX_VALUE_BYTES.get(tag, length):
            raise SlideError("unreadable", path, f"its tag {tag} has {length} bytes, which is implausible")
        yield _Entry(tag, kind, count, where, length)


def _subdirectory_offsets(path: Path, file: BinaryIO, layout: _TiffLayout, entry: _Entry) -> list[int]:
    """Return the offsets of the directories that an entry points to."""
    if entry.values > MAX_DIRECTORIES or TYPE_BYTES.get(entry.kind, 0) < 4:
        raise SlideError("unreadable", path, f"a level lists {entry.values} directories, which is implausible")
    code = "Q" if TYPE_BYTES[entry.kind] == 8 else "I"
    return list(_unpack(path, file, entry.start, struct.Struct(f"{layout.order}{entry.values}{code}")))


def _unpack(path: Path, file: BinaryIO, at: int, layout: struct.Struct) -> tuple[int, ...]:
    if at < 8 or at + layout.size > os.fstat(file.fileno()).st_size:  # seek raises for offsets beyond 2**63
        raise SlideError("truncated", path, f"the file ends before its directory at byte {at}")
    file.seek(at)
    return layout.unpack(file.read(layout.size))
