"""The import of cuCIM, which must not follow that of torch in one process."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from her2batch.errors import InputError
from her2batch.slides.cucim.reader_process import ImageInProcess, reader_process


def load_cucim() -> Any:
    """Return cuCIM's image class. Importing takes about 500 MB on every visible GPU, so it is lazy.

    A worker calls this before it imports torch: after torch 2.15, neither the import of cuCIM 26.10 returned, nor the
    first image it opened, when it loads its plugins. Hence a file that does not exist is opened here.  Where torch came
    first, the class is `ImageInProcess`, which reads through a process of its own.  Raises InputError when cuCIM is not
    installed.
    """
    try:
        if "torch" in sys.modules and "cucim" not in sys.modules:
            reader_process()
            return ImageInProcess
        from cucim.clara import CuImage
    except ImportError as error:
        remedy = "run pip install cucim-cu13, or use --reader auto"
        raise InputError("the reader cucim is not installed", None, remedy) from error
    with contextlib.suppress(ValueError, RuntimeError):
        CuImage("no such image")
    return CuImage
