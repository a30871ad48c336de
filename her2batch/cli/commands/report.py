"""The command that writes reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument, Json, emit


def report(
    *,
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
    run: Annotated[Path | None, typer.Option(help="a training run, to show its figures too")] = None,
    pages: Annotated[int, typer.Option(min=0, help="slides whose evidence is shown, work lists first")] = 100,
    figures: Annotated[Path | None, typer.Option(help="folder for every figure as SVG, PNG and CSV")] = None,
    as_json: Json = False,
) -> int:
    """One HTML file that opens anywhere: lists to look at first, scores, figures, and the evidence of slides."""
    from her2batch.reports.cohort_page import write_report
    from her2batch.reports.figures import save
    from her2batch.store.cohort import Cohort
    from her2batch.store.training_run import TrainingRun

    found = write_report(Cohort(cohort), out.absolute(), TrainingRun(run) if run is not None else None, pages)
    if figures is not None:
        save(found.figures, figures)
    data = {"report": str(found.path), "bytes": found.bytes, "slides": found.slides, "figures": len(found.figures)}
    emit(as_json, data, lambda: print(f"report: {found.path}"))
    return 0
