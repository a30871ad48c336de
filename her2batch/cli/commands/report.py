"""The command that writes the cohort report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument, Json, emit


def report(
    *,
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write")] = Path("report.html"),
    run: Annotated[Path | None, typer.Option(help="training run whose figures the report shows too")] = None,
    pages: Annotated[
        int, typer.Option(min=0, help="number of slides whose evidence is shown; slides on worklists first")
    ] = 100,
    review_budget: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="share of slides that people can look at: the review queue ends there; needs calibrated predictions",
        ),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="folder for every figure as SVG, PNG and CSV files")] = None,
    as_json: Json = False,
) -> int:
    """Write the cohort report: one HTML file with worklists, scores, figures and the evidence of slides."""
    from her2batch.reports.cohort_page import write_report
    from her2batch.reports.figures import save_figures
    from her2batch.store.cohort import Cohort
    from her2batch.store.training_run import TrainingRun

    training_run = TrainingRun(run) if run is not None else None
    found = write_report(Cohort(cohort), out.absolute(), training_run, pages, review_budget)
    if figures is not None:
        save_figures(found.figures, figures)
    data = {"report": str(found.path), "bytes": found.bytes, "slides": found.slides, "figures": len(found.figures),
            "review_queue": found.review_queue}  # fmt: skip

    def show() -> None:
        print(f"report: {found.path}")
        if review_budget is not None and (queue := found.review_queue) is not None:
            caught, expected = queue["expected_caught"], queue["expected_errors"]
            words = f"{queue['queue']} of {queue['slides']} slides, with {caught:.1f} of {expected:.1f} expected errors"
            print(f"review queue: {words}")

    emit(as_json, data, show)
    return 0
