"""The sandbox: complete slides open, incomplete ones give a reason, and a crash does no harm."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from her2batch.runtime.sandbox import SlideSandbox, open_and_validate


def test_complete_slide_opens_and_truncated_slide_fails(make_slide: Callable) -> None:
    good, cut = make_slide("a.tiff"), make_slide("b.tiff")
    os.truncate(cut, cut.stat().st_size // 2)
    sandbox = SlideSandbox()
    assert sandbox.open_failure(good) is None
    assert "end" in str(sandbox.open_failure(cut))
    assert sandbox.open_failure(good) is None
    sandbox.close()


def test_preallocated_file_does_not_open(make_slide: Callable) -> None:
    path = make_slide("a.tiff")
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)  # full size, the second half zeros
    assert open_and_validate(path, "auto") is not None


def test_sandbox_restarts_after_a_crash_or_a_hang(make_slide: Callable, tmp_path: Path) -> None:
    good = make_slide("a.tiff")
    sandbox = SlideSandbox(patience=20)
    assert sandbox.open_failure(good) is None
    os.kill(sandbox._process.pid, signal.SIGKILL)
    sandbox._process.wait()
    assert sandbox.open_failure(good) is None  # started again first
    sandbox._patience = 0.5
    os.kill(sandbox._process.pid, signal.SIGSTOP)
    assert "did not end in time" in str(sandbox.open_failure(good))
    sandbox._patience = 20
    assert sandbox.open_failure(good) is None
    sandbox.close()


def test_sandbox_opens_files_whose_names_are_no_text(make_slide: Callable) -> None:
    path = make_slide("a.tiff")
    odd = path.with_name(os.fsdecode(b"n\xff\nb.tiff"))
    path.rename(odd)
    sandbox = SlideSandbox()
    assert sandbox.open_failure(odd) is None
    sandbox.close()
