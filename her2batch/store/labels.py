"""Labels of slides, from a label sheet or a public clinical table, and the class of each slide in a task.

A slide whose labels contradict each other, or lack what a task needs, is excluded with the reason.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.assessment import MICROARRAY, WITHOUT_PATIENT, marker_of
from her2batch.errors import InputError
from her2batch.store.cohort import Cohort, Row
from her2batch.store.label_sheets.book import LabelBook, slide_paths
from her2batch.store.label_sheets.cells import counted, is_unknown_patient
from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS, tied_columns
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.label_sheets.stored import COLUMNS, LABELS_SCHEMA, READINGS, stored_labels, write_labels
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.reviews import counting_reviews, newest_reviews
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import (
    CONTRADICTIONS,
    DETAIL_TASK,
    HER2_DETAILS,
    HER2_TASKS,
    IHC_SCORES,
    SCORE_TASKS,
    Task,
    as_task,
    her2_class,
    ihc_score,
    sheet_column,
    task_applies,
)

__all__ = [
    "COLUMNS", "LABELS_SCHEMA", "apply_reviews", "check_labels", "label_slides", "read_labels", "store_labels",
    "stored_labels",
]  # fmt: skip

NOT_IN_COHORT: Final = "not-in-cohort"
"""Reason for which a label is excluded whose slide the cohort does not have."""

LABELLED_SCHEMA = pa.schema(
    [("slide_id", pa.string()), ("patient_id", pa.string()), ("label", pa.int32()), ("truth", pa.string()),
     ("stratum", pa.string())]
)  # fmt: skip
"""Columns of the labelled slides of a task.  label: position of the class in the task; 0 for a number.  truth: the
class, or the number as text.  stratum: the finest label, by which folds are balanced; of a number the fifth."""

EXCLUDED_SCHEMA = pa.schema([(name, pa.string()) for name in ("slide_id", "patient_id", "task", "reason", "words")])
"""Columns of the excluded slides of a task."""

Slides = Mapping[str, Mapping[str, Any]]
"""slide_id → its row of the slides table."""


def read_labels(
    path: Path,
    slides: Iterable[str] | Cohort = (),
    columns: Mapping[str, str] | None = None,
    further: Sequence[str] = (),
) -> pa.Table:
    """Read a label sheet (CSV, XLSX, TCGA's or cBioPortal's clinical tables) as a table of LABELS_SCHEMA.

    slides: ids of the slides that the labels are for, or their cohort, by whose file names labels are found too. A row
    that meets a slide gets its id, and of a patient's row each slide of the patient gets the labels; without `slides`,
    the name or barcode is the slide_id.  columns: our name → header, for sheets with other headers.  further: columns
    that tasks of the user's own read; the table then has their texts, as `tasks.sheet_column` names them.
    Missing values are null.  Raises InputError with the place in the file and the remedy: for a missing column, an
    unknown value, two lines of one slide, and a label that could mean two slides.
    """
    sheet = read_label_sheet(path, columns, further)
    schema = pa.schema([*LABELS_SCHEMA, *((sheet_column(name), pa.string()) for name in further)])
    names = list(slide_paths(slides)) if isinstance(slides, Cohort) else [(slide_id, None) for slide_id in slides]
    if not names:
        return pa.Table.from_pylist(sheet.rows, schema)
    book = LabelBook(sheet.rows, Pseudonymizer(), sheet)
    book.add_slides(names)
    book.check()
    rows = [row for row in book.stored_rows() if row["level"] == "slide" or row["slide_id"] in book]
    return pa.Table.from_pylist(rows, schema)


def store_labels(cohort: Cohort, path: Path, names: Pseudonymizer) -> dict[str, Row]:
    """Read a label sheet and keep it in the cohort, with its names as `names` gives them; returns rows by slide_id.

    Raises InputError for unreadable labels, OSError when they can't be written. Call it under the lock only.
    """
    sheet = read_label_sheet(path)
    book = LabelBook(sheet.rows, names, sheet)
    book.add_cohort(cohort)
    book.check()
    write_labels(cohort, book.stored_rows())
    return dict(book)


def check_labels(labels: pa.Table, rows: Slides, path: Path, partly: bool = False) -> None:
    """Check that labels fit the cohort.

    partly: the labels may name slides that the cohort does not have, which are passed over.  Raises InputError for such
    slides otherwise, for a patient other than the cohort's, and for slides whose patient is left empty where others
    have one: it could be that of the line above. A patient who is stated to be unknown is no such slide.
    """
    own = labels.to_pylist()
    unknown = sorted(row["slide_id"] for row in own if row["slide_id"] not in rows)
    if unknown and not partly:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what = f"has labels of {', '.join(unknown[:3])}{more}, which the cohort does not contain"
        remedy = (
            "ingest these slides, or remove their lines; or give the labels to the ingest and train without --labels"
        )
        raise InputError(what, path, remedy)
    own = [row for row in own if row["slide_id"] in rows]
    for row in own:
        known = rows[row["slide_id"]]["patient_id"]
        if known is not None and row["patient_id"] is not None and known != row["patient_id"]:
            what = (
                f"slide {row['slide_id']} is of patient {row['patient_id']} here, but of patient {known} in the cohort"
            )
            raise InputError(what, path, "correct the patient here, or in the cohort by an ingest with --labels")
    given = [row["slide_id"] for row in own if row["patient_id"] is not None]
    unstated = [row["slide_id"] for row in own if row["patient_id"] is None and not row["patient_unknown"]]
    empty = [slide_id for slide_id in unstated if rows[slide_id]["patient_id"] is None]
    if given and empty:
        what = f"slide {empty[0]} has no patient_id, but {len(given)} others have one"
        raise InputError(
            what, path, "fill in the column for every slide (`unknown` where it is not known), or for none"
        )


def label_notes(labels: pa.Table, rows: Slides) -> list[str]:
    """What a person should know about the labels of a cohort, in sentences.  rows: of the slides table."""
    own = labels.to_pylist()
    unknown = [row["slide_id"] for row in own if row["patient_unknown"] and row["slide_id"] in rows]
    notes = []
    if unknown:
        what = f"the patient of {counted(len(unknown), 'slide')} is not known: each counts as a patient of its own"
        notes.append(f"{what} ({', '.join(unknown)})")
    if absent := [row["slide_id"] for row in own if row["slide_id"] not in rows]:
        what = f"{counted(len(absent), 'label')} of slides that the cohort does not have"
        notes.append(f"{what}: {', '.join(absent)}")
    for column in READ_COLUMNS:
        read = [row for row in own if row.get(READINGS) and row["slide_id"] in rows]
        if tied := [row["slide_id"] for row in read if column in tied_columns(row[READINGS])]:
            what = f"no majority of the readers for {column} of {counted(len(tied), 'slide')}"
            notes.append(f"{what}: {', '.join(tied)}")
    labelled = {row["slide_id"] for row in own}
    if without := sorted(set(rows) - labelled):
        notes.append(f"{counted(len(without), 'slide')} of the cohort without a label: {', '.join(without)}")
    return notes


def label_slides(
    labels: pa.Table, task: str | Task, rows: Slides, keep_contradictions: bool = False
) -> tuple[pa.Table, pa.Table]:
    """The slides of a task with their classes (LABELLED_SCHEMA), and the excluded slides (EXCLUDED_SCHEMA).

    rows: of the slides table.  A label without patient_id leaves a slide the patient that the cohort knows; without one
    it counts as a patient of its own.
    Source: methods.md §1 (paper, tables 1–3; ASCO/CAP 2018, affirmed 2023).
    Raises InputError with slide, column and value for a label that the task cannot read.
    """
    task = as_task(task)
    labelled, excluded = [], []
    for row in sorted(labels.to_pylist(), key=lambda label: str(label["slide_id"])):
        slide_id = row["slide_id"]
        patient = row["patient_id"] or _known_patient(rows.get(slide_id, {})) or slide_id
        reason, words = _exclusion(task, row, rows, keep_contradictions)
        if reason is not None:
            excluded.append(
                {"slide_id": slide_id, "patient_id": patient, "task": task.name, "reason": reason, "words": words}
            )
            continue
        truth = str(_truth(task, row))
        stratum = _finest_label(row) if task.name in HER2_TASKS else truth
        label = 0 if task.is_number else task.classes.index(truth)
        labelled.append(
            {"slide_id": slide_id, "patient_id": patient, "label": label, "truth": truth, "stratum": stratum}
        )
    if task.is_number:
        labelled = _with_fifths(labelled)
    return pa.Table.from_pylist(labelled, LABELLED_SCHEMA), pa.Table.from_pylist(excluded, EXCLUDED_SCHEMA)


def reader_truths(labels: pa.Table, task: str | Task, slides: Container[str]) -> list[Row]:
    """Return the class that each reader's labels give in a task: rows with task, slide_id, reader and truth.

    slides: the labelled slides of the task.  An ISH result that a reader does not state is that of the slide. Readers
    whose labels give no class are left out; so are tasks of the user's own on columns in which readers do not differ.
    """
    task = as_task(task)
    if task.is_number or not {*task.columns} & {*READ_COLUMNS}:
        return []
    rows = []
    for row in labels.to_pylist():
        for reading in (row.get(READINGS) or ()) if row["slide_id"] in slides else ():
            own = {**row, **{name: reading[name] for name in READ_COLUMNS}, "ish": reading["ish"] or row["ish"]}
            if (truth := _truth(task, own)) is not None:
                rows.append(
                    {"task": task.name, "slide_id": row["slide_id"], "reader": reading["reader"], "truth": truth}
                )
    return sorted(rows, key=lambda one: (one["slide_id"], one["reader"]))


def _known_patient(slide: Mapping[str, Any]) -> str | None:
    """The patient of a slide in the cohort; None where it is a word for a missing value, as earlier versions stored."""
    patient: str | None = slide.get("patient_id")
    return None if patient is None or is_unknown_patient(patient) else patient


def _finest_label(row: Mapping[str, Any]) -> str:
    """Score and ISH result of a slide, with the sub-score of 0 where it is stated."""
    return f"{row['her2_detail'] or row['her2']}/{row['ish'] or '?'}"


def has_details(labels: pa.Table) -> bool:
    """Whether any label states a sub-score of 0."""
    return any(detail is not None for detail in labels["her2_detail"].to_pylist())


def _with_fifths(labelled: Sequence[Row]) -> list[Row]:
    """Return the labelled slides of a number with the fifth of its distribution as stratum."""
    ranked = sorted(labelled, key=lambda row: (float(row["truth"]), row["slide_id"]))
    fifth = {row["slide_id"]: str(5 * k // len(ranked)) for k, row in enumerate(ranked)}
    return [{**row, "stratum": fifth[row["slide_id"]]} for row in labelled]


def _truth(task: Task, row: Mapping[str, Any]) -> str | float | None:
    """The class or number of a row of labels; None without one. Raises InputError naming the slide and the value."""
    if task.name in HER2_TASKS:
        return her2_class(task.name, row["her2"], row["ish"], row["her2_detail"]) if row["her2"] else None
    if task.is_builtin:
        return {"+": "positive", "-": "negative"}.get(row[task.name])
    try:
        return task.truth(row)
    except ValueError as error:
        what = f"task {task.name}, slide {row['slide_id']}: {error}"
        raise InputError(what, None, "correct the labels, or the task in the file for --tasks") from error


def _exclusion(task: Task, row: Mapping[str, Any], slides: Slides, keep: bool) -> tuple[str | None, str | None]:
    """Why a slide is excluded from a task, as a stable word and as a sentence; None, None if it is not."""
    name = row["slide_id"]
    if slides and name not in slides:
        return NOT_IN_COHORT, f"the cohort does not have {name}"
    slide = slides.get(name, {})
    stain = row["stain"] or slide.get("stain")
    if not task_applies(task, stain):
        known = f"{name} is stained for {stain}"
        unknown = f"the marker of {name} is not known; state it in the column stain of the labels"
        return "other-stain", unknown if stain in (None, "ihc") else known
    if _truth(task, row) is None and (task.name not in HER2_TASKS or row["her2"] is None):
        return "no-label", f"{name} has no {', '.join(task.columns)}"
    if slide.get("status") == "failed":
        return "failed", f"{name} failed in the ingest: {slide.get('error_code')}"
    if MICROARRAY in (slide.get("flags") or ()):
        return "microarray", f"{name} is a tissue microarray: its cores belong to several patients"
    if WITHOUT_PATIENT & set(slide.get("flags") or ()):
        return "control", f"{name} has no tissue of the patient: it is a control, or excluded"
    if slide.get("n_tiles") == 0:
        return "no-tiles", f"{name} has no tissue"
    if task.name in HER2_TASKS and not keep and (row["her2"], row["ish"]) in CONTRADICTIONS:
        return "contradiction", f"{name} is {row['her2']} with ISH {row['ish']}"
    if task.name == DETAIL_TASK and row["her2"] == "0" and row["her2_detail"] is None:
        return "no-detail", f"{name} is 0, and no label states null or ultralow"
    if _truth(task, row) is None:
        return "needs-ish", f"{name} is 2+ without ISH"
    return None, None


def apply_reviews(labels: pa.Table, entries: Sequence[Row], rows: Slides) -> tuple[pa.Table, pa.Table]:
    """Labels in which the newest review of each slide replaces the label, and what became of each review.

    A review gives an IHC score, or ER or PR; `needs-ish` stands for 2+. ISH results are those of the labels. Reviews of
    other tasks change no label.
    Returns the labels and a table `reviews` of a run; its column `words` states differences from the labels and from
    other reviewers.
    """
    table = {row["slide_id"]: row for row in labels.to_pylist()}
    with_patients = any(row["patient_id"] is not None for row in table.values())
    changes = []
    known = {key: entry for key, entry in newest_reviews(entries).items() if key[1] in COLUMNS}
    for (slide_id, column), entry in sorted(known.items()):
        patient = rows.get(slide_id, {}).get("patient_id")
        label = table.get(slide_id, dict.fromkeys(COLUMNS) | {"slide_id": slide_id, "patient_id": patient})
        was = label[column]
        now, words = _reviewed_label(entry, column, label), _other_reviews(entries, entry, column)
        if slide_id not in rows:
            words = ["the cohort does not contain it"]
        elif with_patients and label["patient_id"] is None:
            now, words = None, ["its patient is not known: add it to the labels"]
        else:
            readings = _without_column(label.get(READINGS), column)
            table[slide_id] = label | {column: now, READINGS: readings} | _reviewed_detail(entry, column, label, now)
        if now is None and slide_id in rows and not words:
            words = [f"{entry['label']} is not an IHC score"]
        if was is not None and was != now:
            words.insert(0, f"the label was {was}")
        changes.append(
            {"slide_id": slide_id, "column": column, "number": entry["number"], "was": was, "now": now,
             "words": "; ".join(words) or None}
        )  # fmt: skip
    reviewed = pa.Table.from_pylist([table[slide_id] for slide_id in sorted(table, key=str)], labels.schema)
    return reviewed, pa.Table.from_pylist(changes, run_schema("reviews"))


def _without_column(readings: Sequence[Row] | None, column: str) -> list[Row] | None:
    """Return readings without a column that a review has decided; None where nothing is left of them."""
    dropped = {column: None, **({"her2_detail": None} if column == "her2" else {})}
    left = [{**reading, **dropped} for reading in readings or ()]
    return left if any(reading[name] is not None for reading in left for name in READ_COLUMNS) else None


def _reviewed_detail(entry: Row, column: str, label: Mapping[str, Any], now: str | None) -> Row:
    """The sub-score after a review, as a column of the label: the review's, or that of the label if it is still 0."""
    if column != "her2":
        return {}
    if entry["label"] in HER2_DETAILS:
        return {"her2_detail": entry["label"]}
    return {"her2_detail": label["her2_detail"] if now == "0" == label["her2"] else None}


