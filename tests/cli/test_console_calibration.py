"""Calibrations on the screen."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from her2batch.cli import console_calibration
from her2batch.cli.console_calibration import print_calibrated
from her2batch.pipeline.calibration.apply import CalibratedSlides


def test_slides_outside_and_failures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console_calibration, "stdout_console", lambda: console)
    found = CalibratedSlides("cal-0", 7, 3, 2, 4, {"S9": "S9: its table is damaged; run her2batch verify"})
    found.causes["calibration-drift"] = 2
    print_calibrated(found, Path("cohort"))
    text = " ".join(file.getvalue().split())
    assert "7 slides predicted with the calibration, 4 before: 3 without a single class, 2 outside its range" in text
    assert "outside: 2 × its counterstain lies outside the range of the calibration's slides: drift" in text
    assert "S9: its table is damaged" in text
    assert "cohort/tables/predictions/cal-0" in text
