"""What the lab knows of each slide: labels.csv, or TCGA's clinical table; and what follows for a task.

Nothing is settled silently: a slide whose labels contradict each other, or lack what a task needs, is left out with its
reason.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.reviews import label_column, newest_reviews, unerased_reviews
from her2batch.store.schemas import run_schema
from her2batch.tasks import CLASSES, HER2_TASKS, IHC_SCORES, STAINS, her2_class, task_applies

COLUMNS = ("slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain")
ALLOWED = {
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
"""Slides of a task. label: position in CLASSES[task].  stratum: the finest label, on which folds are balanced."""

EXCLUDED_SCHEMA = pa.schema([(name, pa.string()) for name in ("slide_id", "patient_id", "task", "reason", "words")])

BARCODE: Final = "bcr_patient_barcode"
"""First column of TCGA's clinical tables, which have a row a patient."""

TCGA: Final = {
    "her2": "her2_ihc_score",
    "ish": "her2_fish_status",
    "er": "er_status_by_ihc",
    "pr": "pr_status_by_ihc",
}

UNKNOWN: Final = frozenset(
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
"""TCGA's words that say nothing a task can use. Equivocal ISH counts as none: the guideline asks for another test."""

SIGNS: Final = {"Positive": "+", "Negative": "-"}

Slides = Mapping[str, Mapping[str, Any]]
"""slide_id → its row of the slides table."""


def read_labels(path: Path, slides: Iterable[str] = ()) -> pa.Table:
    """A labels CSV: slide_id, and any of patient_id, her2 (0 … 3+), ish, er, pr (+ or -), site, stain; gaps are null.

    Or TCGA's clinical table (TSV, three header rows), whose rows are patients: every slide of `slides` whose id begins
    with a barcode gets its labels; without slides, the barcode is the slide_id.  Raises InputError naming the file, the
    line and the remedy for a missing column, an unknown value, a doubled slide.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(BARCODE):
            rows = _tcga(path, list(csv.DictReader(io.StringIO(text), delimiter="\t")), sorted(slides))
            return pa.Table.from_pylist(rows, LABELS_SCHEMA)
        if "\0" in text:
            raise csv.Error("it holds NUL")
        reader = csv.DictReader(io.StringIO(text), strict=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        rows = [{k.strip(): (v or "").strip() or None for k, v in row.items() if k} for row in reader]
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "give a CSV file with a slide_id column") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"is no UTF-8 CSV ({error})", path, "save it as CSV (UTF-8)") from error
    if "slide_id" not in columns:
        raise InputError("has no column slide_id", path, f"its first line must name columns of {', '.join(COLUMNS)}")
    if doubled := [name for name in COLUMNS if columns.count(name) > 1]:
        raise InputError(f"has the column {doubled[0]} more than once", path, "keep one of them")
    _check(path, rows)
    return pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], LABELS_SCHEMA)


def _check(path: Path, rows: list[dict[str, str | None]]) -> None:
    for line, row in enumerate(rows, start=2):
        if row.get("slide_id") is None:
            raise InputError(f"line {line} has no slide_id", path, "fill it in or remove the line")
        for column, allowed in ALLOWED.items():
            value = row.get(column)
            if value is not None and value not in allowed:
                known = ", ".join(sorted(allowed))
                raise InputError(f"line {line}: {column} is {value!r}", path, f"use one of {known}, or leave it empty")
    first: dict[str | None, int] = {}
    for line, row in enumerate(rows, start=2):
        if (other := first.setdefault(row["slide_id"], line)) != line:
            raise InputError(f"lines {other} and {line} are of one slide", path, "keep one line a slide")


def _tcga(path: Path, rows: list[dict[str, str]], slides: list[str]) -> list[dict[str, str | None]]:
    """Rows of slides from rows of patients; the second and third header row are dropped."""
    missing = [name for name in TCGA.values() if rows and name not in rows[0]]
    if missing:
        raise InputError(f"has no column {missing[0]}", path, "take TCGA's clinical_patient table as it is published")
    found = []
    patients = [row for row in rows if not row[BARCODE].startswith(("bcr_", "CDE_ID"))]
    for line, row in enumerate(patients, start=4):
        values = {name: _word(path, line, column, (row[column] or "").strip(), name) for name, column in TCGA.items()}
        barcode = row[BARCODE].strip()
        own = [one for one in slides if one.lower().startswith(barcode.lower())] if slides else [barcode]
        found += [{"slide_id": one, "patient_id": barcode, **values} for one in own]
    doubled = [name for name, count in Counter(row["slide_id"] for row in found).items() if count > 1]
    if doubled:
        raise InputError(f"the patient of {doubled[0]} stands in it more than once", path, "keep one line a patient")
    return found


def _word(path: Path, line: int, column: str, word: str, name: str) -> str | None:
    if word in UNKNOWN or not word:
        return None
    known = IHC_SCORES if name == "her2" else tuple(SIGNS)
    if word not in known:
        allowed = ", ".join((*known, *sorted(UNKNOWN)))
        raise InputError(f"line {line}: {column} is {word!r}", path, f"use one of {allowed}")
    return SIGNS.get(word, word)


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
    """Refuse labels that don't fit the cohort: slides it does not have, other patients, patients half given.

    Raises InputError naming the first of them.
    """
    own = labels.to_pylist()
    strange = sorted(row["slide_id"] for row in own if row["slide_id"] not in rows)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        what = f"labels {', '.join(strange[:3])}{more}, which the cohort does not hold"
        raise InputError(what, path, "ingest those slides, or take their lines out; slide_id is the file's stem")
    for row in own:
        known = rows[row["slide_id"]]["patient_id"]
        if known is not None and row["patient_id"] is not None and known != row["patient_id"]:
            what = f"slide {row['slide_id']} is of patient {row['patient_id']}, in the cohort of {known}"
            raise InputError(what, path, "correct the patient, or ingest again with --labels")
    given = [row["slide_id"] for row in own if row["patient_id"] is not None]
    if given and len(given) < len(own):
        lacking = next(row["slide_id"] for row in own if row["patient_id"] is None)
        what = f"slide {lacking} has no patient_id, {len(given)} others have one"
        raise InputError(what, path, "fill the column for every slide, or for none")


def label_slides(
    labels: pa.Table, task: str, rows: Slides, keep_contradictions: bool = False
) -> tuple[pa.Table, pa.Table]:
    """A task's slides with their classes (LABELLED), and those left out of it with the reason (LEFT_OUT).

    Without any patient_id every slide counts as a patient of its own.  Source: methods.md §1 (paper, tables 1–3;
    ASCO/CAP 2018, affirmed 2023).
    """
    good, bad = [], []
    for row in sorted(labels.to_pylist(), key=lambda one: str(one["slide_id"])):
        slide_id = row["slide_id"]
        patient = row["patient_id"] or slide_id
        reason, words = _unfit(task, row, rows.get(slide_id, {}), keep_contradictions)
        if reason is not None:
            bad.append({"slide_id": slide_id, "patient_id": patient, "task": task, "reason": reason, "words": words})
            continue
        truth = _class(task, row)
        stratum = f"{row['her2']}/{row['ish'] or '?'}" if task in HER2_TASKS else truth
        label = CLASSES[task].index(str(truth))
        good.append({"slide_id": slide_id, "patient_id": patient, "label": label, "truth": truth, "stratum": stratum})
    return pa.Table.from_pylist(good, LABELLED_SCHEMA), pa.Table.from_pylist(bad, EXCLUDED_SCHEMA)


def _class(task: str, row: Mapping[str, Any]) -> str | None:
    if task in HER2_TASKS:
        return her2_class(task, row["her2"], row["ish"])
    return {"+": "positive", "-": "negative"}[row[task]]


def _unfit(task: str, row: Mapping[str, Any], slide: Mapping[str, Any], keep: bool) -> tuple[str | None, str | None]:
    """Why a slide is no example of a task, and in a sentence; None, None when it is one."""
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
        return "failed", f"{name} could not be ingested: {slide.get('error_code')}"
    if slide.get("n_tiles") == 0:
        return "no-tiles", f"{name} has no tissue"
    if task in HER2_TASKS and not keep and (row["her2"], row["ish"]) in CONTRADICTIONS:
        return "contradiction", f"{name} is {row['her2']} with ISH {row['ish']}"
    if _class(task, row) is None:
        return "needs-ish", f"{name} is 2+ without ISH"
    return None, None


CONTRADICTIONS: Final = frozenset({("0", "+"), ("1+", "+"), ("3+", "-")})
"""IHC and ISH that can't both be right (methods.md §1)."""


def apply_reviews(labels: pa.Table, entries: Sequence[Row], rows: Slides) -> tuple[pa.Table, pa.Table]:
    """Labels with the newest verdict of each slide laid over them, and what became of each verdict (REVIEWED).

    A verdict says an IHC score, or er and pr; `needs-ish` says 2+. An ISH result is the laboratory's: it stays.
    Nothing is settled silently: where the labels said otherwise, or another reviewer did, that stands in `words`.
    """
    table = {row["slide_id"]: row for row in labels.to_pylist()}
    with_patients = any(row["patient_id"] is not None for row in table.values())
    changes = []
    for (slide_id, column), entry in sorted(newest_reviews(entries).items()):
        patient = rows.get(slide_id, {}).get("patient_id")
        label = table.get(slide_id, dict.fromkeys(COLUMNS) | {"slide_id": slide_id, "patient_id": patient})
        was = label[column]
        now, words = _laid(entry, column, label), _differing(entries, entry, column)
        if slide_id not in rows:
            words = ["the cohort does not hold it"]
        elif with_patients and label["patient_id"] is None:
            now, words = None, ["its patient is not known: label it"]
        else:
            table[slide_id] = label | {column: now}
        if now is None and slide_id in rows and not words:
            words = [f"{entry['label']} names no IHC score"]
        if was is not None and was != now:
            words.insert(0, f"the labels said {was}")
        changes.append(
            {"slide_id": slide_id, "column": column, "number": entry["number"], "was": was, "now": now,
             "words": "; ".join(words) or None}
        )  # fmt: skip
    kept = pa.Table.from_pylist([table[one] for one in sorted(table, key=str)], LABELS_SCHEMA)
    return kept, pa.Table.from_pylist(changes, run_schema("reviews"))


def _laid(entry: Row, column: str, label: Mapping[str, Any]) -> str | None:
    """What a verdict makes of a label; None: a class that names no IHC score, and is not that of the label either."""
    task, said = entry["task"], entry["label"]
    if entry["verdict"] == "needs-ish":
        return "2+"
    if column != "her2":
        return {"positive": "+", "negative": "-"}[said]
    fitting = [one for one in IHC_SCORES if said in {her2_class(task, one, ish) for ish in "+-"}]
    if label["her2"] is not None and her2_class(task, label["her2"], label["ish"]) == said:
        return str(label["her2"])
    return fitting[0] if len(fitting) == 1 else None


def _differing(entries: Sequence[Row], entry: Row, column: str) -> list[str]:
    """Other reviewers' newest verdicts on the same, where they are not this one's."""
    same = [
        one
        for one in unerased_reviews(entries)
        if (one["slide_id"], label_column(one["task"])) == (entry["slide_id"], column)
    ]
    last = {one["reviewer"]: one for one in same}
    others = [one for one in last.values() if (one["task"], one["label"]) != (entry["task"], entry["label"])]
    return [f"review {one['number']} said {one['label'] or one['verdict']} ({one['task']})" for one in others]
