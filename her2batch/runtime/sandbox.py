"""Opening a slide for trial, in a process of its own: what crashes or hangs there costs nobody anything.

As a program it reads one JSON line a slide and answers with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from her2batch.errors import Her2BatchError

PATIENCE_S = 120.0
"""How long one trial may take: a slide's tile table of 100,000 tiles on a slow share."""

MEMORY = 4_000_000_000
"""Bytes it may hold, as a worker."""

LOST = "the program that opens it crashed, or did not come to an end"

SLICE_S = 0.5
"""How soon a stop is noticed."""


class Outcome(NamedTuple):
    """Of one trial. why: it can't be opened, None when it can.  trouble: its code when the process was lost by it."""

    why: str | None
    trouble: str | None = None


class SlideSandbox:
    """The process, started when the first slide is tried and again whenever it was lost."""

    def __init__(
        self,
        reader: str = "auto",
        patience: float = PATIENCE_S,
        stopped: threading.Event | None = None,
        memory: int = MEMORY,
    ) -> None:
        """patience: seconds a trial may take.  stopped: when it is set, one that goes on is given up."""
        self._reader, self._patience, self._memory = reader, patience, memory
        self._stopped = stopped or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def fails(self, path: Path) -> str | None:
        """Why a slide can't be opened and its tile table not be validated to the last byte; None when it can."""
        return self.opened(path).why

    def opened(self, path: Path) -> Outcome:
        """What came of opening a slide and validating it."""
        began = time.monotonic()
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"path": os.fsdecode(path), "reader": self._reader}).encode() + b"\n")
            process.stdin.flush()
            answer = self._answer(process)
        except OSError:
            answer = b""
        if not answer:
            self.close()
            return Outcome(LOST, "timeout" if time.monotonic() - began >= self._patience else "worker-lost")
        return Outcome(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "her2batch.runtime.sandbox", str(self._memory)]
            self._process = subprocess.Popen(  # noqa: S603  (ourselves, with no argument of the user's)
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        """A line; nothing when the process ends, takes too long, or nobody wants to know any more."""
        assert process.stdout is not None
        end, found = time.monotonic() + self._patience, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if selector.select(min(SLICE_S, self._patience)):
                    part = os.read(process.stdout.fileno(), 65536)
                    if not part:
                        return b""
                    found += part
                elif self._stopped.is_set() or time.monotonic() >= end:
                    return b""
        return found


def attempt(path: Path, reader: str) -> str | None:
    """Open and validate a slide here; why it fails, or None."""
    from her2batch.slides.readers import open_slide

    try:
        with open_slide(path, reader) as slide:
            slide.validate()
    except Her2BatchError as error:
        return error.what
    except (OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    """Answer until the other end closes. Its one argument: bytes it may hold."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), resource.RLIM_INFINITY))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin.buffer:
            asked = json.loads(line)
            out.write(json.dumps(attempt(Path(asked["path"]), asked["reader"])) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
