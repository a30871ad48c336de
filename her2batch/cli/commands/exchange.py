"""Commands that export a cohort's tables for other tools and import embeddings computed elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2batch.cli.options import CohortArgument, Json, KeyOption, Quiet, emit

if TYPE_CHECKING:
    from her2batch.exchange.incoming import ImportSummary
    from her2batch.exchange.lis.identities import Identity
    from her2batch.exchange.outgoing import ExportSummary
    from her2batch.pipeline.growth.imported_cells import CellImportSummary


EXAMPLES = 5
"""Slides that are named for each reason reason some are left out."""


FORMAT_HELP = "geojson: QuPath; clam-h5: CLAM, TRIDENT; csv: spreadsheets; dicom: structured reports for archives"

NEXT_STEPS = {
    "geojson": "next: drag a file onto its slide in QuPath, then Measure, Show measurement maps (docs/exchange.md)",
    "clam-h5": "next: import features computed for patches/ with: her2batch import COHORT FOLDER --encoder NAME",
}
"""What to do with an export, by format."""


IdentitiesOption = Annotated[
    Path | None,
    typer.Option(
        "--identities",
        help="sheet of the laboratory (CSV or XLSX) with slide_id, patient_id, accession and more (docs/lis.md)",
    ),
]


def read_identities_option(cohort: Path, sheet: Path | None, key: Path | None) -> dict[str, Identity]:
    """Return the identities of the option --identities: slide id → identity; empty without it. Raises InputError."""
    from her2batch.exchange.lis.identities import identities_for
    from her2batch.store.cohort import Cohort

    opened = Cohort(cohort)
    opened.check()
    return identities_for(opened, sheet, key) if sheet is not None else {}


class Objects(StrEnum):
    """Objects of a slide that are exported for QuPath."""

    tiles = "tiles"
    cells = "cells"


class Format(StrEnum):
    """Export formats; the same names as in exchange.outgoing, which is imported only when needed."""

    clam_h5 = "clam-h5"
    geojson = "geojson"
    csv = "csv"
    dicom = "dicom"


def export(
    *,
    cohort: CohortArgument,
    to: Annotated[Format, typer.Option(help=FORMAT_HELP, show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder to write to; default: export/FORMAT")] = None,
    slide: Annotated[list[str] | None, typer.Option(help="export only this slide; repeatable")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="export only this encoder's embeddings; repeatable")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="export only this bundle's results (its id) and the membrane rule's")
    ] = None,
    what: Annotated[Objects, typer.Option(help="geojson: tiles with patches, or cells")] = Objects.tiles,
    identities: IdentitiesOption = None,
    pseudonymize: KeyOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Export tables for QuPath (geojson), CLAM and TRIDENT (clam-h5), spreadsheets (csv), archives (dicom)."""
    from her2batch.cli.console_training import count_progress
    from her2batch.exchange.outgoing import ExportRequest
    from her2batch.exchange.outgoing import export_cohort as run

    known = read_identities_option(cohort, identities, pseudonymize)
    request = ExportRequest(
        cohort, to.value, out or Path("export") / to.value, tuple(slide or ()), tuple(encoder or ()), bundle, known,
        what.value,
    )  # fmt: skip
    with count_progress("files", quiet or as_json) as report:
        summary = run(request, report)
    emit(as_json, {**asdict(summary), "exit_code": summary.exit_code}, lambda: print_export_summary(summary))
    return summary.exit_code


def import_(
    *,
    cohort: CohortArgument,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="SLIDE.h5 files of embeddings, SLIDE.geojson files of cells, or folders of them", metavar="FILES"
        ),
    ],
    encoder: Annotated[
        str | None, typer.Option(help="name of the encoder that made them; default: the name in the files")
    ] = None,
    pseudonymize: KeyOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Import embeddings that CLAM, TRIDENT or STAMP computed, as one more encoder, or cells that QuPath detected."""
    from her2batch.cli.console_training import count_progress
    from her2batch.exchange.incoming import ImportRequest, import_embeddings
    from her2batch.models.encoders import find_encoder
    from her2batch.pipeline.growth.imported_cells import find_cell_files, import_cells
    from her2batch.store.pseudonyms import Pseudonymizer, read_key

    names = Pseudonymizer(read_key(pseudonymize) if pseudonymize is not None else None)
    if encoder is None and (of_cells := find_cell_files(files)):
        imported = import_cells(cohort, of_cells, names)
        emit(as_json, {**asdict(imported), "exit_code": imported.exit_code}, lambda: print_cell_summary(imported))
        return imported.exit_code
    with count_progress("files", quiet or as_json) as report:
        summary = import_embeddings(
            ImportRequest(cohort, tuple(files), encoder, names),
            lambda name: spec.dim if (spec := find_encoder(name)) is not None else None,
            report,
        )
    data = {**asdict(summary), "encoders": sorted(summary.encoders), "exit_code": summary.exit_code}
    emit(as_json, data, lambda: print_import_summary(summary, cohort))
    return summary.exit_code


def print_export_summary(summary: ExportSummary) -> None:
    """Print what was written, where, and what was left out and reason."""
    from her2batch.cli.console import size_text

    for name, reason in sorted(summary.failures.items()):
        print(f"FAILED {name}: {reason}")
    for reason, count in Counter(summary.left_out.values()).most_common():
        slides = [slide_id for slide_id, cause in sorted(summary.left_out.items()) if cause == reason][:EXAMPLES]
        print(f"{count} left out, {reason}: {', '.join(slides)}" + (", …" if count > EXAMPLES else ""))
    print(f"{summary.files} files of {summary.slides} slides, {size_text(summary.bytes)}: {summary.out}")
    if summary.to in NEXT_STEPS:
        print(NEXT_STEPS[summary.to])


def print_cell_summary(summary: CellImportSummary) -> None:
    """Print how many cells each slide got, and which files were refused and reason."""
    for reason in summary.failures.values():
        print(f"REFUSED {reason}")
    for slide_id, count in sorted(summary.slides.items()):
        outside = summary.outside.get(slide_id, 0)
        left = f", {outside} outside its tissue were left out" if outside else ""
        print(f"{slide_id}: {count} cells imported{left}")


def print_import_summary(summary: ImportSummary, cohort: Path) -> None:
    """Print how many slides got embeddings, and which files were refused and reason."""
    for reason in summary.failures.values():
        print(f"REFUSED {reason}")
    for slide_id, count in sorted(summary.passed.items()):
        print(f"{slide_id}: {count} embeddings match no tile of the cohort and were left out")
    for slide_id, count in sorted(summary.shifted.items()):
        print(
            f"{slide_id}: {count} tiles have the embedding of a tile up to half a tile away, because the grids differ"
        )
    counts = f"{len(summary.slides)} slides imported, {len(summary.already)} were there already"
    print(f"{': '.join([*sorted(summary.encoders), counts])}, {len(summary.failures)} files refused")
    if summary.slides:
        print(f"next: her2batch train {cohort} --input {min(summary.encoders)}")
