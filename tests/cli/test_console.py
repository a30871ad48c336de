"""What a person sees: nothing is cut when piped, the last line is the next command, a failure names its remedy."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import TimeRemainingColumn

from her2batch.assessment import UNCALIBRATED_NOTE
from her2batch.cli import console as module
from her2batch.cli.console import (
    duration_text,
    ingest_progress,
    next_step,
    prediction_text,
    print_doctor,
    print_estimate,
    print_ingest_summary,
    progress_bar,
    progress_text,
    remaining_text,
    size_text,
)
from her2batch.pipeline.progress import RunProgress
from her2batch.reports.prediction_counts import PredictionCount
from her2batch.runtime.doctor import Check
from her2batch.runtime.ingest import IngestSummary

COUNT = PredictionCount("membrane", "her2-4way", "membrane", {"0": 5, "1+": 4, "2+": 6, "3+": 3}, 12)
SUMMARY = IngestSummary(Path("my cohort"), seen=4, done=3, failed=0, ignored=1, tiles=257, seconds=8.6)
LONG = "a-very-long-slide-name-that-no-laboratory-would-choose-but-a-trial-might-2026-11-29-0001"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 columns."""
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(module, "stdout_console", lambda: terminal)
    return screen


def test_an_ingest_ends_with_classes_reviews_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_ingest_summary(SUMMARY, [COUNT])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seen 4 = 3 done + 0 failed + 0 deferred + 0 duplicate + 1 ignored; 257 tiles, 8.6 s")
    assert lines[1] == UNCALIBRATED_NOTE
    assert lines[2] == "her2-4way by membrane: 0: 5 · 1+: 4 · 2+: 6 · 3+: 3; 12 of 18 slides to review"
    assert lines[-1] == "next: her2batch report 'my cohort' --out report.html"


def test_an_ingest_says_how_many_slides_cannot_be_scored_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    print_ingest_summary(SUMMARY, [COUNT], {"too few tumour cells": 2, "another stain than haematoxylin and DAB": 1})
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "not scorable: 2 slides, too few tumour cells"
    assert lines[4] == "not scorable: 1 slide, another stain than haematoxylin and DAB"


def test_the_rule_is_counted_once_and_a_bundle_for_each_task(capsys: pytest.CaptureFixture[str]) -> None:
    three = PredictionCount("membrane", "her2-3way", "membrane", {"0": 1, "low": 2, "high": 3}, 0)
    bundle = PredictionCount("936cc9e71888", "her2-3way", "clam-sb", {"0": 1, "low": 2, "high": 3}, 1)
    print_ingest_summary(SUMMARY, [COUNT, three, bundle])
    out = capsys.readouterr().out
    assert prediction_text(three) not in out
    assert prediction_text(bundle) in out


def test_the_next_command_follows_from_what_happened() -> None:
    assert "status" in next_step(replace(SUMMARY, failed=1))
    assert "again" in next_step(replace(SUMMARY, deferred=2))
    assert "again to continue" in next_step(replace(SUMMARY, stopped=True))


def test_a_failed_slide_is_one_line_with_code_file_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    error = f"/scans/{LONG}.tiff: the file gives no resolution; pass --mpp-override 0.25"
    print_ingest_summary(replace(SUMMARY, failures=[{"error_code": "no-mpp", "error": error}]), [])
    assert capsys.readouterr().out.splitlines()[0] == f"no-mpp  {error}"


def test_a_pipe_gets_every_column_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "slide_id": LONG,
        "file": f"/scans/{LONG}.tiff",
        "what": "ingest " * 20,
        "tiles": 1,
        "bytes": 1,
        "seconds": 2,
    }
    print_estimate([row], TOTAL)
    assert f"{LONG}  {LONG}.tiff  {'ingest ' * 20}" in capsys.readouterr().out


def test_a_terminal_of_80_columns_breaks_no_word(narrow: io.StringIO) -> None:
    row = {"slide_id": "S1", "file": "/scans/S1.tiff", "what": "ingest (generic-tiff, 0.25 µm/px)", "tiles": 1234,
           "bytes": 7e7, "seconds": 2}  # fmt: skip
    print_estimate([row, {**row, "slide_id": LONG}], TOTAL)
    table = narrow.getvalue().split("1 to do")[0].splitlines()
    assert all(len(line) <= 80 for line in table)
    assert "    ingest (generic-tiff, 0.25 µm/px)" in table


