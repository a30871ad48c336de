"""The work lists that a pathologist reviews first: each function returns the slides of one list as a sortable table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from her2batch.models.membrane_rule import NEAR_FACTOR, TEN_PERCENT, slide_shares
from her2batch.reports.report_data import ReportData, read_tables
from her2batch.reports.theme import ColumnKind, SortableTable
from her2batch.store.cohort import Row
from her2batch.tasks import CLASSES, HER2_TASKS, MEMBRANE_RULE

TableColumns = tuple[tuple[str, ColumnKind, str], ...]

HER2_4WAY: Final = "her2-4way"

SLIDE_COLUMNS: Final[TableColumns] = (
    ("slide", "slide", "slides.slide_id"),
    ("patient", "text", "slides.patient_id"),
    ("site", "text", "labels.site"),
)
CLASS_COLUMN: Final = ("class", "class", "predictions.predicted")
SCORE_COLUMN: Final = ("score", "number", "predictions.score")
PREDICTION_COLUMNS: Final[TableColumns] = (
    ("method", "text", "predictions.method"),
    CLASS_COLUMN,
    ("plausible classes", "words", "predictions.plausible"),
    SCORE_COLUMN,
    ("reasons", "words", "predictions.reasons"),
)
LABEL_COLUMNS: Final[TableColumns] = (("label", "class", "labels.her2"), ("ISH", "text", "labels.ish"))

GUIDELINE_COLUMNS: Final = {
    "faint": "faint",
    "moderate_complete": "moderate, complete",
    "intense_complete": "intense, complete",
}
"""Columns of the membrane table that the membrane rule compares with its thresholds, and their labels."""


def list_equivocal(data: ReportData) -> SortableTable:
    """List the slides that are 2+ by any method and have no ISH result among the labels."""
    rows = []
    for slide_id, prediction in _predictions(data, HER2_4WAY):
        if prediction["predicted"] == "2+" and _label_cells(data, slide_id)[1] is None:
            rows.append([*_slide_cells(data, slide_id), *_prediction_cells(prediction), *_label_cells(data, slide_id)])
    note = "Equivocal by at least one method, without an ISH result among the labels: candidates for reflex ISH."
    columns = SLIDE_COLUMNS + PREDICTION_COLUMNS + LABEL_COLUMNS
    return SortableTable("equivocal", "2+, for reflex ISH", note, columns, rows)


def list_zero_against_one_plus(data: ReportData) -> SortableTable:
    """List the slides between 0 and 1+: treatment differs between the two, and readers agree least on them."""
    rows = []
    for slide_id, prediction in _predictions(data, HER2_4WAY):
        both_plausible = {"0", "1+"} <= set(prediction["plausible"] or ())
        ultralow = "ultralow" in (prediction["reasons"] or ())
        if prediction["predicted"] in ("0", "1+") and (both_plausible or ultralow):
            rows.append([*_slide_cells(data, slide_id), *_prediction_cells(prediction), *_label_cells(data, slide_id)])
    note = "Predicted 0 or 1+ where the other class can't be excluded, or ultralow."
    columns = SLIDE_COLUMNS + PREDICTION_COLUMNS + LABEL_COLUMNS
    return SortableTable("second-look", "0 against 1+", note, columns, rows)


def list_disagreements(data: ReportData) -> SortableTable:
    """List the slides for which methods predict different classes, with one column for each method."""
    methods = sorted(
        {method_label(prediction) for rows in data.predictions.values() for prediction in rows}, key=method_sort_key
    )
    rows = []
    for slide_id in data.rows:
        for task in CLASSES:
            predictions = data.predictions_for(slide_id, task)
            by_method = {method_label(prediction): prediction["predicted"] for prediction in predictions}
            if len(set(by_method.values())) > 1:
                rows.append([*_slide_cells(data, slide_id), task, *(by_method.get(method) for method in methods)])
    columns = (
        *SLIDE_COLUMNS,
        ("task", "text", "predictions.task"),
        *((method, "class", "predictions.predicted") for method in methods),
    )
    note = "Slides for which the methods (membrane rule, MIL, thumbnail, patch counts) predict different classes."
    return SortableTable("disagreement", "Methods disagree", note, columns, rows)


def list_near_threshold(data: ReportData) -> SortableTable:
    """List the slides with a membrane share near 10 %, where a few more stained cells would change the class."""
    near = [
        (data.rows[slide_id], prediction)
        for slide_id, prediction in _predictions(data, HER2_4WAY)
        if prediction["method"] == MEMBRANE_RULE and "near-10-percent" in (prediction["reasons"] or ())
    ]
    tables = read_tables(data.cohort, [(row, "membrane") for row, _ in near])
    rows = []
    for (row, prediction), table in zip(near, tables, strict=True):
        shares: dict[str, float] = {}
        if table is not None and table.num_rows:
            shares = slide_shares({name: table[name].to_numpy() for name in table.column_names[2:]})
        compared = [shares.get(name) for name in GUIDELINE_COLUMNS]
        scores = [prediction["predicted"], prediction["score"], _nearest_to_threshold(compared)]
        rows.append([*_slide_cells(data, row["slide_id"]), *scores, *compared])
    share_columns = tuple(
        (label, "share", f"membrane.{name}, weighted by membrane.cells") for name, label in GUIDELINE_COLUMNS.items()
    )
    columns = (*SLIDE_COLUMNS, CLASS_COLUMN, SCORE_COLUMN, ("nearest", "share", "membrane"), *share_columns)
    note = f"A share of the cellular area lies within a factor of {NEAR_FACTOR:g} of the guideline's {TEN_PERCENT:.0%}."
    return SortableTable("near", f"Near {TEN_PERCENT:.0%}", note, columns, rows)


def list_unscorable(data: ReportData) -> SortableTable:
    """List the slides that have no score, or no reliable one, with the reason and the remedy."""
    rows = []
    for slide_id, row in data.rows.items():
        code, message = _unscorable_reason(data, row)
        if code is not None:
            rows.append([*_slide_cells(data, slide_id), row["status"], code, message])
    columns = (
        *SLIDE_COLUMNS,
        ("status", "text", "slides.status"),
        ("reason", "text", "slides.error_code, slides.flags, predictions.reasons"),
        ("message and remedy", "text", "slides.error"),
    )
    note = "Failed, without tissue, with too few cells, or stained for a marker that no method scores."
    return SortableTable("unscorable", "Unscorable", note, columns, rows)


def list_cases(data: ReportData) -> SortableTable:
    """List the cases that have more than one slide, with all their slides."""
    rows = []
    for case in data.cases:
        if len(case.slides) > 1:
            slides = [[row["slide_id"], _slide_caption(data, row)] for row in case.slides]
            highest = case.highest_classes().get((HER2_4WAY, MEMBRANE_RULE))
            rows.append([case.name, len(slides), highest, slides, case.conflicts])
    rows.sort(key=lambda row: (not row[4], row[0]))
    columns = (
        ("case", "text", "slides.patient_id"),
        ("slides", "number", "slides"),
        ("highest", "class", "predictions"),
        ("side by side", "slides", "slides, predictions"),
        ("conflicts", "words", "slides, predictions"),
    )
    note = (
        'Cases with conflicts come first. "Highest" is the highest class of any slide by the membrane rule. '
        "It is not a diagnosis."
    )
    return SortableTable("cases", "Cases side by side", note, columns, rows)


def list_flagged(data: ReportData) -> SortableTable:
    """List the slides that have a quality flag, with the quality measures."""
    measures = ("flags", "blur", "pen", "saturated", "background")
    rows = [
        [*_slide_cells(data, row["slide_id"]), *(row[name] for name in measures)]
        for row in data.done_rows
        if row["flags"]
    ]
    columns = (
        *SLIDE_COLUMNS,
        ("flags", "words", "slides.flags"),
        ("blurred", "share", "slides.blur"),
        ("pen", "share", "slides.pen"),
        ("saturated", "share", "slides.saturated"),
        ("background", "number", "slides.background"),
    )
    note = "Quality flags of the scan. Check the slide itself before you rely on its score."
    return SortableTable("flagged", "Flagged slides", note, columns, rows)


def list_all_slides(data: ReportData) -> SortableTable:
    """List all slides with their class and score by the membrane rule."""
    rows = []
    for slide_id, row in data.rows.items():
        predictions = data.predictions_for(slide_id, HER2_4WAY)
        rule = next((prediction for prediction in predictions if prediction["method"] == MEMBRANE_RULE), {})
        scores = [rule.get("predicted"), rule.get("score"), "yes" if rule.get("review") else None]
        tissue = [row["tissue_mm2"], row["n_tiles"]]
        slide = [*_slide_cells(data, slide_id), row["stain"], row["status"]]
        rows.append([*slide, *scores, *tissue, row["flags"] or []])
    columns = (
        *SLIDE_COLUMNS,
        ("stain", "text", "slides.stain"),
        ("status", "text", "slides.status"),
        CLASS_COLUMN,
        SCORE_COLUMN,
        ("review", "text", "predictions.review"),
        ("tissue mm²", "number", "slides.tissue_mm2"),
        ("tiles", "number", "slides.n_tiles"),
        ("flags", "words", "slides.flags"),
    )
    note = "Every slide of the cohort. Class and score are those of the membrane rule."
    return SortableTable("all", "All slides", note, columns, rows)


WORKLISTS: Final[tuple[Callable[[ReportData], SortableTable], ...]] = (
    list_equivocal,
    list_zero_against_one_plus,
    list_disagreements,
    list_near_threshold,
    list_unscorable,
    list_cases,
)
"""The work lists in the order of the report."""


def _predictions(data: ReportData, task: str) -> Iterable[tuple[str, Row]]:
    """Yield (slide_id, prediction) for every prediction of a task."""
    for slide_id in data.rows:
        for prediction in data.predictions_for(slide_id, task):
            yield slide_id, prediction


def _slide_cells(data: ReportData, slide_id: str) -> list[Any]:
    """Return the cells of SLIDE_COLUMNS."""
    return [slide_id, data.rows[slide_id]["patient_id"], data.site_of(slide_id)]


def _prediction_cells(prediction: Row) -> list[Any]:
    """Return the cells of PREDICTION_COLUMNS."""
    plausible, reasons = prediction["plausible"] or [], prediction["reasons"] or []
    return [method_label(prediction), prediction["predicted"], plausible, prediction["score"], reasons]


def _label_cells(data: ReportData, slide_id: str) -> list[Any]:
    """Return the cells of LABEL_COLUMNS."""
    label = data.labels.get(slide_id, {})
    return [label.get("her2"), label.get("ish")]


def method_label(prediction: Row) -> str:
    """Return the name of a method with the start of its bundle's id; the membrane rule has its name alone."""
    method = str(prediction["method"])
    return method if method == MEMBRANE_RULE else f"{method} {prediction['bundle'][:4]}"


