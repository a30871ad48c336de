"""Commands that carry a cohort's tables to other tools and bring theirs in."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2batch.cli.options import CohortArgument, Json, Quiet, emit

if TYPE_CHECKING:
    from her2batch.exchange.incoming import ImportSummary
    from her2batch.exchange.outgoing import ExportSummary


SHOWN = 5
"""Slides that are named of each reason why some are left out."""


TO = "geojson: QuPath; clam-h5: CLAM, TRIDENT; csv: spreadsheets; dicom: reports for archives"

NEXT = {
    "geojson": "drag a file onto its slide in QuPath, then Measure, Show measurement maps (docs/exchange.md)",
    "clam-h5": "features that are computed for patches/ come back with: her2batch import COHORT FOLDER --encoder NAME",
}
"""What to do with an export, where that is not plain."""


class Format(StrEnum):
    """The formats of exchange.outgoing, which is loaded only when it is needed."""

    clam_h5 = "clam-h5"
    geojson = "geojson"
    csv = "csv"
    dicom = "dicom"


def export(
    *,
    cohort: CohortArgument,
    to: Annotated[Format, typer.Option(help=TO, show_default=False)],
    out: Annotated[Path | None, typer.Option(help="folder to write to; default: export/FORMAT")] = None,
    slide: Annotated[list[str] | None, typer.Option(help="only this slide; repeatable")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="only this encoder's embeddings; repeatable")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="id of the one bundle whose results are wanted; the rule's stay")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """The tables as files for QuPath (geojson), CLAM and TRIDENT (clam-h5), spreadsheets (csv), archives (dicom)."""
    from her2batch.cli.console_training import plain_progress
    from her2batch.exchange.outgoing import ExportRequest
    from her2batch.exchange.outgoing import export as run

    order = ExportRequest(
        cohort, to.value, out or Path("export") / to.value, tuple(slide or ()), tuple(encoder or ()), bundle
    )
    with plain_progress("files", quiet or as_json) as report:
        found = run(order, report)
    emit(as_json, {**asdict(found), "exit_code": found.exit_code}, lambda: print_export_summary(found))
    return found.exit_code


def import_(
    *,
    cohort: CohortArgument,
    files: Annotated[
        list[Path], typer.Argument(help="SLIDE.h5 files of embeddings, or folders of them", metavar="FILES")
    ],
    encoder: Annotated[str | None, typer.Option(help="name of what made them; default: what the files say")] = None,
    pseudonymize: Annotated[Path | None, typer.Option(help="key file, where the cohort has pseudonyms")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Embeddings that CLAM or TRIDENT computed, as one more encoder of slides that are in the cohort."""
    from her2batch.cli.console_training import plain_progress
    from her2batch.exchange.incoming import ImportRequest, import_embeddings
    from her2batch.models.encoders import ENCODERS
    from her2batch.store.pseudonyms import Pseudonymizer, read_key

    names = Pseudonymizer(read_key(pseudonymize) if pseudonymize is not None else None)
    with plain_progress("files", quiet or as_json) as report:
        found = import_embeddings(
            ImportRequest(cohort, tuple(files), encoder, names),
            lambda name: ENCODERS[name].dim if name in ENCODERS else None,
            report,
        )
    data = {**asdict(found), "encoders": sorted(found.encoders), "exit_code": found.exit_code}
    emit(as_json, data, lambda: print_import_summary(found, cohort))
    return found.exit_code


def print_export_summary(found: ExportSummary) -> None:
    """What was written, where, and what was not."""
    from her2batch.cli.console import size

    for name, why in sorted(found.failures.items()):
        print(f"FAILED {name}: {why}")
    for why, count in Counter(found.left_out.values()).most_common():
        some = [one for one, reason in sorted(found.left_out.items()) if reason == why][:SHOWN]
        print(f"{count} left out, {why}: {', '.join(some)}" + (", …" if count > SHOWN else ""))
    print(f"{found.files} files of {found.slides} slides, {size(found.bytes)}: {found.out}")
    if found.to in NEXT:
        print(NEXT[found.to])


def print_import_summary(found: ImportSummary, cohort: Path) -> None:
    """What went in, and what did not and why."""
    for why in found.failures.values():
        print(f"REFUSED {why}")
    for slide_id, count in sorted(found.passed.items()):
        print(f"{slide_id}: {count} embeddings lie on no tile of ours and were left out")
    counts = f"{len(found.slides)} slides brought in, {len(found.already)} were there already"
    print(f"{': '.join([*sorted(found.encoders), counts])}, {len(found.failures)} files refused")
    if found.slides:
        print(f"train on them with: her2batch train {cohort} --input {min(found.encoders)}")
