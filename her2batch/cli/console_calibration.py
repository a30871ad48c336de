"""What the terminal shows of calibrations."""

from __future__ import annotations

from pathlib import Path

from her2batch.cli.console import print_failure, print_line, print_table, stdout_console
from her2batch.cli.tables import Column
from her2batch.pipeline.calibration.apply import CalibratedSlides
from her2batch.pipeline.calibration.fit_cohort import FittedCalibration
from her2batch.reasons import REASONS


def print_calibration(found: FittedCalibration, path: Path) -> None:
    """Print what was calibrated, on how many slides of each class, and what a person should know."""
    console = stdout_console()
    made = found.calibration
    rows = [
        [
            f"{method.method}, {method.task}", method.group or "all",
            ", ".join(f"{name}: {n}" for name, n in method.slides.items()),
            "abstains always" if method.too_few(made.coverage) else f"{made.coverage:.0%} of each class",
        ]
        for method in made.methods
    ]  # fmt: skip
    columns = [Column("method"), Column("slides of"), Column("labelled slides"), Column("coverage")]
    print_table(console, "Calibration", columns, rows)
    for note in found.notes:
        print_line(console, note)
    for slide in found.unreadable:
        print_line(console, f"{slide}: its tables cannot be read; run her2batch verify, then ingest again")
    print_line(console, f"calibration: {path} ({made.id}); use it with her2batch score COHORT --calibration {path}")


def print_calibrated(found: CalibratedSlides, cohort: Path) -> None:
    """Print how many slides a calibration predicted, and for how many it gives no single class."""
    console = stdout_console()
    for failure in found.failures.values():
        print_failure(console, "failed", failure)
    before = f", {found.already} before" if found.already else ""
    print_line(
        console,
        f"{found.calibrated} slides predicted with the calibration{before}: {found.abstained} without a single class, "
        f"{found.outside} outside its range",
    )
    for cause, count in found.causes.items():
        print_line(console, f"outside: {count} × {REASONS[cause][1]}")
    print_line(console, f"predictions: {cohort / 'tables' / 'predictions' / found.id}")
