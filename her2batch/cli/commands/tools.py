"""Commands to try her2batch out: synthetic slides, the demo, and a check of this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from her2batch.cli.options import Json, Quiet, emit


def synth(
    folder: Annotated[
        Path, typer.Argument(help="folder to write the slides and labels to", show_default=False, metavar="FOLDER")
    ],
    slides: Annotated[
        int | None,
        typer.Option(
            min=1, help="number of slides, of a profile number of HER2 slides; default: 20, with the profile paper 500"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the random generator")] = 0,
    width: Annotated[
        int | None, typer.Option(min=512, help="typical width, level-0 px; default: 6000, with the profile paper 4800")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=512, help="typical height, level-0 px; default: 5000, with the profile paper 4200")
    ] = None,
    profile: Annotated[
        Literal["paper"] | None,
        typer.Option(
            help="paper: as many slides of each HER2 score, ISH, ER and PR result as the paper's cohort has",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="number of processes; default: one per core")] = None,
    quiet: Quiet = False,
    lab: Annotated[
        list[str] | None,
        typer.Option(help="laboratory: its number, north or south; repeat to divide the patients", show_default=False),
    ] = None,
    stain: Annotated[
        Literal["her2", "er", "pr", "ki67"] | None, typer.Option(help="stain of all slides", show_default=False)
    ] = None,
    kind: Annotated[
        Literal["usual", "weak-complete", "sparse", "cytoplasmic", "nuclear", "he", "glass", "noise", "grey"],
        typer.Option(help="kind of all slides; most kinds have no HER2 score"),
    ] = "usual",
) -> int:
    """Write a synthetic HER2 cohort with known scores, to try the software; not for medical use."""
    from her2batch.cli.console_training import count_progress
    from her2batch.synthetic.cohort import CohortOptions, make_cohort
    from her2batch.synthetic.paper.paper_cohort import PAPER_SIZE, PAPER_SLIDES, make_paper_cohort

    options = CohortOptions(stain=stain, kind=kind)
    options = options._replace(laboratories=tuple(lab)) if lab else options
    usual = PAPER_SIZE if profile else (6000, 5000)
    size = width or usual[0], height or usual[1]
    with count_progress("slides", quiet) as report:
        if profile is None:
            n = slides or 20
            make_cohort(folder, n, seed, size, workers, report, options)
        else:
            n = make_paper_cohort(folder, slides or PAPER_SLIDES, seed, size, workers, report, options)
    print(f"{n} slides in {folder / 'slides'}, labels in {folder / 'labels.csv'}")
    return 0


def demo(
    folder: Annotated[Path, typer.Argument(help="folder to write everything to", metavar="FOLDER")] = Path("demo"),
    slides: Annotated[int, typer.Option(min=18, help="number of slides to train on")] = 28,
    held_out: Annotated[int, typer.Option(min=1, help="number of slides to score with the trained bundle")] = 8,
    quiet: Quiet = False,
) -> int:
    """Try everything on synthetic slides in three minutes: ingest, train, score held-out slides, report."""
    from her2batch.cli.demo import demo as run
    from her2batch.cli.demo import print_demo

    found = run(folder, slides, held_out, quiet)
    print_demo(found)
    return found.exit_code


def doctor(
    cohort: Annotated[
        Path | None, typer.Argument(help="a cohort folder whose disk is checked too", metavar="COHORT")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check this machine: Python, packages, GPU, memory, disk, speed; and what to install."""
    from her2batch.cli.console import print_doctor
    from her2batch.runtime.doctor import check_machine

    lines = check_machine(cohort)
    emit(as_json, {"lines": [asdict(line) for line in lines]}, lambda: print_doctor(lines))
    return 0
