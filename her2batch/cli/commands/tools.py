"""Commands to try her2batch out: synthetic slides, the demo, and what this machine can do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import Json, Quiet, emit


def synth(
    folder: Annotated[Path, typer.Argument(help="where to write it", show_default=False)],
    slides: Annotated[int, typer.Option(min=1, help="number of slides")] = 20,
    seed: Annotated[int, typer.Option(help="another seed, another cohort")] = 0,
    width: Annotated[int, typer.Option(min=512, help="typical width, level-0 px")] = 6000,
    height: Annotated[int, typer.Option(min=512, help="typical height, level-0 px")] = 5000,
) -> int:
    """Make a synthetic HER2 cohort with known truth: for trying the software, not for medicine."""
    from her2batch.synthetic.cohort import make_cohort

    make_cohort(folder, slides, seed, (width, height))
    print(f"{slides} slides in {folder / 'slides'}, labels in {folder / 'labels.csv'}")
    return 0


def demo(
    folder: Annotated[Path, typer.Argument(help="where to write everything")] = Path("demo"),
    slides: Annotated[int, typer.Option(min=18, help="slides to train on")] = 28,
    held_out: Annotated[int, typer.Option(min=1, help="slides to score with what was trained")] = 8,
    quiet: Quiet = False,
) -> int:
    """Synthetic slides made, ingested, trained on; and others scored with the bundle: two minutes."""
    from her2batch.cli.demo import demo as run
    from her2batch.cli.demo import print_demo

    found = run(folder, slides, held_out, quiet)
    print_demo(found)
    return found.exit_code


def doctor(
    cohort: Annotated[Path | None, typer.Argument(help="a cohort folder, to check its disk")] = None,
    as_json: Json = False,
) -> int:
    """What this machine can do, and what to install."""
    from her2batch.cli.console import print_doctor
    from her2batch.runtime.doctor import examine

    lines = examine(cohort)
    emit(as_json, {"lines": [asdict(line) for line in lines]}, lambda: print_doctor(lines))
    return 0
