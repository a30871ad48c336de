"""Opens slides for trial in a separate process, so that a crash or hang of a library does no harm.

Run as a program, it reads one JSON line for each slide and writes one as the answer.
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
"""Longest time of one trial: a slide's tile table of 100,000 tiles on a slow share."""

MEMORY = 4_000_000_000
"""Memory limit of the process in bytes, as of a worker."""

LOST = "the process that opens it crashed, or did not end in time"

POLL_S = 0.5
"""Seconds after which a stop is noticed."""


class TrialResult(NamedTuple):
    """Result of opening a slide.  failure: why it cannot be opened, or None.  error_code: if the process was lost."""

    failure: str | None
    error_code: str | None = None


class SlideSandbox:
    """The separate process, started with the first slide and again whenever it was lost."""

    def __init__(
        self,
        reader: str = "auto",
        patience: float = PATIENCE_S,
        stopped: threading.Event | None = None,
        memory: int = MEMORY,
    ) -> None:
        """patience: seconds that a trial may take.  stopped: once set, a running trial is abandoned."""
        self._reader, self._patience, self._memory = reader, patience, memory
        self._stopped = stopped or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def open_failure(self, path: Path) -> str | None:
        """Why a slide cannot be opened and its tile table validated to the last byte; None if it can."""
        return self.try_open(path).failure

    def try_open(self, path: Path) -> TrialResult:
        """Open a slide and validate it."""
        began = time.monotonic()
        try:
            process = self._start_if_needed()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"path": os.fsdecode(path), "reader": self._reader}).encode() + b"\n")
            process.stdin.flush()
            answer = self._answer(process)
        except OSError:
            answer = b""
        if not answer:
            self.close()
            return TrialResult(LOST, "timeout" if time.monotonic() - began >= self._patience else "worker-lost")
        return TrialResult(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start_if_needed(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "her2batch.runtime.sandbox", str(self._memory)]
            self._process = subprocess.Popen(  # noqa: S603  (this module, with no argument of the user)
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        """One line; nothing if the process ends, takes too long, or the run is stopped."""
        assert process.stdout is not None
        end, found = time.monotonic() + self._patience, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if selector.select(min(POLL_S, self._patience)):
                    part = os.read(process.stdout.fileno(), 65536)
                    if not part:
                        return b""
                    found += part
                elif self._stopped.is_set() or time.monotonic() >= end:
                    return b""
        return found


def open_and_validate(path: Path, reader: str) -> str | None:
    """Open and validate a slide in this process; returns why it fails, or None."""
    from her2batch.slides.readers import open_slide

    try:
        with open_slide(path, reader) as slide:
            slide.validate()
    except Her2BatchError as error:
        return error.message
    except (OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    """Answer until the input closes. Argument: memory limit in bytes."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), resource.RLIM_INFINITY))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library must not be taken for an answer
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin.buffer:
            request = json.loads(line)
            out.write(json.dumps(open_and_validate(Path(request["path"]), request["reader"])) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
