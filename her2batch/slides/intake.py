"""What lies in a scans folder: slides by content, each once, in a fixed order; everything else with its reason."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

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

PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".filepart", "~")
"""Endings of files that somebody is still copying."""

MAGIC = {
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff", b"ZISRAWFI": "czi",
}  # fmt: skip
"""First bytes of slide containers."""

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of VL Whole Slide Microscopy images (DICOM PS3.4, B.5)."""


@dataclass(frozen=True)
class Source:
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
class Ignored:
    """A file that is no slide, or is left alone, and why."""

    path: Path
    bytes: int
    mtime_ns: int
    reason: str


def find(root: Path, leave_out: Path | None = None) -> tuple[list[Source], list[Ignored]]:
    """Every slide under a folder (or the one file given), and every other file with the reason it is none.

    By content first, suffix second; MRXS with its folder, VMS with its pictures and a DICOM series are one slide
    each. Hidden and partial files are left alone, and so is the folder `leave_out` (a cohort that lies inside its
    scans). Both lists are in order of path.
    """
    files, ignored = _walk(root, leave_out)
    taken = _companions(files)
    slides: list[Source] = []
    series: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in files:
        if path in taken:
            continue
        kind = kind_of(path)
        if kind == "dicom":
            uid, reason = _series(path)
            if uid is None:
                ignored.append(_ignored(path, reason))
            else:
                series[path.parent, uid].append(path)
        elif kind is None:
            ignored.append(_ignored(path, "not a slide"))
        else:
            slides.append(source((path, *sorted(p for p, owner in taken.items() if owner == path))))
    slides += [source(tuple(paths)) for paths in series.values()]
    return sorted(slides, key=lambda one: str(one.path)), sorted(ignored, key=lambda one: str(one.path))


def source(paths: tuple[Path, ...]) -> Source:
    """The files of one slide, the one that opens it first. A file that is gone counts as empty."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return Source(
        paths[0],
        paths,
        sum(one.st_size for one in stats if one),
        max((one.st_mtime_ns for one in stats if one), default=0),
    )


def again(found: Source) -> Source:
    """The same slide as its files are now."""
    return replace(source(found.members), path=found.path)


def kind_of(path: Path) -> str | None:
    """'tiff', 'dicom', 'czi', 'mirax', 'hamamatsu', 'named' (the suffix says slide, the content does not), or None."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        head = b""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[128:132] == b"DICM":
        return "dicom"
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return "mirax"
    if suffix in (".vms", ".vmu") and head.startswith(b"["):
        return "hamamatsu"
    return "named" if suffix in SLIDE_SUFFIXES else None


def _walk(root: Path, leave_out: Path | None) -> tuple[list[Path], list[Ignored]]:
    """Regular files under a folder in order of path, hidden and partial ones apart. Folder links are not followed."""
    if root.is_file():
        return [root], []
    files: list[Path] = []
    ignored: list[Ignored] = []
    for path, reason in _entries(root, leave_out):
        if reason is None:
            files.append(path)
        else:
            ignored.append(_ignored(path, reason))
    return sorted(files, key=str), ignored


def _entries(folder: Path, leave_out: Path | None) -> Iterator[tuple[Path, str | None]]:
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
            yield path, _left_alone(entry)


def _left_alone(entry: os.DirEntry[str]) -> str | None:
    """Why a file is not looked into; None when it is."""
    if entry.is_symlink() and not Path(entry.path).exists():
        return "link that leads nowhere"
    if entry.is_dir():
        return "link to a folder"
    if not stat.S_ISREG(entry.stat().st_mode):
        return "not a regular file"
    if entry.name.lower().endswith(PARTIAL):
        return "partial: still being copied"
    return None


def _companions(files: list[Path]) -> dict[Path, Path]:
    """Files of another file's slide (MRXS data folders, the pictures a VMS index names): file → its index."""
    indices = {path.parent / path.stem: path for path in files if path.suffix.lower() == ".mrxs"}
    owners = {path: indices[folder] for path in files for folder in path.parents if folder in indices}
    known = set(files)
    for index in files:
        if index.suffix.lower() in (".vms", ".vmu"):
            named = re.findall(r"^\w+(?:\([\d,]+\))?=(.+)$", index.read_text(errors="replace")[:100_000], re.M)
            owners |= {index.parent / name.strip(): index for name in named if index.parent / name.strip() in known}
    return {path: index for path, index in owners.items() if path != index}


def _series(path: Path) -> tuple[str | None, str]:
    """The series a DICOM file belongs to, or (None, why it is no slide)."""
    try:
        facts = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SeriesInstanceUID"])
    except (InvalidDicomError, OSError, ValueError, EOFError, NotImplementedError, AttributeError, KeyError):
        return f"damaged {path.name}", ""
    if str(facts.get("SOPClassUID", "")) != WHOLE_SLIDE:
        return None, "DICOM, but no whole slide image"
    return str(facts.get("SeriesInstanceUID", f"no series {path.name}")), ""


def _ignored(path: Path, reason: str) -> Ignored:
    try:
        facts = path.lstat()
    except OSError:
        return Ignored(path, 0, 0, reason)
    return Ignored(path, facts.st_size, facts.st_mtime_ns, reason)
