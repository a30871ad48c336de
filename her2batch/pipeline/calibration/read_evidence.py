"""The evidence of a cohort's slides for a calibration, from their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from her2batch.models.calibration.evidence import (
    CELLS_EVIDENCE,
    COUNTERSTAIN,
    SlideEvidence,
    control_evidence,
    prediction_evidence,
    share_evidence,
)
from her2batch.pipeline.cells.scoring import TABLE as CELL_PREDICTIONS
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.pieces.patient_tiles import read_patient_tiles
from her2batch.tasks import MEMBRANE_RULE, as_task, is_calibration, task_applies
from her2batch.vision.membrane import MEMBRANE_COLUMNS, feature_index

STAIN_VECTORS = "embeddings/stain"
"""Features of tiles, among them the density of haematoxylin."""


def read_evidence(
    cohort: Cohort, row: Row, wanted: frozenset[tuple[str, str, str]] | None = None
) -> Iterator[tuple[Row, SlideEvidence]]:
    """Yield each uncalibrated prediction of ordered classes of a slide, with its evidence.

    row: of the slides table.  wanted: only these (source, task, method).  Raises OSError or pa.ArrowInvalid when a
    table cannot be read.
    """
    names = set(tables_of(row))

    @cache
    def further() -> dict[str, float]:
        return _further(cohort, row, names)

    @cache
    def measured() -> dict[str, float]:
        return _measured(cohort, row, names)

    for table_name in tables_of(row, "predictions"):
        source = table_name.partition("/")[2]
        if is_calibration(source):
            continue
        for prediction in cohort.read(table_name, row["slide_id"]).to_pylist():
            if wanted is not None and (source, prediction["task"], prediction["method"]) not in wanted:
                continue
            if is_calibratable(prediction, row):
                is_rule = source == MEMBRANE_RULE
                cells = _by_cells(cohort, row, names, prediction["task"]) if is_rule else {}
                more = further() if is_rule else {}
                yield prediction, prediction_evidence(prediction, source, row, more, measured(), cells)


def is_calibratable(prediction: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether a prediction has ordered classes, and its task is built in and applies to the slide."""
    if len(prediction["classes"] or ()) < 2:
        return False
    try:
        task = as_task(prediction["task"])
    except KeyError:
        return False  # of a task of the user's own, whose labels a calibration does not read
    return task.ordinal and task.classes == tuple(prediction["classes"]) and task_applies(task, row["stain"])


def _further(cohort: Cohort, row: Row, names: set[str]) -> dict[str, float]:
    """Return the further evidence for the membrane rule: other shares, the counterstain, and the slide's controls."""
    found: dict[str, float] = {}
    if "membrane" in names:
        table = read_patient_tiles(cohort, row["slide_id"], "membrane")
        found |= share_evidence({name: table.column(name).to_numpy() for name in MEMBRANE_COLUMNS})
    if "pieces" in names:
        found |= control_evidence(cohort.read("pieces", row["slide_id"]).to_pylist())
    counterstain = _measured(cohort, row, names)
    return found | {name: float(np.log(max(value, 1e-3))) for name, value in counterstain.items()}


def _by_cells(cohort: Cohort, row: Row, names: set[str], task: str) -> dict[str, list[float]]:
    """Return the probabilities of the task's classes by the cells; none where there are no cells or no score."""
    if CELL_PREDICTIONS not in names:
        return {}
    found = cohort.read(CELL_PREDICTIONS, row["slide_id"]).to_pylist()
    scored = next((one["p"] for one in found if one["task"] == task and one["predicted"] is not None), None)
    return {} if scored is None else {CELLS_EVIDENCE: scored}


def _measured(cohort: Cohort, row: Row, names: set[str]) -> dict[str, float]:
    """Return the measurements of a slide that are alike on all slides of a laboratory: the nuclear counterstain."""
    if STAIN_VECTORS not in names:
        return {}
    table = read_patient_tiles(cohort, row["slide_id"], STAIN_VECTORS)
    if not table.num_rows:
        return {}
    column = table.column("embedding").combine_chunks()
    values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return {COUNTERSTAIN: float(np.mean(values[:, feature_index("haematoxylin_p90")].astype(np.float64)))}
