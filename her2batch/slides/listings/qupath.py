"""Image list of a QuPath project (`project.qpproj`), so that the project can be given as a scan folder.

The file is JSON: `uri` is its own address when it was saved, `images` has one entry an image. Since QuPath 0.2 an entry
has a `serverBuilder` that holds the address of the file in `uri`, inside further builders where the image is rotated,
cropped or combined (qupath-core, DefaultProject.java); before, it has `path`.
"""

from __future__ import annotations

import json
import ntpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from her2batch.errors import InputError

SUFFIX: Final = ".qpproj"

MAX_BYTES: Final = 256 << 20
"""Largest project file that is read."""

REMEDY: Final = "open the project in QuPath and save it again"

MISSING_REMEDY: Final = "copy the slides to where they were, or beside the project, or update the paths in QuPath"

DRIVE: Final = re.compile(r"/?[A-Za-z]:[\\/]")
"""Start of a path on a Windows drive, with the slash that an address adds."""


PARTS: Final = re.compile(r"[/\\]+")
"""Between the folders of a path, on any system."""


class ProjectImage(NamedTuple):
    """A slide file that a project names.  path: where it was looked for first.  missing: why it cannot be used."""

    path: Path
    missing: str | None


def read_project(project: Path) -> list[ProjectImage]:
    """Return the slide files of a project, each once, in the project's order.

    A file is looked for where the project says, then relative to the project as it was when the project was saved, then
    in the folders of its path below the folder of the project or the folder above.  Raises InputError when the file is
    no project of QuPath.
    """
    data = _load(project)
    saved_as = data.get("uri")
    old_folder = _file_path(saved_as) if isinstance(saved_as, str) else None
    found: dict[Path, ProjectImage] = {}
    stated: dict[Path, str] = {}
    for entry in data["images"]:
        name = entry.get("imageName") or entry.get("name") if isinstance(entry, dict) else None
        addresses = list(dict.fromkeys(_addresses(entry)))
        for address in addresses or [""]:
            image = _find(project, address, old_folder, name)
            other = stated.setdefault(image.path, address)
            if image.missing is None and not _is_same_file(other, address):
                image = _second_claim(project, image.path, address)
            found.setdefault(image.path, image)
    return list(found.values())


def _is_same_file(one: str, other: str) -> bool:
    """Return whether two addresses name one file: they end with the same folder and name, as far as both have them."""
    pairs = zip(reversed(PARTS.split(_file_path(one))), reversed(PARTS.split(_file_path(other))), strict=False)
    return all(first.casefold() == second.casefold() for first, second in list(pairs)[:2])


def _second_claim(project: Path, path: Path, address: str) -> ProjectImage:
    """Return an image whose file is taken: one of its name belongs to an image in another folder."""
    parts = [part for part in PARTS.split(_file_path(address)) if part]
    what = f"missing: {project.name} lists it, but {path} is the only file of this name, and another image has it too"
    return ProjectImage(project.parent.joinpath(*parts[-2:]), f"{what}; {MISSING_REMEDY}")


def _load(project: Path) -> dict[str, Any]:
    try:
        if project.stat().st_size > MAX_BYTES:
            raise InputError("the file is too large for a project of QuPath", project, REMEDY)
        data = json.loads(project.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"the project cannot be read ({error.strerror})", project, REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the project is not valid JSON ({error})", project, REMEDY) from error
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise InputError("the file is no project of QuPath: it has no list `images`", project, REMEDY)
    return data


def _addresses(value: object, depth: int = 0) -> Iterator[str]:
    """Yield the addresses of files in an entry: `uri` in its builders, or `path` of an old project."""
    if isinstance(value, Mapping) and depth < 16:
        for key, item in value.items():
            if isinstance(item, str) and (key == "uri" or (key == "path" and depth == 0)):
                yield item
            elif isinstance(item, Mapping | list) and key != "metadata":
                yield from _addresses(item, depth + 1)
    elif isinstance(value, list) and depth < 16:
        for item in value:
            yield from _addresses(item, depth + 1)


def _find(project: Path, address: str, old_project: str | None, name: object) -> ProjectImage:
    """Return the file at an address, wherever it lies now."""
    if not address:
        shown = name if isinstance(name, str) and name else "an image"
        return ProjectImage(project.parent / shown, f"missing: {project.name} has no path for it; {MISSING_REMEDY}")
    scheme = urlsplit(address).scheme.lower()
    if scheme not in ("", "file") and not DRIVE.match(address):
        what = f"missing: {project.name} has it on a server ({scheme}); download the slide, and ingest its folder"
        return ProjectImage(project.parent / PurePosixPath(urlsplit(address).path).name, what)
    stated = _file_path(address)
    candidates = list(_candidates(project.parent, stated, old_project))
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return ProjectImage(found, None)
    return ProjectImage(candidates[0], f"missing: there is no such file, but {project.name} lists it; {MISSING_REMEDY}")


def _file_path(address: str) -> str:
    """Return the path of an address: percent-decoded, without query and fragment, `C:/…` for a Windows drive."""
    if DRIVE.match(address):
        return address.lstrip("/")
    parts = urlsplit(address)
    if parts.scheme.lower() != "file":
        return address  # a plain path of an old project
    path = unquote(parts.path)
    if parts.netloc and parts.netloc != "localhost":
        return f"//{parts.netloc}{path}"
    return path.lstrip("/") if DRIVE.match(path) else path


def _candidates(folder: Path, stated: str, old_project: str | None) -> Iterator[Path]:
    """Yield the places where a file may lie, the most likely first.  folder: of the project now."""
    is_windows = bool(DRIVE.match(stated)) or "\\" in stated
    parts = (PureWindowsPath(stated) if is_windows else PurePosixPath(stated)).parts
    is_absolute = is_windows or stated.startswith("/")
    tail = parts[1:] if is_absolute else parts
    yield Path(stated) if is_absolute else folder / Path(*tail)
    if old_project is not None and (relative := _relative(stated, old_project)) is not None:
        yield Path(ntpath.normpath(str(folder / relative)).replace("\\", "/"))
    for first in range(len(tail)):
        for base in (folder, folder.parent):
            yield base.joinpath(*tail[first:])


def _relative(stated: str, old_project: str) -> Path | None:
    """Return the path of a file relative to the folder of the project when it was saved; None on another drive."""
    try:
        relative = ntpath.relpath(stated, ntpath.dirname(old_project))
    except ValueError:
        return None
    return Path(relative.replace("\\", "/"))
