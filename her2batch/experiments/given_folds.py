"""Folds that the user gives: by a file, slide or patient → fold, or by the sites of the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.settings import Training
from her2batch.store.label_sheets.cells import Grid, header_key
from her2batch.store.label_sheets.rows import strip_slide_suffix
from her2batch.store.label_sheets.text_file import read_text_grids
from her2batch.training.folds import assign_patients

Rows = Mapping[str, Mapping[str, Any]]

KEYS: Final = ("slide_id", "patient_id")
"""Columns of a file of folds that say whose the fold is; a file has one of them."""

INNER_PARTS: Final = 10
"""Parts of the slides outside a test fold, one of which validates."""

SHOWN: Final = 5
"""Slides or patients that a message names."""


def read_fold_file(path: Path) -> tuple[str, dict[str, str]]:
    """Read a file of folds: CSV with the column slide_id or patient_id, and the column fold.

    Returns the name of the key's column, and key → fold as text.  Raises InputError with the line: for a missing column
    or cell, and for a slide or patient with two folds.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "check the path of the file of folds") from error
    for grid in read_text_grids(path, data):
        texts = [header_key(cell.text) for cell in grid.rows[0].cells] if grid.rows else []
        keys = [name for name in KEYS if header_key(name) in texts]
        if keys and "fold" in texts:
            return keys[0], _fold_of_key(path, grid, texts.index(header_key(keys[0])), texts.index("fold"))
    what = "has no column fold beside slide_id or patient_id"
    raise InputError(what, path, "its first line must be slide_id,fold or patient_id,fold")


def _fold_of_key(path: Path, grid: Grid, key_at: int, fold_at: int) -> dict[str, str]:
    folds: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row in grid.rows[1:]:
        if row.is_blank:
            continue
        key, fold = row.cell(key_at).text.strip(), row.cell(fold_at).text.strip()
        if not key or not fold:
            raise InputError(
                f"line {row.line} has no {'fold' if key else 'key'}", path, "fill it in, or remove the line"
            )
        if folds.setdefault(key, fold) != fold:
            what = f"lines {lines[key]} and {row.line}: {key} is in the folds {folds[key]} and {fold}"
            raise InputError(what, path, "keep one of them: nobody may be in training and test")
        lines.setdefault(key, row.line)
    return folds


def with_given_folds(training: Training, path: Path | None, labels: pa.Table) -> Training:
    """Return the settings of a run with the number and names of the folds that a file or the sites give.

    labels: of the run.  Raises InputError for both at once, and for fewer than two folds.
    """
    if path is None and training.folds_by is None:
        return training
    if path is not None and training.folds_by is not None:
        raise InputError("folds are given by a file and by site", path, "omit --folds-file or --folds-by")
    if path is not None:
        names = sorted(set(read_fold_file(path)[1].values()), key=_natural)
    else:
        names = sorted({row["site"] for row in labels.to_pylist() if row["site"] is not None})
    if len(names) < 2:
        what = f"gives {len(names)} folds ({', '.join(names)}); a cross-validation needs two"
        raise InputError(what if path is not None else f"the column site of the labels {what}", path, "add others")
    return training.model_copy(update={"folds": len(names), "fold_names": tuple(names)})


def _natural(name: str) -> tuple[bool, int, str]:
    """Return the key that sorts names of folds: numbers by their value, before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def given_folds(training: Training, path: Path | None, labels: pa.Table, rows: Rows) -> dict[str, int] | None:
    """Return slide_id → number of its fold, for the slides that have one; None where no folds are given.

    rows: of the slides table.  Raises InputError for slides or patients of the file that the cohort and its labels do
    not have, and for a patient in two folds.
    """
    if training.fold_names is None:
        return None
    own = {row["slide_id"]: row for row in labels.to_pylist() if row["slide_id"] in rows}
    names = {slide_id: row["site"] for slide_id, row in own.items() if row["site"] is not None}
    if path is not None:
        names = _folds_of_file(path, own, rows)
    folds = {slide_id: training.fold_names.index(name) for slide_id, name in names.items()}
    _check_patients(path, folds, own, training.fold_names)
    return folds


def _folds_of_file(path: Path, labels: Rows, rows: Rows) -> dict[str, str]:
    """Return slide_id → name of its fold. Raises InputError naming what of the file is not known."""
    key, folds = read_fold_file(path)
    if key == "slide_id":
        found = {name if name in rows else strip_slide_suffix(name): fold for name, fold in folds.items()}
        _refuse_unknown(path, "slide", found.keys() - rows.keys())
        return found
    patients: dict[str, list[str]] = {}
    for slide_id, row in labels.items():
        patients.setdefault(row["patient_id"] or slide_id, []).append(slide_id)
    _refuse_unknown(path, "patient", folds.keys() - patients.keys())
    return {slide_id: fold for patient, fold in folds.items() for slide_id in patients[patient]}


def _refuse_unknown(path: Path, noun: str, unknown: Iterable[str]) -> None:
    if names := sorted(unknown):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        what = f"has folds of {', '.join(names[:SHOWN])}{more}, which are no {noun} of the cohort and its labels"
        raise InputError(what, path, "remove these lines, or correct them")


def _check_patients(path: Path | None, folds: Mapping[str, int], labels: Rows, names: tuple[str, ...]) -> None:
    """Refuse folds with a patient on two sides. Raises InputError naming patient, slides and folds."""
    first: dict[str, str] = {}
    for slide_id in sorted(folds):
        patient = labels.get(slide_id, {}).get("patient_id") or slide_id
        other = first.setdefault(patient, slide_id)
        if folds[other] != folds[slide_id]:
            places = f"{other} in {names[folds[other]]}, {slide_id} in {names[folds[slide_id]]}"
            what = f"patient {patient} is in two folds ({places}), and would be in training and test"
            raise InputError(what, path, "put all slides of a patient into one fold, for example with --folds-file")


def split_by_given(
    labelled: pa.Table, excluded: pa.Table, folds: Mapping[str, int], task: str, by_site: bool
) -> tuple[pa.Table, pa.Table]:
    """Return the labelled slides of a task that have a fold, and the excluded ones with those that have none."""
    has_fold = [slide_id in folds for slide_id in labelled["slide_id"].to_pylist()]
    reason, words = ("no-site", "has no site in the labels") if by_site else ("no-fold", "is not in the file of folds")
    without = [
        {"slide_id": row["slide_id"], "patient_id": row["patient_id"], "task": task, "reason": reason,
         "words": f"{row['slide_id']} {words}"}
        for row, has in zip(labelled.to_pylist(), has_fold, strict=True) if not has
    ]  # fmt: skip
    more = pa.Table.from_pylist(without, excluded.schema)
    return labelled.filter(pa.array(has_fold, pa.bool_())), pa.concat_tables([excluded, more])


def inner_parts(labelled: pa.Table, seed: int) -> NDArray[np.int32]:
    """Return a part of each labelled slide, (n,), by whole patients: where a fold is a site, one of them validates."""
    patients = labelled["patient_id"].to_pylist()
    return assign_patients(labelled["stratum"].to_pylist(), patients, min(INNER_PARTS, len(set(patients))), seed)
