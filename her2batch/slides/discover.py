"""Discovery of slides in a scan folder: every slide once, by content, and the reason why other files are ignored."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from her2batch.slides.dicom.instances import DicomInstance, group_instances, read_instance
from her2batch.slides.listings.gdc import check_manifests
from her2batch.slides.listings.qupath import SUFFIX as QUPATH_PROJECT
from her2batch.slides.listings.qupath import read_project

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
"""Suffixes of slide files. A file with one of them that cannot be read is a failed slide, not an ignored file."""

PARTIAL_SUFFIXES = (".tmp", ".part", ".partial", ".crdownload", ".filepart", "~")
"""Name endings of files that are still being copied."""

LOG_SUFFIX = ".parcel"
"""Name ending of the logs that gdc-client keeps beside each file."""

SLIDE_MAGIC = {
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff", b"ZISRAWFI": "czi",
}  # fmt: skip
"""First bytes of slide containers → kind of file."""

MISSING = "missing"
"""First word of the reason of a file that a list names, but that is not there."""

RULES_VERSION = 2
"""Version of the rules in this module. Increase it when they give other results: all files are then probed again."""

UNREADABLE = 0
"""Stands for the version in the probe of a file that could not be read. Such probes are not stored."""


@dataclass(frozen=True)
class SlideFiles:
    """The files of one slide: the one by which it is opened, and all files that belong to it."""

    path: Path
    members: tuple[Path, ...]  # all files, including `path`
    bytes: int  # of all files
    mtime_ns: int  # of the newest file

    @property
    def stat_key(self) -> tuple[int, int, int]:
        """Key that changes when any of the files changes."""
        return self.bytes, self.mtime_ns, len(self.members)


@dataclass(frozen=True)
class IgnoredFile:
    """A file that is not a slide or is not read, and the reason."""

    path: Path
    bytes: int
    mtime_ns: int
    reason: str


class FileProbe(NamedTuple):
    """Result of opening a file once. While its size and modification time stay the same, it is not opened again."""

    rules: int
    bytes: int
    mtime_ns: int
    kind: str | None
    belongs: tuple[str, ...]  # names. DICOM: its identifiers (DicomInstance). VMS: the files it lists.

    def matches(self, file_stat: os.stat_result) -> bool:
        """Return whether the file is unchanged, and was probed by the current rules."""
        return self[:3] == (RULES_VERSION, file_stat.st_size, file_stat.st_mtime_ns)


class DiscoveredSlides(NamedTuple):
    """Result of searching a folder. The lists are sorted by path; the keys of `probes` are names of files."""

    slides: list[SlideFiles]
    ignored: list[IgnoredFile]
    probes: dict[str, FileProbe]

    def for_file(self, path: Path) -> DiscoveredSlides:
        """Return the result for one file: the slide that it belongs to, or the reason why it is ignored."""
        slides = [slide for slide in self.slides if path in slide.members]
        return DiscoveredSlides(slides, [file for file in self.ignored if file.path == path], self.probes)


def discover_slides(
    root: Path,
    exclude: Path | None = None,
    known: Mapping[str, FileProbe] = MappingProxyType({}),
    name: Callable[[Path], str] = str,
) -> DiscoveredSlides:
    """Find every slide under a folder, in one file or in a QuPath project, and why each other file is ignored.

    The content of a file counts before its suffix. An MRXS with its folder, a VMS with its images, and DICOM files of
    one glass are one slide each. Hidden and partial files are ignored, and the folder `exclude` (a cohort inside the
    scan folder) is not searched. Slides that a project or the manifest of a GDC download lists, but that are not there,
    are ignored files whose reason begins with MISSING.  known: probes of an earlier search; unchanged files are not
    opened, and the result is the same as without them.  name: function from a path to its key in probes.
    Raises InputError for a QuPath project that cannot be read.
    """
    files, ignored, listed = _walk(root, exclude)
    names = {path: name(path) for path in files}
    owners = _mirax_members(files)
    probes = {
        path: _probe_file(path, files[path], known.get(names[path]), name) for path in files if path not in owners
    }
    owners |= _vms_members(probes, {key: path for path, key in names.items()})
    slides: dict[Path, list[Path]] = defaultdict(list)
    instances: dict[Path, DicomInstance] = {}
    for path in sorted(files.keys() - owners.keys(), key=str):
        probe = probes[path]
        if probe.kind is None:
            ignored.append(_ignored(path, "can't be read" if probe.rules == UNREADABLE else "not a slide"))
        elif probe.kind == "dicom" and not probe.belongs:
            ignored.append(_ignored(path, "DICOM, but no whole slide image"))
        elif probe.kind == "dicom":
            instances[path] = DicomInstance.from_strings(probe.belongs)
        else:
            slides[path].append(path)
    series, unused = group_instances(instances)
    slides |= {paths[0]: paths for paths in series}
    ignored += [_ignored(path, reason) for path, reason in unused.items()]
    for path in sorted(owners):  # after the file by which the slide is opened
        slides[owners[path]].append(path)
    if listed is not None:  # other slides in the folders of a project's slides are not part of it
        slides = defaultdict(list, {key: paths for key, paths in slides.items() if not listed.isdisjoint(paths)})
        ignored = [file for file in ignored if file.path in listed]
    return DiscoveredSlides(
        sorted((_slide_files(paths, [files[path] for path in paths]) for paths in slides.values()), key=_path_key),
        sorted(ignored, key=_path_key),
        {names[path]: probe for path, probe in probes.items() if probe.rules != UNREADABLE},
    )


def slide_files(paths: tuple[Path, ...]) -> SlideFiles:
    """Return the files of one slide with their present size and time. paths: first the file by which it is opened.

    A file that does not exist counts as empty.
    """
    return _slide_files(paths, [path.stat() for path in paths if path.exists()])


def _slide_files(paths: Sequence[Path], stats: list[os.stat_result]) -> SlideFiles:
    size, newest = sum(item.st_size for item in stats), max((item.st_mtime_ns for item in stats), default=0)
    return SlideFiles(paths[0], tuple(paths), size, newest)


def refresh_files(files: SlideFiles) -> SlideFiles:
    """Return the files of the same slide with their present size and time."""
    return replace(slide_files(files.members), path=files.path)


def file_kind(path: Path) -> str | None:
    """Return the kind of a file: 'tiff', 'dicom', 'czi', 'mirax', 'hamamatsu', 'named', or None for other files.

    'named' is a file that has the suffix of a slide, and content of no known kind.  Raises OSError.
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