def _reviewed_label(entry: Row, column: str, label: Mapping[str, Any]) -> str | None:
    """The label after a review; None if its class stands for several IHC scores and is not the class of the label."""
    task, reviewed_class = entry["task"], entry["label"]
    if entry["verdict"] == "needs-ish":
        return "2+"
    if task in SCORE_TASKS:
        return ihc_score(reviewed_class)
    if column != "her2":
        return {"positive": "+", "negative": "-"}[reviewed_class]
    fitting = [ihc for ihc in IHC_SCORES if reviewed_class in {her2_class(task, ihc, ish) for ish in "+-"}]
    if label["her2"] is not None and her2_class(task, label["her2"], label["ish"]) == reviewed_class:
        return str(label["her2"])
    return fitting[0] if len(fitting) == 1 else None


def _other_reviews(entries: Sequence[Row], entry: Row, column: str) -> list[str]:
    """The newest reviews of other reviewers of the same label, where they differ, as text."""
    newest: dict[str, Row] = {}
    for other in counting_reviews(entries):
        if (other["slide_id"], marker_of(other["task"])) == (entry["slide_id"], column):
            newest[other["reviewer"]] = other
    different = [
        other for other in newest.values() if (other["task"], other["label"]) != (entry["task"], entry["label"])
    ]
    return [
        f"review {other['number']} was {other['label'] or other['verdict']} ({other['task']})" for other in different
    ]
