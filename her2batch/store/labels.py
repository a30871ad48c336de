"""Labels of slides, from a labels CSV or TCGA's clinical table, and the class of each slide in a task.

A slide whose labels contradict each other, or lack what a task needs, is excluded with the reason.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.assessment import marker_of
from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.reviews import counting_reviews, newest_reviews
from her2batch.store.schemas import run_schema
from her2batch.tasks import CLASSES, HER2_TASKS, IHC_SCORES, STAINS, her2_class, task_applies

COLUMNS = ("slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain")
ALLOWED_VALUES = {
    "her2": frozenset(IHC_SCORES),
    "ish": frozenset("+-"),
    "er": frozenset("+-"),
    "pr": frozenset("+-"),
    "stain": frozenset(STAINS),
}
LABELS_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])

LABELLED_SCHEMA = pa.schema(
    [("slide_id", pa.string()), ("patient_id", pa.string()), ("label", pa.int32()), ("truth", pa.string()),
     ("stratum", pa.string())]
)  # fmt: skip
"""Columns of the labelled slides of a task.  label: position in CLASSES[task].  stratum: the finest label, by which
folds are balanced."""

EXCLUDED_SCHEMA = pa.schema([(name, pa.string()) for name in ("slide_id", "patient_id", "task", "reason", "words")])
"""Columns of the excluded slides of a task."""

TCGA_BARCODE: Final = "bcr_patient_barcode"
"""First column of TCGA's clinical tables, which have one row per patient."""

TCGA: Final = {
    "her2": "her2_ihc_score",
    "ish": "her2_fish_status",
    "er": "er_status_by_ihc",
    "pr": "pr_status_by_ihc",
}

TCGA_UNKNOWN: Final = frozenset(
    (
        "[Not Available]",
        "[Not Evaluated]",
        "[Unknown]",
        "[Not Applicable]",
        "[Discrepancy]",
        "Indeterminate",
        "Equivocal",
    )
)
"""Values in TCGA's tables that count as missing. Equivocal ISH does, because the guideline asks for another test."""

TCGA_SIGNS: Final = {"Positive": "+", "Negative": "-"}

Slides = Mapping[str, Mapping[str, Any]]
"""slide_id → its row of the slides table."""


def read_labels(path: Path, slides: Iterable[str] = ()) -> pa.Table:
    """Read a labels CSV: slide_id, and any of patient_id, her2 (0 … 3+), ish, er, pr (+ or -), site, stain.

    Or TCGA's clinical table (TSV, three header rows), whose rows are patients: every slide of `slides` whose id begins
    with a patient's barcode gets the patient's labels; without `slides`, the barcode is the slide_id.
    Empty cells are null. Raises InputError with the file, the line and the remedy for a missing column, an unknown
    value or a slide with two lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(TCGA_BARCODE):
            rows = _tcga(path, list(csv.DictReader(io.StringIO(text), delimiter="\t")), sorted(slides))
            return pa.Table.from_pylist(rows, LABELS_SCHEMA)
        if "\0" in text:
            raise csv.Error("it contains NUL")
        reader = csv.DictReader(io.StringIO(text), strict=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        rows = [{k.strip(): (v or "").strip() or None for k, v in row.items() if k} for row in reader]
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "give a CSV file with a slide_id column") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"is not a CSV file in UTF-8 ({error})", path, "save it as CSV (UTF-8)") from error
    if "slide_id" not in columns:
        raise InputError(
            "has no column slide_id", path, f"its first line must contain column names: {', '.join(COLUMNS)}"
        )
    if doubled := [name for name in COLUMNS if columns.count(name) > 1]:
        raise InputError(f"has the column {doubled[0]} more than once", path, "keep one of these columns")
    _check(path, rows)
    return pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], LABELS_SCHEMA)


def _check(path: Path, rows: list[dict[str, str | None]]) -> None:
    for line, row in enumerate(rows, start=2):
        if row.get("slide_id") is None:
            raise InputError(f"line {line} has no slide_id", path, "fill it in or remove the line")
        for column, allowed in ALLOWED_VALUES.items():
            value = row.get(column)
            if value is not None and value not in allowed:
                known = ", ".join(sorted(allowed))
                raise InputError(f"line {line}: {column} is {value!r}", path, f"use one of {known}, or leave it empty")
    first: dict[str | None, int] = {}
    for line, row in enumerate(rows, start=2):
        if (other := first.setdefault(row["slide_id"], line)) != line:
            raise InputError(f"lines {other} and {line} are of one slide", path, "keep one line per slide")


def _tcga(path: Path, rows: list[dict[str, str]], slides: list[str]) -> list[dict[str, str | None]]:
    """Labels of slides from the rows of patients, without the second and third header row."""
    missing = [name for name in TCGA.values() if rows and name not in rows[0]]
    if missing:
        raise InputError(f"has no column {missing[0]}", path, "use TCGA's clinical_patient table as it is published")
    labels = []
    patients = [row for row in rows if not row[TCGA_BARCODE].startswith(("bcr_", "CDE_ID"))]
    for line, row in enumerate(patients, start=4):
        values = {
            name: _tcga_value(path, line, column, (row[column] or "").strip(), name) for name, column in TCGA.items()
        }
        barcode = row[TCGA_BARCODE].strip()
        own = [name for name in slides if name.lower().startswith(barcode.lower())] if slides else [barcode]
        labels += [{"slide_id": slide_id, "patient_id": barcode, **values} for slide_id in own]
    doubled = [name for name, count in Counter(label["slide_id"] for label in labels).items() if count > 1]
    if doubled:
        raise InputError(f"the patient of {doubled[0]} has more than one line", path, "keep one line per patient")
    return labels


def _tcga_value(path: Path, line: int, column: str, text: str, name: str) -> str | None:
    """The label of a cell of TCGA's table; None if it counts as missing. Raises InputError for an unknown value."""
    if text in TCGA_UNKNOWN or not text:
        return None
    known = IHC_SCORES if name == "her2" else tuple(TCGA_SIGNS)
    if text not in known:
        allowed = ", ".join((*known, *sorted(TCGA_UNKNOWN)))
        raise InputError(f"line {line}: {column} is {text!r}", path, f"use one of {allowed}")
    return TCGA_SIGNS.get(text, text)