def _probe_file(
    path: Path, file_stat: os.stat_result, known: FileProbe | None, name: Callable[[Path], str]
) -> FileProbe:
    """Return the known probe of an unchanged file, else open the file. If that fails, only its suffix counts."""
    if known is not None and known.matches(file_stat):
        return known
    rules, kind = UNREADABLE, _kind_by_suffix(path)
    belongs: tuple[str, ...] = ()
    with suppress(OSError):
        kind = file_kind(path)
        belongs = _related_names(path, kind, name)
        rules = RULES_VERSION
    return FileProbe(rules, file_stat.st_size, file_stat.st_mtime_ns, kind, belongs)


def _walk(root: Path, exclude: Path | None) -> tuple[dict[Path, os.stat_result], list[IgnoredFile], set[Path] | None]:
    """Return the regular files under a folder, the ignored files, and for a QuPath project the files that it lists.

    Links to folders are not followed.
    """
    if root.is_file():
        return _project_files(root) if root.suffix.lower() == QUPATH_PROJECT else ({root: root.stat()}, [], None)
    files: dict[Path, os.stat_result] = {}
    ignored: list[IgnoredFile] = []
    for path, stat_or_reason in _entries(root, exclude):
        if isinstance(stat_or_reason, str):
            ignored.append(_ignored(path, stat_or_reason))
        else:
            files[path] = stat_or_reason
    missing, partial = check_manifests(root, {path: found.st_size for path, found in files.items()}, _is_slide_name)
    for path in partial:
        del files[path]
    return files, [*ignored, *(_ignored(path, reason) for path, reason in (missing | partial).items())], None


def _is_slide_name(path: Path) -> bool:
    return path.suffix.lower() in SLIDE_SUFFIXES


