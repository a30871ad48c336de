"""Pairs of label and prediction of a validation: one method's classes beside those of the laboratory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.reports.report_data import ReportData
from her2batch.store.cohort import Cohort, Row
from her2batch.store.label_sheets.book import LabelBook
from her2batch.store.label_sheets.cells import header_key
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.labels import LABELS_SCHEMA, label_slides
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import CLASSES, sheet_column

SCAN_COLUMNS = ("physical_slide", "scanner")
"""Columns that a label sheet may have besides: the glass slide that a scan is of, which all of its scans share, and the
scanner."""

NO_RESULT = "no-result"
"""Reason for which a labelled slide is not compared: the method gave it no class."""


class ValidationLabels(NamedTuple):
    """Labels by slide id, each with the columns of SCAN_COLUMNS that the sheet has.  columns: those that it has."""

    rows: dict[str, Row]
    columns: tuple[str, ...]


class PredictionChoice(NamedTuple):
    """Which predictions are validated. folder: name of their table without `predictions/`."""

    folder: str
    method: str
    task: str


class Compared(NamedTuple):
    """A slide with its label and its prediction. prediction: its row of the predictions table, with its `bundle`."""

    slide_id: str
    patient_id: str
    site: str | None
    scanner: str
    physical_slide: str
    truth: str
    predicted: str
    prediction: Row


@dataclass(frozen=True)
class Comparison:
    """The compared slides of one task and method, by slide id, and the labelled slides that are left out.

    classes: of the task, in order.  excluded: rows with slide_id, reason and words; of slides without a result too.
    scanner_source: where the names of scanners come from, in words.
    """

    choice: PredictionChoice
    classes: tuple[str, ...]
    slides: tuple[Compared, ...]
    excluded: tuple[Row, ...]
    scanner_source: str

    @property
    def discordant(self) -> list[Compared]:
        """The slides whose class is not that of the label, those furthest from it first."""
        wrong = [one for one in self.slides if one.predicted != one.truth]
        return sorted(wrong, key=lambda one: (-self.distance(one), one.slide_id))

    def distance(self, one: Compared) -> int:
        """Return the number of classes between label and prediction."""
        return abs(self.classes.index(one.predicted) - self.classes.index(one.truth))

    @property
    def table(self) -> pa.Table:
        """The pairs in the schema of a training run's predictions."""
        rows = [
            {**one.prediction, "predicted": one.predicted, "input": self.choice.folder, "fold": 0, "truth": one.truth}
            for one in self.slides
        ]
        schema = run_schema("predictions")
        return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)

    @property
    def patients(self) -> dict[str, str]:
        """slide_id → patient; a slide without a patient counts as a patient of its own."""
        return {one.slide_id: one.patient_id for one in self.slides}


def read_validation_labels(
    cohort: Cohort, data: ReportData, sheet: Any, columns: Mapping[str, str], names: Pseudonymizer
) -> ValidationLabels:
    """Read the labels of a validation: those of a sheet, or with `sheet` None those of the cohort. Raises InputError.

    columns: our name → header, of the columns of labels.  names: pseudonyms of a pseudonymized cohort.
    """
    if sheet is None:
        if not data.labels:
            raise InputError("has no labels", cohort.root, "give a label sheet with --labels")
        return ValidationLabels(dict(data.labels), ())
    first = read_label_sheet(sheet, columns)
    keys = [header_key(text) for text in first.header.ignored]
    own = tuple(name for name in SCAN_COLUMNS if header_key(name) in keys)
    read = read_label_sheet(sheet, columns, own) if own else first
    book = LabelBook(read.rows, names, read)
    book.add_cohort(cohort)
    book.check()
    return ValidationLabels({slide_id: row for slide_id, row in book.items() if slide_id in data.rows}, own)


def choose_predictions(
    data: ReportData, task: str, folder: str | None = None, method: str | None = None
) -> PredictionChoice:
    """Return which predictions are validated: those that are named, else those that the assessment leads with.

    Raises InputError when the cohort has no such predictions of the task, or several methods where none is named.
    """
    known = {
        (row["bundle"], row["method"])
        for rows in data.predictions.values()
        for row in rows
        if row["task"] == task and row["classes"]
    }
    there = ", ".join(f"{own_method} of {bundle}" for bundle, own_method in sorted(known)) or "none"
    remedy = f"predictions of {task} in this cohort: {there}"
    fitting = {one for one in known if folder in (None, one[0]) and method in (None, one[1])}
    if not fitting:
        what = " ".join(text for text in (folder, method) if text is not None)
        raise InputError(f"has no predictions {what + ' ' if what else ''}of {task}", data.cohort.root, remedy)
    if folder is None:
        leading = Counter(
            (found.main["bundle"], found.main["method"])
            for found in data.assessments.values()
            if found.main is not None and (found.main["bundle"], found.main["method"]) in fitting
        )
        if leading:
            return PredictionChoice(*leading.most_common(1)[0][0], task)
    if len(fitting) > 1:
        raise InputError(
            f"has several methods for {task}", data.cohort.root, f"name one with --predictions and --method; {remedy}"
        )
    return PredictionChoice(*fitting.pop(), task)


def compare(data: ReportData, labels: ValidationLabels, choice: PredictionChoice) -> Comparison:
    """Pair the labels with the chosen predictions.  Raises InputError when not a single slide can be compared."""
    task = choice.task
    table = pa.Table.from_pylist(
        [{name: row.get(name) for name in LABELS_SCHEMA.names} for row in labels.rows.values()], LABELS_SCHEMA
    )
    labelled, excluded = label_slides(table, task, data.rows)
    slides, left_out = [], excluded.to_pylist()
    for row in labelled.to_pylist():
        prediction = _prediction_of(data.predictions.get(row["slide_id"], ()), choice)
        if prediction is None:
            words = f"{row['slide_id']} has no result of {choice.method}"
            left_out.append({**row, "task": task, "reason": NO_RESULT, "words": words})
            continue
        slides.append(_compared(data.rows[row["slide_id"]], labels.rows[row["slide_id"]], row, prediction))
    if not slides:
        reasons = Counter(row["reason"] for row in left_out)
        why = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()) or "no label meets a slide"
        raise InputError(
            f"no slide can be compared ({why})", data.cohort.root, "check the labels with her2batch labels"
        )
    source = "the label sheet" if "scanner" in labels.columns else "the format of the slide files"
    return Comparison(choice, CLASSES[task], tuple(slides), tuple(left_out), source)


def _prediction_of(predictions: Sequence[Row], choice: PredictionChoice) -> Row | None:
    wanted = (choice.folder, choice.method, choice.task)
    return next((row for row in predictions if (row["bundle"], row["method"], row["task"]) == wanted), None)


def _compared(slide: Row, label: Row, labelled: Row, prediction: Row) -> Compared:
    further = {name: label.get(sheet_column(name)) for name in SCAN_COLUMNS}
    return Compared(
        slide["slide_id"], labelled["patient_id"], label.get("site"),
        further["scanner"] or slide["format"] or "unknown",
        further["physical_slide"] or slide["slide_id"], labelled["truth"], prediction["predicted"], prediction,
    )  # fmt: skip
