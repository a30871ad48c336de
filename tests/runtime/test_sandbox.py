"""Opening a slide for trial: what is finished opens, what is not says why, what crashes costs nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from her2batch.runtime.sandbox import SlideSandbox, attempt


def test_a_finished_slide_opens_and_one_that_is_cut_says_so(make_slide: Callable) -> None:
    good, cut = make_slide("a.tiff"), make_slide("b.tiff")
    os.truncate(cut, cut.stat().st_size // 2)
    trial = SlideSandbox()
    assert trial.fails(good) is None
    assert "end" in str(trial.fails(cut))
    assert trial.fails(good) is None
    trial.close()


def test_a_file_that_was_preallocated_does_not_open(make_slide: Callable) -> None:
    path = make_slide("a.tiff")
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)  # full size, the second half zeros
    assert attempt(path, "auto") is not None


def test_a_crash_and_a_hang_are_failures_and_the_next_trial_starts_anew(make_slide: Callable, tmp_path: Path) -> None:
    good = make_slide("a.tiff")
    trial = SlideSandbox(patience=20)
    assert trial.fails(good) is None
    os.kill(trial._process.pid, signal.SIGKILL)
    trial._process.wait()
    assert trial.fails(good) is None  # started again before it is asked
    trial._patience = 0.5
    os.kill(trial._process.pid, signal.SIGSTOP)
    assert "did not come to an end" in str(trial.fails(good))
    trial._patience = 20
    assert trial.fails(good) is None
    trial.close()


def test_names_that_are_no_text_can_be_tried(make_slide: Callable) -> None:
    path = make_slide("a.tiff")
    odd = path.with_name(os.fsdecode(b"n\xff\nb.tiff"))
    path.rename(odd)
    trial = SlideSandbox()
    assert trial.fails(odd) is None
    trial.close()