def _project_files(project: Path) -> tuple[dict[Path, os.stat_result], list[IgnoredFile], set[Path]]:
    """Return the files of the slides in a QuPath project and those beside them, what is missing, and what it lists."""
    images = read_project(project)
    ignored = [_ignored(image.path, image.missing) for image in images if image.missing is not None]
    files: dict[Path, os.stat_result] = {}
    for image in images:
        if image.missing is None:
            with suppress(OSError):  # a folder that cannot be searched: the slide file itself counts
                files |= {path: path.stat() for path in (image.path, *_companions(image.path))}
            files.setdefault(image.path, image.path.stat())
    return files, ignored, {image.path for image in images}


def _companions(path: Path) -> list[Path]:
    """Return the further files of a slide of several files: an MRXS folder, images beside a VMS, a DICOM folder."""
    if path.suffix.lower() == ".mrxs":
        return sorted(file for file in (path.parent / path.stem).glob("*") if file.is_file())
    if path.suffix.lower() in (".vms", ".vmu") or file_kind(path) == "dicom":
        return sorted(file for file in path.parent.iterdir() if file.is_file() and not file.name.startswith("."))
    return []


def _entries(folder: Path, exclude: Path | None) -> Iterator[tuple[Path, os.stat_result | str]]:
    """Yield every file under a folder with its stat, or with the reason why it is ignored."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"folder can't be read: {error.strerror}"
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            yield path, "hidden"
        elif entry.is_dir(follow_symlinks=False):
            if path != exclude:
                yield from _entries(path, exclude)
        else:
            yield path, _stat_or_reason(entry)


def _stat_or_reason(entry: os.DirEntry[str]) -> os.stat_result | str:
    """Return the stat of a file that may be opened, else the reason why it is ignored."""
    try:
        file_stat = entry.stat()
    except OSError:
        return "link that leads nowhere" if entry.is_symlink() else "gone while the folder was searched"
    if stat.S_ISDIR(file_stat.st_mode):
        return "link to a folder"
    if not stat.S_ISREG(file_stat.st_mode):
        return "not a regular file"
    if entry.name.lower().endswith(LOG_SUFFIX):
        return "log of a download"
    return "partial: still being copied" if entry.name.lower().endswith(PARTIAL_SUFFIXES) else file_stat


def _mirax_members(files: Iterable[Path]) -> dict[Path, Path]:
    """Return the files in data folders of MRXS slides: file → MRXS file."""
    indices = {path.parent / path.stem: path for path in files if path.suffix.lower() == ".mrxs"}
    return {path: indices[folder] for path in files for folder in path.parents if folder in indices} if indices else {}


def _vms_members(probes: Mapping[Path, FileProbe], files: Mapping[str, Path]) -> dict[Path, Path]:
    """Return the existing files that VMS index files list: file → index file."""
    owners = {
        files[name]: path
        for path, probe in probes.items()
        for name in (probe.belongs if probe.kind != "dicom" else ())
        if name in files and files[name] != path
    }
    return {path: index for path, index in owners.items() if index not in owners}


def _related_names(path: Path, kind: str | None, name: Callable[[Path], str]) -> tuple[str, ...]:
    """Return the names that link files to one slide: identifiers of a DICOM file, the files that a VMS file lists."""
    if kind == "dicom":
        instance = read_instance(path)
        return () if instance is None else instance.to_strings(lambda value: name(Path(value)))
    if path.suffix.lower() in (".vms", ".vmu"):
        with path.open(errors="replace") as file:
            listed = re.findall(r"^\w+(?:\([\d,]+\))?=(.+)$", file.read(100_000), re.M)
            return tuple(name(path.parent / related.strip()) for related in listed)
    return ()


def _path_key(item: SlideFiles | IgnoredFile) -> str:
    return str(item.path)


def _ignored(path: Path, reason: str) -> IgnoredFile:
    try:
        file_stat = path.lstat()
    except OSError:
        return IgnoredFile(path, 0, 0, reason)
    return IgnoredFile(path, file_stat.st_size, file_stat.st_mtime_ns, reason)
