"""Locations of a cohort: a local folder, or a prefix of an object store (s3://BUCKET/COHORT, or any URL of fsspec).

No other module distinguishes the two. On an object store nothing is renamed and nothing is forced to a disk: an object
is complete once its PUT has been answered, and a slide is committed once its row is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from her2batch.errors import InputError, StoreError, install_extra, one_line

URL_SEPARATOR = "://"


def to_location(text: str | Path) -> Path:
    """An absolute local path, or the path of a URL. Raises InputError for a URL that can't be used.

    Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), never from the URL.
    """
    name = str(text)
    if URL_SEPARATOR not in name:
        return Path(name).absolute()
    if urlsplit(name).password or urlsplit(name).username:
        remedy = "set the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        raise InputError("a URL must not contain credentials", None, remedy)
    try:
        from upath import UPath

        path: Any = UPath(name.rstrip("/"))
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise InputError(f"{name}: can't be reached ({error})", None, install_extra("s3")) from error
    return path  # type: ignore[no-any-return]  # a UPath has the methods of a Path


def object_store_problem(error: BaseException) -> str | None:
    """Return an error of the object store's client (no credentials, no answer, …) as a message; None for any other."""
    if not type(error).__module__.startswith(("botocore.", "aiobotocore.")):
        return None
    remedy = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL in the environment, and the network"
    return f"the object store cannot be used ({one_line(error)}); {remedy}"


def is_remote(path: Path) -> bool:
    """Whether a path is on an object store."""
    return URL_SEPARATOR in str(path)


def top_level_name(name: str) -> str:
    """What is moved into place at once, by a name in a cohort: the file, or the Zarr folder that contains it."""
    head, in_zarr, _ = name.partition(".zarr/")
    return f"{head}.zarr" if in_zarr else name


def slide_of_file(name: str) -> str:
    """Id of the slide that a file belongs to, by its name in a cohort."""
    return top_level_name(name).rpartition("/")[2].rpartition(".")[0]


def file_size(path: Path) -> int:
    """Size of a file or object in bytes. Raises FileNotFoundError."""
    return int(_fs(path).info(str(path))["size"]) if is_remote(path) else path.stat().st_size


def read_range(path: Path, start: int, end: int) -> bytes:
    """Read the bytes from start to end of an object."""
    return bytes(_fs(path).cat_file(str(path), start=start, end=end))


def list_objects(folder: Path) -> dict[str, tuple[int, int]]:
    """Objects under a prefix: name relative to it → size in bytes, modification time in ns. One request per 1,000."""
    fs = _fs(folder)
    fs.invalidate_cache()
    root = fs._strip_protocol(str(folder)).rstrip("/") + "/"
    objects = fs.find(root, detail=True)
    return {name.removeprefix(root): (int(facts["size"]), _modified_ns(facts)) for name, facts in objects.items()}


def walk_files(folder: Path) -> list[Path]:
    """Paths of all files under a folder, sorted. Folders that disappear meanwhile are skipped."""
    if is_remote(folder):
        return sorted(path for path in folder.glob("**/*") if path.is_file())
    return sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)


def upload(file: Path, target: Path) -> None:
    """Copy a local file to an object, complete or not at all. Raises StoreError."""
    fs = _fs(target)
    with store_errors(target):
        fs.put_file(str(file), str(target))
        fs.invalidate_cache()


def delete_objects(path: Path) -> None:
    """Delete an object, or all objects under a prefix, if there are any. Raises StoreError."""
    fs = _fs(path)
    with store_errors(path):
        fs.invalidate_cache()
        if fs.exists(str(path)):
            fs.rm(str(path), recursive=True)


def remove_tree(path: Path) -> None:
    """Delete a folder, or all objects under a prefix, if it exists."""
    if is_remote(path):
        delete_objects(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_files(root: Path, names: list[str]) -> None:
    """Delete files by their names in a cohort, and folders of a Zarr that become empty."""
    for path in (root / name for name in names):
        if is_remote(path):
            delete_objects(path)
            continue
        path.unlink(missing_ok=True)
        for folder in path.parents:
            in_zarr = any(part.endswith(".zarr") for part in folder.relative_to(root).parts)
            if not in_zarr or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def create_exclusively(path: Path, data: bytes) -> bool:
    """Create an object that must not exist yet; returns False if it does. Raises StoreError."""
    fs = _fs(path)
    fs.invalidate_cache()
    try:
        fs.pipe_file(str(path), data, mode="create")
    except (FileExistsError, OSError) as error:
        if isinstance(error, FileExistsError) or "PreconditionFailed" in repr(error) or fs.exists(str(path)):
            return False
        raise StoreError(f"can't be written to ({error})", str(path), "check its name, rights and network") from error
    return True


def draft_folder(path: Path) -> Path:
    """The local folder for drafts of a cohort on an object store: the same for all processes of a machine."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"her2batch-drafts-{digest}"


def make_draft_folder(path: Path) -> Path:
    """Create the local folder for drafts, readable by its owner only, and return it."""
    folder = draft_folder(path)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def free_bytes(path: Path) -> int | None:
    """Free space in bytes; None on an object store."""
    if is_remote(path):
        return None
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Raise an error of the object store as a StoreError with the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "s3fs"):
            raise
        raise StoreError(f"can't be used ({error})", str(path), "check its name, rights and network") from error


def _fs(path: Path) -> Any:
    return path.fs  # type: ignore[attr-defined]


def _modified_ns(facts: dict[str, Any]) -> int:
    moment: Any = facts.get("LastModified") or facts.get("mtime") or facts.get("created") or 0
    return int((moment.timestamp() if hasattr(moment, "timestamp") else moment) * 1e9)
