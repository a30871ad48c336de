"""The commands on calibrations as functions: make one from labelled slides, and use one on a cohort."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from her2batch.errors import InputError
from her2batch.files.locations import to_location
from her2batch.models.calibration.calibration_file import save_calibration
from her2batch.pipeline.calibration.apply import CalibratedSlides, apply_calibration, check_stain, load_calibration
from her2batch.pipeline.calibration.fit_cohort import FittedCalibration, Per, fit_calibration
from her2batch.store.cohort import Cohort
from her2batch.store.label_sheets.stored import stored_label_table
from her2batch.store.labels import read_labels


@dataclass(frozen=True)
class CalibrationRequest:
    """What the user asks for.

    labels: a label sheet; None: the labels given to the ingest.  columns: of the sheet, name → header.  per: fit each
    site or scanner by itself.
    """

    cohort: Path
    out: Path
    labels: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    per: Per | None = None
    coverage: float = 0.9


def calibrate_cohort(request: CalibrationRequest) -> FittedCalibration:
    """Fit a calibration to the labelled slides of a cohort and write it to request.out. Raises InputError, StoreError.

    The cohort is only read: it may be in use.
    """
    cohort = Cohort(to_location(request.cohort))
    cohort.check()
    if request.labels is not None:
        labels = read_labels(request.labels, cohort, request.columns)
    else:
        labels = stored_label_table(cohort)
        if not labels.num_rows:
            raise InputError("has no labels", cohort.root, "give a label sheet with --labels")
    found = fit_calibration(cohort, labels, request.per, request.coverage)
    try:
        save_calibration(found.calibration, request.out)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})", request.out, "choose another --out"
        ) from error
    return found


def check_calibration(root: Path, path: Path) -> None:
    """Check that a calibration fits a cohort before anything is computed. Raises InputError, StoreError."""
    load_calibration(path, Cohort(to_location(root)).plan())


def calibrate_slides(
    root: Path,
    path: Path,
    report: Callable[[int, int], None] = lambda *_: None,
    again: Collection[str] | None = None,
) -> CalibratedSlides:
    """Predict every finished slide of a cohort with a calibration. Raises InputError, StoreError.

    again: slides to predict again; None: all. Others that have predictions of this calibration are skipped.
    """
    cohort = Cohort(to_location(root))
    calibration = load_calibration(path, cohort.plan())
    with cohort.lock():
        cohort.update_row_cache()
        rows = [row for row in cohort.rows().values() if row["status"] == "done"]
        if not rows:
            raise InputError("holds no slide that is done", cohort.root, "ingest slides first")
        check_stain(calibration, rows, path)
        found = apply_calibration(cohort, calibration, again, report)
        cohort.update_row_cache()
    return found


def fitted_result(found: FittedCalibration, path: Path) -> dict[str, Any]:
    """Return the result of `calibrate` as plain values."""
    made = found.calibration
    methods = [
        {
            "source": method.source, "task": method.task, "method": method.method, "group": method.group,
            "slides": method.slides, "patients": method.patients, "too_few": method.too_few(made.coverage),
        }
        for method in made.methods
    ]  # fmt: skip
    return {
        "calibration": str(path), "id": made.id, "coverage": made.coverage, "per": made.per, "methods": methods,
        "notes": found.notes, "unreadable": found.unreadable,
    }  # fmt: skip
