"""What lies in a scans folder: slides by content, each once, in a fixed order; everything else with its reason."""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian

SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".ndpi",
        ".mrxs",
        ".vms",
        ".vmu",
        ".scn",
        ".bif",
        ".svslide",
        ".dcm",
        ".dicom",
        ".czi",
        ".tif",
        ".tiff",
        ".btf",
        ".qptiff",
    ]
)
"""A file with one of these is meant as a slide: if it can't be read, that is a failure and not 'no slide'."""

PARTIAL_SUFFIXES = (".tmp", ".part", ".partial", ".crdownload", ".filepart", "~")
"""Endings of files that somebody is still copying."""

SLIDE_MAGIC = {
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff", b"ZISRAWFI": "czi",
}  # fmt: skip
"""First bytes of slide containers."""

RULES_VERSION = 1
"""Number of the rules below. Count it up when they judge otherwise: every file is then opened once more."""

UNREADABLE = 0
"""In the number's place where a file could not be read: such a look is not remembered."""

WHOLE_SLIDE_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of VL Whole Slide Microscopy images (DICOM PS3.4, B.5)."""

SERIES_TAG = 0x0020000E
"""Tag of the series; elements stand in order of their tags."""

DICOM_META, DICOM_HEAD = 4096, 4 << 20
"""Bytes in which a file's own facts stand, and in which its series must."""

PYDICOM_ERRORS = (InvalidDicomError, OSError, ValueError, EOFError, NotImplementedError, AttributeError, KeyError, TypeError,
            IndexError, OverflowError, RecursionError, struct.error)  # fmt: skip
"""What pydicom raises on files it can't make sense of."""


@dataclass(frozen=True)
class SlideFiles:
    """A slide as it lies on disk: the file that opens it, and all files that belong to it."""

    path: Path
    members: tuple[Path, ...]  # all files, `path` among them
    bytes: int
    mtime_ns: int

    @property
    def stat_key(self) -> tuple[int, int, int]:
        """Changes when any of the files does."""
        return self.bytes, self.mtime_ns, len(self.members)


@dataclass(frozen=True)
class IgnoredFile:
    """A file that is no slide, or is left alone, and why."""

    path: Path
    bytes: int
    mtime_ns: int
    reason: str


class FileProbe(NamedTuple):
    """What a file was when it was opened: spares opening it again while its size and time of change are the same."""

    rules: int
    bytes: int
    mtime_ns: int
    kind: str | None
    belongs: tuple[str, ...]  # names; DICOM: of its series; VMS: of the files it lists

    def matches(self, facts: os.stat_result) -> bool:
        """Whether this is the file that was opened."""
        return self[:3] == (RULES_VERSION, facts.st_size, facts.st_mtime_ns)


class DiscoveredSlides(NamedTuple):
    """A folder searched. Lists are in order of path; looks by the name of the file."""

    slides: list[SlideFiles]
    ignored: list[IgnoredFile]
    probes: dict[str, FileProbe]

    def for_file(self, path: Path) -> DiscoveredSlides:
        """What a file is, alone: the slide it belongs to, or why it belongs to none."""
        slides = [one for one in self.slides if path in one.members]
        return DiscoveredSlides(slides, [one for one in self.ignored if one.path == path], self.probes)


def discover_slides(
    root: Path,
    leave_out: Path | None = None,
    known: Mapping[str, FileProbe] = MappingProxyType({}),
    name: Callable[[Path], str] = str,
) -> DiscoveredSlides:
    """Every slide under a folder (or the one file given), and every other file with the reason it is none.

    By content first, suffix second; MRXS with its folder, VMS with its pictures and a DICOM series are one slide
    each. Hidden and partial files are left alone, and so is the folder `leave_out` (a cohort that lies inside its
    scans).  known: looks of an earlier search; a file that is as it was then is not opened, and with them or without,
    the slides are the same.  name: what a path is called in looks.
    """
    files, ignored = _walk(root, leave_out)
    names = {path: name(path) for path in files}
    inside = _mirax_members(files)
    looks = {path: _probe_file(path, files[path], known.get(names[path]), name) for path in files if path not in inside}
    owners = inside | _vms_members(looks, {called: path for path, called in names.items()})
    slides: dict[Path | tuple[str, ...], list[Path]] = defaultdict(list)
    for path in sorted(files.keys() - owners.keys(), key=str):
        look = looks[path]
        if look.kind is None:
            ignored.append(_ignored(path, "can't be read" if look.rules == UNREADABLE else "not a slide"))
        elif look.kind == "dicom" and not look.belongs:
            ignored.append(_ignored(path, "DICOM, but no whole slide image"))
        else:
            slides[look.belongs if look.kind == "dicom" else path].append(path)
    for path in sorted(owners):  # behind what opens the slide
        slides[owners[path]].append(path)
    return DiscoveredSlides(
        sorted((_slide_files(paths, [files[one] for one in paths]) for paths in slides.values()), key=_path_key),
        sorted(ignored, key=_path_key),
        {names[path]: look for path, look in looks.items() if look.rules != UNREADABLE},
    )


def slide_files(paths: tuple[Path, ...]) -> SlideFiles:
    """The files of one slide, the one that opens it first. A file that is gone counts as empty."""
    return _slide_files(paths, [path.stat() for path in paths if path.exists()])


def _slide_files(paths: Sequence[Path], stats: list[os.stat_result]) -> SlideFiles:
    size, latest = sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)
    return SlideFiles(paths[0], tuple(paths), size, latest)


def refresh_files(found: SlideFiles) -> SlideFiles:
    """The same slide as its files are now."""
    return replace(slide_files(found.members), path=found.path)


