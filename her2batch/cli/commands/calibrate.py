"""The command that fits a calibration to the labelled slides of a laboratory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument, ColumnOption, Json, LabelsOption, emit, parse_columns


class PerGroup(StrEnum):
    """Property of the slides that divides them into groups, each with a calibration of its own."""

    SITE = "site"
    SCANNER = "scanner"


CalibrationOption = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="FILE", help="calibration of this laboratory, from her2batch calibrate"),
]


def calibrate(
    *,
    cohort: CohortArgument,
    labels: LabelsOption = None,
    column: ColumnOption = None,
    per: Annotated[
        PerGroup | None,
        typer.Option(help="calibrate each site (of the labels) or scanner (format and resolution) by itself"),
    ] = None,
    coverage: Annotated[
        float, typer.Option(min=0.5, max=0.99, help="share of slides of each class whose class is in the plausible set")
    ] = 0.9,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write")] = Path("calibration.toml"),
    as_json: Json = False,
) -> int:
    """Learn a laboratory's staining from a few labelled slides, for probabilities and sets of classes to trust."""
    from her2batch.cli.console_calibration import print_calibration
    from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, fitted_result

    request = CalibrationRequest(
        cohort, out.absolute(), labels, parse_columns(column), per.value if per is not None else None, coverage
    )
    found = calibrate_cohort(request)
    emit(as_json, fitted_result(found, out), lambda: print_calibration(found, out))
    return 3 if found.unreadable else 0
