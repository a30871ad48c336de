"""Command that shows how a label sheet is understood."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import COHORT_HELP, ColumnOption, Json, KeyOption, emit, parse_columns, parse_location


def labels(
    *,
    file: Annotated[
        Path,
        typer.Argument(help="label sheet: CSV, XLSX, or a clinical table of TCGA or cBioPortal", show_default=False),
    ],
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help=COHORT_HELP, parser=parse_location, metavar="COHORT")
    ] = None,
    column: ColumnOption = None,
    pseudonymize: KeyOption = None,
    as_json: Json = False,
) -> int:
    """Show what is understood of a label sheet, and with --cohort which labels and slides have no counterpart."""
    from her2batch.cli.console_labels import print_sheet
    from her2batch.store.cohort import Cohort
    from her2batch.store.label_sheets.book import LabelBook
    from her2batch.store.label_sheets.overview import sheet_overview
    from her2batch.store.label_sheets.reading import read_label_sheet
    from her2batch.store.pseudonyms import Pseudonymizer, read_key

    sheet = read_label_sheet(file, parse_columns(column))
    book = None
    if cohort is not None:
        Cohort(cohort).check()
        names = Pseudonymizer(read_key(pseudonymize) if pseudonymize is not None else None)
        book = LabelBook(sheet.rows, names, sheet)
        book.add_cohort(Cohort(cohort))
    overview = sheet_overview(sheet, book)
    emit(as_json, overview, lambda: print_sheet(overview))
    if book is not None:
        book.check()  # after everything was shown: the error names the first label that no command would accept
    return 0