def file_kind(path: Path) -> str | None:
    """'tiff', 'dicom', 'czi', 'mirax', 'hamamatsu', 'named' (the suffix says slide, the content does not), or None.

    Raises OSError.
    """
    with path.open("rb") as file:
        head = file.read(132)
    for magic, kind in SLIDE_MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[128:132] == b"DICM":
        return "dicom"
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return "mirax"
    if suffix in (".vms", ".vmu") and head.startswith(b"["):
        return "hamamatsu"
    return _kind_by_suffix(path)


def _kind_by_suffix(path: Path) -> str | None:
    return "named" if path.suffix.lower() in SLIDE_SUFFIXES else None


def _probe_file(path: Path, facts: os.stat_result, known: FileProbe | None, name: Callable[[Path], str]) -> FileProbe:
    """What a file is: as it is known, or opened. One that can't be read is judged by its suffix and not remembered."""
    if known is not None and known.matches(facts):
        return known
    rules, kind = UNREADABLE, _kind_by_suffix(path)
    belongs: tuple[str, ...] = ()
    with suppress(OSError):
        kind = file_kind(path)
        belongs = tuple(name(path.parent / one) for one in _related_names(path, kind))
        rules = RULES_VERSION
    return FileProbe(rules, facts.st_size, facts.st_mtime_ns, kind, belongs)


def _walk(root: Path, leave_out: Path | None) -> tuple[dict[Path, os.stat_result], list[IgnoredFile]]:
    """Regular files under a folder, hidden and partial ones apart. Folder links are not followed."""
    if root.is_file():
        return {root: root.stat()}, []
    files: dict[Path, os.stat_result] = {}
    ignored: list[IgnoredFile] = []
    for path, found in _entries(root, leave_out):
        if isinstance(found, str):
            ignored.append(_ignored(path, found))
        else:
            files[path] = found
    return files, ignored


def _entries(folder: Path, leave_out: Path | None) -> Iterator[tuple[Path, os.stat_result | str]]:
    """Files with their facts, or why they are left alone."""
    try:
        entries = sorted(os.scandir(folder), key=lambda one: one.name)
    except OSError as error:
        yield folder, f"folder can't be read: {error.strerror}"
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            yield path, "hidden"
        elif entry.is_dir(follow_symlinks=False):
            if path != leave_out:
                yield from _entries(path, leave_out)
        else:
            yield path, _stat_or_reason(entry)


def _stat_or_reason(entry: os.DirEntry[str]) -> os.stat_result | str:
    """What is known of a file that may be looked into; otherwise why it is left alone."""
    try:
        facts = entry.stat()
    except OSError:
        return "link that leads nowhere" if entry.is_symlink() else "gone while the folder was searched"
    if stat.S_ISDIR(facts.st_mode):
        return "link to a folder"
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    return "partial: still being copied" if entry.name.lower().endswith(PARTIAL_SUFFIXES) else facts


def _mirax_members(files: Iterable[Path]) -> dict[Path, Path]:
    """Files in the data folder of an MRXS: file → the MRXS."""
    indices = {path.parent / path.stem: path for path in files if path.suffix.lower() == ".mrxs"}
    return {path: indices[folder] for path in files for folder in path.parents if folder in indices} if indices else {}


def _vms_members(looks: Mapping[Path, FileProbe], files: Mapping[str, Path]) -> dict[Path, Path]:
    """Files that the index of a VMS lists, as far as they are there: file → the index."""
    owners = {
        files[one]: path
        for path, look in looks.items()
        for one in (look.belongs if look.kind != "dicom" else ())
        if one in files and files[one] != path
    }
    return {path: index for path, index in owners.items() if index not in owners}


def _related_names(path: Path, kind: str | None) -> list[str]:
    """Names in a file that say what belongs together: of a DICOM the series, of a VMS the files it lists."""
    if kind == "dicom":
        return _dicom_series(path)
    if path.suffix.lower() in (".vms", ".vmu"):
        with path.open(errors="replace") as file:
            return [one.strip() for one in re.findall(r"^\w+(?:\([\d,]+\))?=(.+)$", file.read(100_000), re.M)]
    return []


def _dicom_series(path: Path) -> list[str]:
    """The series a DICOM file belongs to; none when it is no whole slide image.

    This runs where the batch is led from, so a file gets no more of it than its first bytes: one may hold a million
    elements before its series, sequences inside sequences, or unpack to any size.
    """
    with path.open("rb") as file:
        head = file.read(DICOM_HEAD)
    try:
        if DeflatedExplicitVRLittleEndian.encode() in head[:DICOM_META]:
            raise ValueError("a packed data set, which whole slide images never are")
        with silence_pydicom():
            facts = read_partial(io.BytesIO(head), stop_when=lambda tag, *_: tag > SERIES_TAG)
            kind, series = str(facts.get("SOPClassUID", "")), facts.get("SeriesInstanceUID", f"no series {path.name}")
    except PYDICOM_ERRORS:
        return [f"damaged {path.name}"]
    return [str(series)] if kind == WHOLE_SLIDE_SOP_CLASS else []


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Without what pydicom and highdicom say of values that they do not like: they may be a patient's name."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _path_key(one: SlideFiles | IgnoredFile) -> str:
    return str(one.path)


def _ignored(path: Path, reason: str) -> IgnoredFile:
    try:
        facts = path.lstat()
    except OSError:
        return IgnoredFile(path, 0, 0, reason)
    return IgnoredFile(path, facts.st_size, facts.st_mtime_ns, reason)