def store_labels(cohort: Cohort, path: Path, names: Pseudonymizer) -> dict[str, Row]:
    """Read a labels CSV and keep it in the cohort, with its names as `names` gives them; returns rows by slide_id.

    Raises InputError for unreadable labels, OSError when they can't be written. Call it under the lock only.
    """
    rows = [
        {
            **row,
            "slide_id": names.slide(row["slide_id"]) if names.key is not None else row["slide_id"],
            "patient_id": names.patient(row["patient_id"]),
            "site": names.site(row["site"]),
        }
        for row in read_labels(path).to_pylist()
    ]
    with atomic_write(cohort.labels) as part:
        write_parquet(pa.Table.from_pylist(rows, LABELS_SCHEMA), part)
    return {row["slide_id"]: row for row in rows}


def stored_labels(cohort: Cohort) -> dict[str, Row]:
    """The labels that an ingest was given last, by slide_id; empty without. Raises StoreError: damaged."""
    if not cohort.labels.exists():
        return {}
    try:
        return {row["slide_id"]: row for row in read_parquet(cohort.labels).to_pylist()}
    except pa.ArrowInvalid as error:
        raise StoreError("is damaged", cohort.labels, "give the labels again with --labels") from error


def check_labels(labels: pa.Table, rows: Slides, path: Path) -> None:
    """Check that labels fit the cohort.

    Raises InputError for slides that the cohort does not have, for a patient other than the cohort's, and for patients
    that are given for some slides only.
    """
    own = labels.to_pylist()
    unknown = sorted(row["slide_id"] for row in own if row["slide_id"] not in rows)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what = f"has labels of {', '.join(unknown[:3])}{more}, which the cohort does not contain"
        raise InputError(
            what, path, "ingest these slides, or remove their lines; slide_id is the file name without suffix"
        )
    for row in own:
        known = rows[row["slide_id"]]["patient_id"]
        if known is not None and row["patient_id"] is not None and known != row["patient_id"]:
            what = (
                f"slide {row['slide_id']} is of patient {row['patient_id']} here, but of patient {known} in the cohort"
            )
            raise InputError(what, path, "correct the patient here, or in the cohort by an ingest with --labels")
    given = [row["slide_id"] for row in own if row["patient_id"] is not None]
    if given and len(given) < len(own):
        lacking = next(row["slide_id"] for row in own if row["patient_id"] is None)
        what = f"slide {lacking} has no patient_id, but {len(given)} others have one"
        raise InputError(what, path, "fill in the column for every slide, or for none")