def test_doctor_puts_remedies_on_their_own_line(narrow: io.StringIO) -> None:
    remedy = "pip install torch torchvision together, from one index, so that their versions belong together"
    print_doctor(
        [Check("torchvision", False, "0.24 does not belong to torch 2.15", remedy), Check("ray", True, "2.60")]
    )
    lines = narrow.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(" ".join(lines).split()).count(remedy) == 1


TOTAL = {"todo": 1, "current": 0, "duplicate": 0, "ignored": 0, "bytes": 7e7, "free_bytes": None, "seconds": 40_000.0,
         "seconds_with_a_gpu": 4_000.0, "workers": 2, "bound": "decoding"}  # fmt: skip


def test_progress_is_plain_lines_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunProgress(1, 0, 2, 5, 1_500_000, 3_000_000, (60.0, 120.0))
    with ingest_progress(quiet=False) as report:
        report(progress, {"slide_id": "S1", "status": "done", "n_tiles": 5, "error": None})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"1/2 S1: done, 5 tiles ({progress_text(progress)})\n"
    with ingest_progress(quiet=True) as report:
        report(progress, {})
    assert capsys.readouterr().err == ""


def test_sizes_and_durations_are_rounded_for_people() -> None:
    assert [size_text(count) for count in (1, 14_700_000, 2_500_000_000)] == ["1 kB", "14.7 MB", "2.50 GB"]
    assert [duration_text(seconds) for seconds in (8, 600, 7200)] == ["8 s", "10 min", "2.0 h"]
    assert remaining_text((60.0, 600.0)) == "60 s to 10 min left"
    assert remaining_text(None) == "remaining time not known yet"


@pytest.mark.parametrize("width", [80, 66])
def test_a_progress_bar_keeps_count_and_time_on_a_narrow_terminal(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    for noun, more, text in (
        ("slides", (), "12 failed, 1,234,567,890 tiles, remaining time not known yet"),
        ("units", (TimeRemainingColumn(),), "her2-3way.convnext-small.thumbnail-512.final: failed"),
    ):
        with progress_bar(noun, console, *more) as bar:
            bar.add_task(text, total=10_000, completed=9_999)
            line = "".join(segment.text for segment in console.render(bar.get_renderable())).rstrip("\n")
        assert "9999/10000 0:00:0" in line
        assert line.rstrip().endswith("…")
        assert len(line) == width


def test_a_failure_is_listed_once_with_its_cause_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, where progress and result share a screen, and in a log file, where they share a file."""
    row = {"slide_id": "S1", "status": "failed", "error_code": "no-mpp", "error": "the file gives no resolution"}
    progress = RunProgress(1, 1, 2, 5, 1_500_000, 3_000_000, None)
    for is_terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, width=80, force_terminal=is_terminal, color_system=None)
        monkeypatch.setattr(module, "Console", lambda screen=console, **_: screen)
        monkeypatch.setattr("sys.stderr", screen)
        with ingest_progress(quiet=False) as report:
            report(progress, row)
        print_ingest_summary(replace(SUMMARY, failures=[row]), [])
        assert screen.getvalue().count(row["error"]) == 1
        assert "1 failed" in screen.getvalue() or "S1: failed, no-mpp" in screen.getvalue()


def test_a_run_that_is_followed_says_why_a_slide_was_not_decoded_on_the_gpu() -> None:
    event = {"event": "slide", "slide_id": "S1", "status": "done", "error_code": None}
    assert module._event_text(event) == "S1: done"
    assert module._event_text({**event, "decoded_on_cpu": "its tile 5 is damaged"}) == (
        "S1: done, decoded on the CPU: its tile 5 is damaged"
    )
    assert module._event_text({**event, "smaller_batches": "64 in place of 128"}) == "S1: done, 64 in place of 128"
    assert module._event_text({**event, "status": "failed", "error_code": "truncated"}) == "S1: failed, truncated"
