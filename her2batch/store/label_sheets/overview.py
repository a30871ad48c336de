"""What was understood of a label sheet, as plain values for the screen and for JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any, Final

from her2batch.store.label_sheets.book import LabelBook
from her2batch.store.label_sheets.headers import SHEET_COLUMNS
from her2batch.store.label_sheets.reading import LabelSheet
from her2batch.store.label_sheets.rows import LABEL_COLUMNS, LabelRow

ROW_KEYS: Final = ("line", *(name for name in SHEET_COLUMNS if name != "reader"))


def sheet_overview(sheet: LabelSheet, book: LabelBook | None = None) -> dict[str, Any]:
    """Return what was understood of a sheet.

    file, form, level (what a row stands for), header_line, unit (`line` or `row`), columns (our name → header), ignored
    (headers), rows, classes (column → value → number of rows), patients, notes.  With a book, whose slides are those of
    a cohort: each row's `slides`, the ids of the slides that it meets, and met, unmet, ambiguous, unlabelled as in
    `LabelsReport`.  Of a sheet with a column `reader`, each row's `readings` has the labels of every reader.
    """
    keys = (*ROW_KEYS, "readings") if "reader" in sheet.header.columns else ROW_KEYS
    rows = [{key: row[key] for key in keys} for row in sheet.rows]
    overview: dict[str, Any] = {
        "file": str(sheet.path),
        "form": sheet.form,
        "level": sheet.header.form.level if sheet.header.form is not None else "slide",
        "header_line": sheet.line,
        "unit": sheet.unit,
        "columns": dict(sheet.header.names),
        "ignored": list(sheet.header.ignored),
        "rows": rows,
        "classes": _class_counts(sheet.rows),
        "patients": len({row["patient_id"] for row in rows} - {None}),
        "notes": list(sheet.notes),
    }
    if book is not None:
        report = asdict(book.report(book.slides))
        slides: dict[int, list[str]] = {}
        for slide_id, row in book.match.labels.items():
            slides.setdefault(row["number"], []).append(slide_id)
        for k, shown in enumerate(rows):
            shown["slides"] = sorted(slides.get(k, []))
        overview |= {key: report[key] for key in ("met", "unmet", "ambiguous", "unlabelled")}
    return overview


def _class_counts(rows: list[LabelRow]) -> dict[str, dict[str, int]]:
    """Return column → value → number of rows, where any row has one; missing values under an empty text."""
    counts: dict[str, dict[str, int]] = {}
    for column in LABEL_COLUMNS:
        found = Counter(row[column] or "" for row in rows)
        if found.keys() - {""}:
            counts[column] = {value: found[value] for value in sorted(found, key=lambda value: (not value, value))}
    return counts
