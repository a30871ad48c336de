"""cuCIM in a process of its own, for processes that imported torch first.

After torch 2.15, cuCIM 26.10 never returned from its import, nor from the first image it opened; after torch 2.14.1 it
does. The library is therefore loaded in a process without torch, whichever the versions. Pixels cross a pipe, which
costs a copy; who loads cuCIM before torch does without the process.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ERRORS = {"ValueError": ValueError, "RuntimeError": RuntimeError}
"""Exceptions of cuCIM, which callers tell apart from those of her2batch."""


@dataclass
class ReaderProcess:
    """A process that opens images with cuCIM and answers one request after the other."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    turn: threading.Lock

    @classmethod
    def start(cls) -> ReaderProcess:
        """Start the process. Raises ImportError when cuCIM is not installed."""
        ours, theirs = Pipe()
        words = [sys.executable, "-c", _PROGRAM.format(path=sys.path), str(theirs.fileno())]
        null = subprocess.DEVNULL
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=null, stdout=null)  # noqa: S603
        theirs.close()
        started = cls(process, ours, threading.Lock())
        failure = started.request("load")
        if failure is not None:
            started.end()
            raise ImportError(failure)
        return started

    def request(self, *words: Any) -> Any:
        """Send a request and return the answer. Raises ValueError or RuntimeError as cuCIM does in the process."""
        with self.turn:
            try:
                self.pipe.send(words)
                kind, answer = self.pipe.recv()
            except (EOFError, OSError) as error:
                raise RuntimeError(f"the process of cuCIM has ended with code {self.process.wait()}") from error
        if kind == "error":
            name, message = answer
            raise _ERRORS.get(name, RuntimeError)(message)
        return answer

    def end(self) -> None:
        """End the process: it returns when its pipe is closed."""
        self.pipe.close()
        self.process.wait()


_PROGRAM = """
import sys
sys.path[:] = {path!r}
from her2batch.slides.cucim.reader_process import serve
serve(int(sys.argv[1]))
"""
"""The program of the process; `-m` would import the package of the parent's working folder instead."""


class ImageInProcess:
    """An image that the reader process of this process has open, with what CucimSlide needs of a CuImage."""

    def __init__(self, path: str) -> None:
        """Open an image. Raises ValueError or RuntimeError as CuImage does."""
        self._process = reader_process()
        self._number, self.resolutions = self._process.request("open", path)

    def read_region(self, corner: tuple[int, int], size: tuple[int, int], level: int) -> NDArray[np.uint8]:
        """Return the pixels of a region, (h, w, channels) uint8."""
        shape, pixels = self._process.request("read", self._number, corner, size, level)
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    def close(self) -> None:
        """Close the image."""
        if self._process.process.poll() is None:
            self._process.request("close", self._number)


_started: dict[int, ReaderProcess] = {}
"""The reader process of this process, by its id: a child after a fork starts one of its own."""

_starting = threading.Lock()


def reader_process() -> ReaderProcess:
    """Return the running reader process of this process; a new one where there is none, or where it has ended."""
    with _starting:
        found = _started.get(os.getpid())
        if found is None or found.process.poll() is not None:
            found = ReaderProcess.start()
            _started[os.getpid()] = found
            atexit.register(found.end)
        return found


def serve(descriptor: int) -> None:
    """Answer requests until the pipe is closed: load, open, read, close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    pipe, number = Connection(descriptor), 0
    images: dict[int, Any] = {}
    while True:
        try:
            what, *words = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if what == "load":
                answer: Any = _load()
            elif what == "open":
                from cucim.clara import CuImage

                image, number = CuImage(words[0]), number + 1
                images[number] = image
                answer = number, dict(image.resolutions)
            elif what == "read":
                region = np.ascontiguousarray(np.asarray(images[words[0]].read_region(*words[1:])))
                answer = region.shape, region.tobytes()
            else:
                answer = images.pop(words[0]).close()
            pipe.send(("answer", answer))
        except (ValueError, RuntimeError, KeyError, MemoryError) as error:
            pipe.send(("error", (type(error).__name__, str(error))))


def _load() -> str | None:
    """Import cuCIM; returns the reason why it cannot be imported, or None."""
    try:
        import cucim.clara
    except ImportError as error:
        return str(error)
    return None if Path(cucim.clara.__file__).exists() else "its files are missing"