def label_slides(
    labels: pa.Table, task: str, rows: Slides, keep_contradictions: bool = False
) -> tuple[pa.Table, pa.Table]:
    """The slides of a task with their classes (LABELLED_SCHEMA), and the excluded slides (EXCLUDED_SCHEMA).

    rows: of the slides table.  A slide without patient_id counts as a patient of its own.
    Source: methods.md §1 (paper, tables 1–3; ASCO/CAP 2018, affirmed 2023).
    """
    labelled, excluded = [], []
    for row in sorted(labels.to_pylist(), key=lambda label: str(label["slide_id"])):
        slide_id = row["slide_id"]
        patient = row["patient_id"] or slide_id
        reason, words = _exclusion(task, row, rows.get(slide_id, {}), keep_contradictions)
        if reason is not None:
            excluded.append(
                {"slide_id": slide_id, "patient_id": patient, "task": task, "reason": reason, "words": words}
            )
            continue
        truth = _class(task, row)
        stratum = f"{row['her2']}/{row['ish'] or '?'}" if task in HER2_TASKS else truth
        label = CLASSES[task].index(str(truth))
        labelled.append(
            {"slide_id": slide_id, "patient_id": patient, "label": label, "truth": truth, "stratum": stratum}
        )
    return pa.Table.from_pylist(labelled, LABELLED_SCHEMA), pa.Table.from_pylist(excluded, EXCLUDED_SCHEMA)


def _class(task: str, row: Mapping[str, Any]) -> str | None:
    if task in HER2_TASKS:
        return her2_class(task, row["her2"], row["ish"])
    return {"+": "positive", "-": "negative"}[row[task]]


def _exclusion(
    task: str, row: Mapping[str, Any], slide: Mapping[str, Any], keep: bool
) -> tuple[str | None, str | None]:
    """Why a slide is excluded from a task, as a stable word and as a sentence; None, None if it is not."""
    name = row["slide_id"]
    stain = row["stain"] or slide.get("stain")
    if not task_applies(task, stain):
        known = f"{name} is stained for {stain}"
        unknown = f"the marker of {name} is not known; state it in the column stain of the labels"
        return "other-stain", unknown if stain in (None, "ihc") else known
    column = "her2" if task in HER2_TASKS else task
    if row[column] is None:
        return "no-label", f"{name} has no {column}"
    if slide.get("status") == "failed":
        return "failed", f"{name} failed in the ingest: {slide.get('error_code')}"
    if slide.get("n_tiles") == 0:
        return "no-tiles", f"{name} has no tissue"
    if task in HER2_TASKS and not keep and (row["her2"], row["ish"]) in CONTRADICTIONS:
        return "contradiction", f"{name} is {row['her2']} with ISH {row['ish']}"
    if _class(task, row) is None:
        return "needs-ish", f"{name} is 2+ without ISH"
    return None, None


CONTRADICTIONS: Final = frozenset({("0", "+"), ("1+", "+"), ("3+", "-")})
"""IHC and ISH results that can't both be right (methods.md §1)."""


def apply_reviews(labels: pa.Table, entries: Sequence[Row], rows: Slides) -> tuple[pa.Table, pa.Table]:
    """Labels in which the newest review of each slide replaces the label, and what became of each review.

    A review gives an IHC score, or ER or PR; `needs-ish` stands for 2+. ISH results are those of the labels.
    Returns the labels and a table `reviews` of a run; its column `words` states differences from the labels and from
    other reviewers.
    """
    table = {row["slide_id"]: row for row in labels.to_pylist()}
    with_patients = any(row["patient_id"] is not None for row in table.values())
    changes = []
    for (slide_id, column), entry in sorted(newest_reviews(entries).items()):
        patient = rows.get(slide_id, {}).get("patient_id")
        label = table.get(slide_id, dict.fromkeys(COLUMNS) | {"slide_id": slide_id, "patient_id": patient})
        was = label[column]
        now, words = _reviewed_label(entry, column, label), _other_reviews(entries, entry, column)
        if slide_id not in rows:
            words = ["the cohort does not contain it"]
        elif with_patients and label["patient_id"] is None:
            now, words = None, ["its patient is not known: add it to the labels"]
        else:
            table[slide_id] = label | {column: now}
        if now is None and slide_id in rows and not words:
            words = [f"{entry['label']} is not an IHC score"]
        if was is not None and was != now:
            words.insert(0, f"the label was {was}")
        changes.append(
            {"slide_id": slide_id, "column": column, "number": entry["number"], "was": was, "now": now,
             "words": "; ".join(words) or None}
        )  # fmt: skip
    reviewed = pa.Table.from_pylist([table[slide_id] for slide_id in sorted(table, key=str)], LABELS_SCHEMA)
    return reviewed, pa.Table.from_pylist(changes, run_schema("reviews"))


def _reviewed_label(entry: Row, column: str, label: Mapping[str, Any]) -> str | None:
    """The label after a review; None if its class stands for several IHC scores and is not the class of the label."""
    task, reviewed_class = entry["task"], entry["label"]
    if entry["verdict"] == "needs-ish":
        return "2+"
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
