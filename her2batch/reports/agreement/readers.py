"""Agreement of the readers of the labels, which bounds what agreement with their consensus can mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from her2batch.reports.agreement.sections import patient_of_slide
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, render_template
from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS, SCALES, tied_columns
from her2batch.training.readers.agreement import RESAMPLES, ReaderAgreement, measure_agreement

LabelRow = Mapping[str, Any]


def readers_section(data: ReportData) -> SectionContent | None:
    """Show how far the readers of the labels agree. None where no slide has labels of two readers."""
    rows = [row for slide_id, row in data.labels.items() if slide_id in data.rows]
    found = agreement_of_readers(rows, patient_of_slide(data))
    return SectionContent(render_readers(found, slides_without_majority(rows))) if found else None


def agreement_of_readers(rows: Iterable[LabelRow], patients: Mapping[str, str]) -> list[ReaderAgreement]:
    """Return the agreement in each column of the labels that two readers and more have filled in for some slide.

    rows: of labels, with their `readings`.  patients: slide_id → patient.
    """
    own = [row for row in rows if row.get("readings")]
    found = []
    for column in READ_COLUMNS:
        classes = SCALES[column]
        readings = {
            row["slide_id"]: {
                reading["reader"]: classes.index(reading[column])
                for reading in row["readings"]
                if reading[column] is not None
            }
            for row in own
        }
        if (agreement := measure_agreement(column, classes, readings, patients)) is not None:
            found.append(agreement)
    return found


def slides_without_majority(rows: Iterable[LabelRow]) -> dict[str, list[str]]:
    """Return column → slides in which no value has more than half of the readers."""
    tied: dict[str, list[str]] = {}
    for row in (row for row in rows if row.get("readings")):
        for column in tied_columns(row["readings"]):
            tied.setdefault(column, []).append(row["slide_id"])
    return tied


def render_readers(found: Sequence[ReaderAgreement], tied: Mapping[str, Sequence[str]]) -> Markup:
    """Return the HTML of the agreement of readers, without a heading."""
    return render_template("readers.html", agreements=found, tied=tied, resamples=RESAMPLES)
