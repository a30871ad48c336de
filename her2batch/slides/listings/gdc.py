"""Manifest of a download from the NCI Genomic Data Commons, by which slides that did not arrive are known.

`gdc-client download` writes every file into a folder named by its UUID, with `logs/` and `annotations.txt`, and leaves
`.partial` files of interrupted downloads. The manifest is a tab-separated file with the columns id, filename, md5, size
and state. In an archive of the portal it is `MANIFEST.txt`, and `filename` begins with the folder.
Source: docs.gdc.cancer.gov, Data Transfer Tool, Data Download and Upload.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

MAX_BYTES: Final = 64 << 20
"""Largest manifest that is read."""

COLUMNS: Final = ("id", "filename", "md5", "size", "state")
"""Columns by which a manifest is recognized."""


class ManifestFile(NamedTuple):
    """A file of a manifest.  path: where gdc-client writes it.  size: bytes; None where it is not stated."""

    path: Path
    size: int | None


def check_manifests(
    root: Path, sizes: Mapping[Path, int], is_slide: Callable[[Path], bool]
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Compare the manifests in a scan folder with its files.

    sizes: of all files that were found.  is_slide: whether a name is that of a slide; other files are not missed.
    Returns two dictionaries of path → reason: slides that are missing, and slides that are there in part.
    """
    missing: dict[Path, str] = {}
    partial: dict[Path, str] = {}
    for manifest in find_manifests(root, sizes):
        remedy = f"run gdc-client download -m {manifest.name} in {root}"
        for file in read_manifest(manifest):
            if not is_slide(file.path):
                continue
            found = next((path for path in (file.path, root / file.path.name) if path in sizes), None)
            if found is None:
                missing[file.path] = f"missing: listed in {manifest.name}, but not downloaded; {remedy}"
            elif file.size is not None and sizes[found] != file.size:
                partial[found] = f"partial: {sizes[found]} of the {file.size} bytes in {manifest.name}; {remedy}"
    return missing, partial


def find_manifests(root: Path, files: Iterable[Path]) -> list[Path]:
    """Return the manifests that lie directly in a folder, by their names."""
    names = [path for path in files if path.parent == root and path.suffix.lower() in (".txt", ".tsv")]
    return sorted(path for path in names if "manifest" in path.name.lower())


def read_manifest(path: Path) -> Iterator[ManifestFile]:
    """Yield the files of a manifest; nothing for a file that is not one, whatever its name."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    if not lines or not set(lines[0].lower().split("\t")) >= set(COLUMNS[:2]):
        return
    for row in csv.DictReader([lines[0].lower(), *lines[1:]], delimiter="\t", quoting=csv.QUOTE_NONE):
        name, folder = (row.get("filename") or "").strip(), (row.get("id") or "").strip()
        if not name or ".." in Path(name).parts or Path(name).is_absolute():
            continue
        relative = Path(name) if "/" in name else Path(folder) / name
        size = (row.get("size") or "").strip()
        yield ManifestFile(path.parent / relative, int(size) if size.isdecimal() else None)
