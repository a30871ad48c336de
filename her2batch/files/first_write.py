"""A small file that several processes want to write: the first one wins, and all read the same."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from her2batch.files.atomic import fsync, make_folder
from her2batch.files.locations import create_exclusively, is_remote


def write_first(path: Path, text: str) -> str:
    """Write a file unless it exists, complete or not at all, and return what it contains then.

    Raises OSError and StoreError when the disk or the object store refuses it.
    """
    if is_remote(path):
        create_exclusively(path, text.encode())
        return path.read_text("utf-8")
    make_folder(path.parent)
    part = path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        part.write_text(text, "utf-8")
        fsync(part)
        _link(part, path)
        fsync(path.parent)
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)
    return path.read_text("utf-8")


def _link(part: Path, path: Path) -> None:
    """Give a file a second name. Raises FileExistsError, which a rename would not."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links, such as some shares
        with path.open("x", encoding="utf-8") as file:
            file.write(part.read_text("utf-8"))
