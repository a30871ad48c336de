"""Folders that a command makes and leaves behind only if it did something."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from her2batch.errors import HeadLost, Her2BatchError
from her2batch.files.locations import is_remote
from her2batch.files.locks import is_own_lock, last_lock


@contextmanager
def remove_if_refused(root: Path, has_results: Callable[[], bool], locked: bool = True) -> Iterator[None]:
    """Remove what a refused command has put into a new folder, and the folder with the parents that it made.

    A folder that held files before is left alone, and so is an object store. Nothing is removed unless the folder's
    lock is that of this process: another run may have made the folder at the same time, or another disk may have been
    mounted in its place.  has_results: returns whether the folder holds something to keep; it is called when the
    command is refused.  locked: False for a folder that the command fills before it locks it.
    """
    before = {path.name for path in root.iterdir()} if not is_remote(root) and root.is_dir() else set()
    if is_remote(root) or any(not name.startswith(".") for name in before):
        yield
        return
    made = [path for path in (root, *root.parents) if not path.exists()]
    try:
        yield
    except HeadLost:  # its workers may still be writing
        raise
    except Her2BatchError:
        if root.is_dir() and _is_ours(root, made, locked) and not has_results():
            _remove_new(root, before, made)
        raise


def _is_ours(root: Path, made: list[Path], locked: bool) -> bool:
    """Return whether this process has locked the folder, or has made it and could not lock it, or has not yet."""
    text = last_lock(root)
    if text is None:
        return not locked
    return is_own_lock(text) if text else root in made


def _remove_new(root: Path, before: set[str], made: list[Path]) -> None:
    """Remove the entries of a folder that were not there before, then the folders in `made`, while they are empty."""
    for path in root.iterdir():
        if path.name not in before:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody has put a file there meanwhile
        for folder in made:
            folder.rmdir()
