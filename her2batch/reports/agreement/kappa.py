"""Quadratically weighted kappa of predictions with its interval, over all slides and at each site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from her2batch.reports.agreement.curves import RESAMPLES
from her2batch.reports.figures import Figure, plot_intervals
from her2batch.reports.report_data import ReportData
from her2batch.task_names import task_name
from her2batch.training.metrics import CELL, check_predictions, grouped_rows, kappa, nan_to_null
from her2batch.training.statistics import draw_resamples, patient_indices

INTERVAL_SCHEMA: Final = pa.schema(
    [("name", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int32())]
)


def without_false_certainty(metric: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metric without its interval where that has the width 0, with a note instead."""
    if metric["low"] is None or metric["low"] < metric["high"]:
        return dict(metric)
    return {**metric, "low": None, "high": None, "note": "too few for an interval"}


def kappa_interval(part: pa.Table, patients: Mapping[str, str], draws: int = RESAMPLES) -> dict[str, float | None]:
    """Return the quadratically weighted kappa of one task's predictions and its interval: value, low, high.

    The result equals that of `training.statistics.intervals`, which also computes the AUCs; on thousands of slides
    these cost a hundred times as much. A value that is undefined is None.
    """
    checked = check_predictions(part)
    n_classes = checked.p.shape[1]
    patient_of_row, n_patients = patient_indices(part, patients)
    pairs = np.zeros((n_patients, n_classes**2))
    np.add.at(pairs, (patient_of_row, checked.truth * n_classes + checked.predicted), 1)
    values = kappa((draw_resamples(n_patients, draws, 0) @ pairs).reshape(-1, n_classes, n_classes))
    defined = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else (None, None)
    return {"value": nan_to_null(float(values[0])), "low": low, "high": high}


def kappa_by_site(data: ReportData, predictions: pa.Table, patients: Mapping[str, str]) -> tuple[Figure, ...]:
    """Draw the agreement with the labels at each site: quadratically weighted kappa of each method and task."""
    sites = sorted({site for site in (data.site_of(slide_id) for slide_id in data.rows) if site is not None})
    figures: list[Figure] = []
    for keys, part in grouped_rows(predictions, CELL):
        site_of_row = pa.array([data.site_of(slide_id) for slide_id in part["slide_id"].to_pylist()], pa.string())
        parts = {site: part.filter(pc.equal(site_of_row, site)) for site in sites}
        rows = [
            {"name": site, **_figure_interval(kappa_interval(own, patients)), "n": own.num_rows}
            for site, own in parts.items()
            if own.num_rows
        ]
        if len(rows) < 2 or all(row["value"] is None for row in rows):
            continue
        name = f"{task_name(keys['task'])}, {keys['method']}"
        table = pa.Table.from_pylist(rows, INTERVAL_SCHEMA)
        svg = plot_intervals(f"Kappa by site: {name}", table)
        figures.append(Figure(f"kappa-{len(figures) + 1}", name, "predictions, labels.site", svg, table))
    return tuple(figures)


def _figure_interval(metric: Mapping[str, Any]) -> dict[str, Any]:
    """Return value, low and high of a metric; no interval where it would have the width 0."""
    found = without_false_certainty(metric)
    return {name: found[name] for name in ("value", "low", "high")}
