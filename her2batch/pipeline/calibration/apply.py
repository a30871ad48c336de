"""Predict the slides of a cohort with a calibration: `ingest --calibration` and `score --calibration` alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.models.calibration.calibration_file import Calibration, measurement_plan, read_calibration
from her2batch.models.calibration.evidence import slide_digest
from her2batch.models.calibration.predictions import ABSTAINED, OUTSIDE, OUTSIDE_CAUSES, CalibratedPredictor
from her2batch.pipeline.calibration.fit_cohort import UNREADABLE, group_of, is_fitted
from her2batch.pipeline.calibration.read_evidence import read_evidence
from her2batch.settings import ALGORITHMS, Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.label_sheets.stored import stored_labels
from her2batch.tasks import as_task, is_calibration, task_applies


@dataclass
class CalibratedSlides:
    """What became of the slides.

    calibrated: predicted.  abstained, outside: of these, slides with that reason.  already: predicted before.
    failures: slide → why its tables could not be read.  causes: why slides are outside → their number.
    """

    id: str
    calibrated: int = 0
    abstained: int = 0
    outside: int = 0
    already: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


def load_calibration(path: Path, plan: Plan | None) -> Calibration:
    """Read a calibration and check that it fits a plan. plan: of the cohort, or of the ingest that begins.

    Raises InputError for a file that cannot be used, and for another version of the measurements or other settings.
    """
    calibration = read_calibration(path)
    if calibration.algorithms != ALGORITHMS:
        what = (
            f"was made with her2batch {calibration.her2batch}, whose measurements have version "
            f"{calibration.algorithms}; those of this version are {ALGORITHMS}"
        )
        raise InputError(what, path, "ingest the labelled slides again and run her2batch calibrate")
    if plan is not None and calibration.plan != measurement_plan(plan):
        what = (
            f"was made for slides of plan {calibration.plan}; this cohort's measurements are those of plan "
            f"{measurement_plan(plan)}, with other settings (such as mpp, tile or min_tissue)"
        )
        raise InputError(what, path, "calibrate with labelled slides that were ingested with the same settings")
    return calibration


def check_stain(calibration: Calibration, rows: Collection[Row], path: Path) -> None:
    """Refuse a calibration whose stains no finished slide has. Raises InputError. rows: of the slides table."""
    tasks = [as_task(task) for task in calibration.tasks]
    stains = sorted({str(row["stain"] or "unknown") for row in rows if row["status"] == "done"})
    if stains and not any(task_applies(task, row["stain"]) for task in tasks for row in rows):
        what = f"is for slides stained for {', '.join(calibration.stains)}; the cohort has {', '.join(stains)}"
        raise InputError(what, path, "name the calibration of this stain, or state the stain in the labels")


def apply_calibration(
    cohort: Cohort,
    calibration: Calibration,
    again: Collection[str] | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> CalibratedSlides:
    """Predict every finished slide of a cohort with a calibration, from its tables. Call it under the lock only.

    again: slides to predict again; None: all. Others that have predictions of this calibration are skipped.
    """
    found = CalibratedSlides(calibration.id)
    predictor, sites = CalibratedPredictor(calibration), {}
    if calibration.per == "site":
        sites = {slide_id: label["site"] for slide_id, label in stored_labels(cohort).items()}
    rows = [row for row in cohort.rows().values() if row["status"] == "done"]
    for count, row in enumerate(rows, start=1):
        if again is not None and row["slide_id"] not in again and f"predictions/{calibration.id}" in tables_of(row):
            found.already += 1
        else:
            _calibrate_slide(cohort, predictor, row, sites, found)
        report(count, len(rows))
    return found


def _calibrate_slide(
    cohort: Cohort, predictor: CalibratedPredictor, row: Row, sites: Mapping[str, str | None], found: CalibratedSlides
) -> None:
    """Write the predictions of one slide, and count what they are."""
    calibration = predictor.calibration
    try:
        group = group_of(row, sites, calibration.per) or calibration.group_of(slide_digest(row["slide_id"]))
        table = calibrate_slide(cohort, predictor, row, group)
        replaced = _replaced_tables(cohort, row, calibration.id, table)
    except UNREADABLE as error:
        found.failures[row["slide_id"]] = f"{row['slide_id']}: {error}; run her2batch verify, then ingest again"
        return
    cohort.add_tables(row, {f"predictions/{calibration.id}": table}, replaced)
    reasons = {reason for reasons in table["reasons"].to_pylist() for reason in reasons}
    found.calibrated += 1
    found.abstained += ABSTAINED in reasons
    found.outside += OUTSIDE in reasons
    for cause in OUTSIDE_CAUSES:
        if cause in reasons:
            found.causes[cause] = found.causes.get(cause, 0) + 1


def calibrate_slide(cohort: Cohort, predictor: CalibratedPredictor, row: Row, group: str | None) -> pa.Table:
    """Return the predictions table of one slide by a calibration. Raises OSError or pa.ArrowInvalid."""
    made: list[dict[str, Any]] = []
    wanted = frozenset(method.key[:3] for method in predictor.calibration.methods)
    for prediction, evidence in read_evidence(cohort, row, wanted):
        if is_fitted(evidence.source, prediction["task"]):
            made += predictor(prediction, evidence, group)
    schema = schemas.table_schema(f"predictions/{predictor.calibration.id}")
    keys = {"slide_id": row["slide_id"], "patient_id": row["patient_id"]}
    return pa.Table.from_pylist([{**dict.fromkeys(schema.names), **one, **keys} for one in made], schema)


def _replaced_tables(cohort: Cohort, row: Row, own: str, table: pa.Table) -> list[str]:
    """Return the slide's tables by other calibrations of the same tasks: one calibration counts, the last one given."""
    tasks, found = set(table["task"].to_pylist()), []
    for name in tables_of(row, "predictions"):
        source = name.partition("/")[2]
        if is_calibration(source) and source != own:
            others = set(cohort.read(name, row["slide_id"])["task"].to_pylist())
            if not others or others & tasks:
                found.append(name)
    return found
