"""Command that turns a public set of pictures into slides, with labels and groups."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2batch.cli.options import Json, Quiet, emit

if TYPE_CHECKING:
    from her2batch.exchange.adopt.adopting import AdoptSummary

NAMED = 20
"""Problems that are printed; adopted.json has all of them."""


class LayoutName(StrEnum):
    """Layouts; the same names as in exchange.adopt.layouts, which is imported only when needed."""

    warwick = "warwick"
    bci = "bci"
    her2_ihc_40x = "her2-ihc-40x"
    ihc4bc = "ihc4bc"
    herohe = "herohe"
    single_folder = "single-folder"


def adopt(
    *,
    layout: Annotated[LayoutName, typer.Argument(help="layout of the set", show_default=False, metavar="LAYOUT")],
    folder: Annotated[Path, typer.Argument(help="folder of the set", show_default=False, metavar="DIR")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="folder for the slides and their labels", metavar="SCANS")
    ] = Path("scans"),
    mpp: Annotated[float | None, typer.Option(help="µm/px of the pictures; default: as the set states it")] = None,
    stain: Annotated[
        str | None, typer.Option(help="stain to adopt: her2, er, pr, ki67 or he; default: that of HER2")
    ] = None,
    slide_pattern: Annotated[
        str | None,
        typer.Option(help="regular expression with a group slide: where a picture's name has the id of its slide"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Turn a public set of pictures into tiled slides with labels and groups: warwick, bci, her2-ihc-40x, and others.

    Layouts: warwick, bci, her2-ihc-40x, ihc4bc, herohe, single-folder (SCORE_NAME.jpg). Run it again to resume.
    """
    from her2batch.cli.console_training import count_progress
    from her2batch.exchange.adopt.adopting import AdoptRequest
    from her2batch.exchange.adopt.adopting import adopt as run

    request = AdoptRequest(layout.value, folder, out, mpp, stain, slide_pattern)
    with count_progress("pictures", quiet or as_json) as report:
        summary = run(request, report)
    emit(as_json, {**asdict(summary), "exit_code": summary.exit_code}, lambda: print_adopt_summary(summary))
    return summary.exit_code


def print_adopt_summary(summary: AdoptSummary) -> None:
    """Print what was made of the set, what is missing, doubled or misnamed, and the next command."""
    for path, reason in summary.failed.items():
        print(f"FAILED {path}: {reason}")
    for path, problem in list(summary.problems.items())[:NAMED]:
        print(f"{path}: {problem}")
    if len(summary.problems) > NAMED:
        print(f"and {len(summary.problems) - NAMED} more: {summary.out / 'adopted.json'}")
    for note in summary.notes:
        print(f"note: {note}")
    stored = ", ".join(f"{count} {how}" for how, count in sorted(summary.stored.items()))
    before = f" ({summary.already} were there already)" if summary.already else ""
    print(f"{summary.slides} slides{before} in {summary.groups} groups, {summary.labelled} with a label: {stored}")
    resolution = "as the slides state it" if summary.mpp is None else f"{summary.mpp:g} µm/px"
    print(f"resolution: {resolution}; set: {summary.source}")
    print(f"next: her2batch ingest {summary.out / 'slides'} --labels {summary.out / 'labels.csv'}")
