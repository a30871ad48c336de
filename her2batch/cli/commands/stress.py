"""The command that shows what shifts of scanner and staining do to the slides of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument, Json, Quiet, emit, options
from her2batch.settings import Resources


@options(Resources, leave_out=("gpus", "patience"))
def stress(
    *,
    cohort: CohortArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="the HTML file to write; a JSON file is written beside it")
    ] = Path("stress.html"),
    slides: Annotated[int, typer.Option(min=1, help="number of HER2 slides, chosen by the seed")] = 20,
    tiles: Annotated[int, typer.Option(min=1, help="largest number of tiles of each slide, chosen by the seed")] = 96,
    slide: Annotated[list[str] | None, typer.Option(help="test this slide instead of a choice; repeatable")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the choice of slides and tiles")] = 0,
    resources: Resources,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Score slides again as other scanners and stainings would show them: twelve shifts, from the pyramids."""
    from her2batch.cli.console_training import count_progress
    from her2batch.reports.validation.stress_page import stress_json, summarize_stress, write_stress_report
    from her2batch.runtime.stress.running import StressRequest, stress_cohort
    from her2batch.store.cohort import Cohort

    opened = Cohort(cohort)
    request = StressRequest(slides, tiles, seed, tuple(slide or ()))
    with count_progress("slides", quiet or as_json) as report:
        run = stress_cohort(opened, request, resources, report)
    summary = summarize_stress(opened, run.slides, run.failures)
    path = write_stress_report(opened, summary, out.absolute(), seed)

    def show() -> None:
        for row in summary.shifts:
            flips = f"{row['flips']} of {row['slides']} classes change"
            print(f"{row['shift']:18} score {row['mean_change']:+.2f} on average, {flips}")
        print(f"{summary.flips} class changes, {summary.flips_for_review} on slides that were for review before")
        if summary.with_cells:
            print(f"by cells: {summary.cell_flips} class changes, {summary.cell_flips_for_review} of them there")
        for slide_id, why in run.failures.items():
            print(f"{slide_id}: not tested: {why}")
        print(f"report: {out}, {path}")

    emit(as_json, {"report": str(out), "json": str(path), **stress_json(summary)}, show)
    return run.exit_code
