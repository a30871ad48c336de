"""Folders that are filled once in a test run, and read by all of its worker processes."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

COMPLETE = ".complete"
"""An empty file in such a folder, written last."""


def folder_of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of the whole test run, the same for all of its worker processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder` filled by `make`; of several processes that ask for it, the first fills it and the others wait.

    A worker that fails leaves the folder as it is, and the next one calls `make` again on an empty folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / COMPLETE).exists():
            if folder.exists():
                folder.rename(folder.with_name(f"{folder.name}.failed-{os.getpid()}"))
            folder.mkdir()
            make(folder)
            (folder / COMPLETE).touch()
    return folder