def method_sort_key(label: str) -> tuple[bool, str]:
    """Return the key that sorts method labels: the membrane rule first, then by name."""
    return label != MEMBRANE_RULE, label


def _nearest_to_threshold(shares: Iterable[float | None]) -> float | None:
    """Return the share whose ratio to 10 % is closest to 1."""
    known = [share for share in shares if share is not None]
    return min(known, key=lambda share: abs(np.log(max(share, 1e-4) / TEN_PERCENT)), default=None)


def _unscorable_reason(data: ReportData, row: Row) -> tuple[str | None, str | None]:
    """Return why a slide has no reliable score, as (code, message with the remedy); (None, None) where it has one."""
    if row["status"] == "failed":
        return row["error_code"], row["error"]
    if not row["n_tiles"]:
        return "no-tissue", "No tissue was found. Check that the slide was scanned in focus and at the right place."
    predictions = data.predictions.get(row["slide_id"], [])
    if not predictions:
        return "no-method", f"No method scores slides stained for {row['stain']}. Score with a bundle that does."
    her2 = [prediction for prediction in predictions if prediction["task"] in HER2_TASKS]
    if any("low-cellularity" in (prediction["reasons"] or ()) for prediction in her2):
        return "low-cellularity", "The tissue contains hardly any cells. Check whether the tumour is on this slide."
    return None, None


def _slide_caption(data: ReportData, row: Row) -> str:
    """Return the caption of a slide in a case: its stain and class, or the code of its failure."""
    if row["status"] == "failed":
        return str(row["error_code"])
    predictions = data.predictions_for(row["slide_id"], HER2_4WAY)
    classes = [str(prediction["predicted"]) for prediction in predictions if prediction["method"] == MEMBRANE_RULE]
    return " · ".join([row["stain"] or "marker not known", *classes])
