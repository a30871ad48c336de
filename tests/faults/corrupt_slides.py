"""Damaged slides, and a process that opens slides in forks of itself.

As a program it reads one JSON line a file, forks, looks at the file there as an ingest does (digest, open, validate,
every px), and answers with what became of it. A library that crashes, hangs or eats memory does so in the fork.
"""

import hashlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import check_directories, fingerprint_slide, is_tiff
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide, split_box

LIMIT_S, LIMIT_BYTES = 10.0, 1_000_000_000
"""CPU time and memory that one inspection may take: the pass criteria for malicious slides."""

HANG_S = 60.0
"""Elapsed seconds after which an inspection counts as hung, on a busy machine."""

MOST_BOXES = 64
"""Boxes of 1024 px that are read of a level; of a level that claims more, this many single pixels are read."""

MEMORY_FILLS = "85", "170"
"""Values of MALLOC_PERTURB_: where two inspections differ, a reader returned memory that it never wrote."""


@dataclass(frozen=True)
class Inspection:
    """Result of opening a file. code: 'done', an error code, 'crashed', 'hung', 'internal: …'.  pixels: a digest."""

    code: str
    pixels: str | None
    seconds: float  # of a core
    memory: int  # peak, bytes


# -- looking -------------------------------------------------------------------------------------------------------


class SlideInspector:
    """A process that opens files in forks of itself. garbage: the value that fills memory before it is written."""

    def __init__(self, garbage: str = MEMORY_FILLS[0], limit_s: float = HANG_S, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limits = {"seconds": limit_s, "bytes": limit_bytes}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.corrupt_slides"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"MALLOC_PERTURB_": garbage}, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def __enter__(self) -> "SlideInspector":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def __call__(self, path: Path) -> Inspection:
        self._process.stdin.write(json.dumps({"path": os.fsdecode(path), **self._limits}) + "\n")
        self._process.stdin.flush()
        return Inspection(**json.loads(self._process.stdout.readline()))


def inspect_slide(path: Path) -> tuple[str, str | None]:
    """Open a file as an ingest does. Returns (code, digest of its pixels)."""
    try:
        prints = fingerprint_slide([path])
        with open_slide(path) as slide:
            slide.info = slide.info.with_mpp(0.5)
            slide.validate(prints.holes)
            return "done", pixel_digest(slide)
    except SlideError as error:
        return error.code, None
    except MemoryError:
        return "out-of-memory", None
    except Exception as error:  # noqa: BLE001  (any other exception is an internal error)
        return f"internal: {type(error).__name__}: {error}", None


def pixel_digest(slide: Slide) -> str:
    """Return the SHA-256 of the pixels of every level."""
    found = hashlib.sha256()
    for level, size in enumerate(slide.info.levels):
        found.update(repr((level, size.width, size.height)).encode())
        if size.width * size.height > MOST_BOXES * 1024**2:
            across, down = max(1, size.width - 1024), max(1, size.height - 1024)
            boxes = [Box(k * across // 64, k * down // 64, 1, 1) for k in range(64)]
        else:
            boxes = split_box(Box(0, 0, size.width, size.height), 1024)
        for box in boxes:
            found.update(slide.read(box, level))
    return found.hexdigest()


def main() -> None:
    """Answer requests until the other end closes the pipe."""
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(_forked(Path(asked["path"]), asked["seconds"], asked["bytes"])) + "\n")
        sys.stdout.flush()


def _forked(path: Path, limit_s: float, limit_bytes: int) -> dict[str, object]:
    ours, theirs = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(theirs, json.dumps(inspect_slide(path)).encode())
        os._exit(0)
    os.close(theirs)
    answer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        while selector.select(max(0.0, started + limit_s - time.monotonic())):
            part = os.read(ours, 65536)
            if not part:
                break
            answer += part
    hung = not answer and time.monotonic() - started >= limit_s
    os.kill(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    os.close(ours)
    code, pixels = json.loads(answer) if answer else ("hung" if hung else "crashed", None)
    return {
        "code": code,
        "pixels": pixels,
        "seconds": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
    }


# -- harm ----------------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, spots: Sequence[tuple[int, int]], times: int, seed: int) -> Iterator[bytes]:
    """Yield copies with one flipped bit each, in turn in each of the ranges (start, end)."""
    rng = np.random.default_rng(seed)
    for k in range(times):
        start, end = spots[k % len(spots)]
        at, bit = int(rng.integers(start, min(end, len(data)))), int(rng.integers(8))
        yield data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def important_ranges(path: Path) -> list[tuple[int, int]]:
    """Return the byte ranges of a slide file: its directories and tags, its lists of tiles, the whole file."""
    size = path.stat().st_size
    if not is_tiff(path):
        return [(0, min(size, 2000)), (0, size)]
    fixed, lists = check_directories(path, high_words=path.suffix == ".ndpi")
    return [one for group in (fixed, lists) for one in group if one[1] > one[0]] + [(0, size)] * len(fixed + lists)


if __name__ == "__main__":
    main()
