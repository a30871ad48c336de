"""Report section: coverage against error of calibrated predictions, what a review costs, and the review queue."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from her2batch.method_results import DERIVED_TASKS
from her2batch.reports.abstention.review_queue import applies, error_probability, queue_table, review_queue
from her2batch.reports.abstention.selective import (
    JudgedSlide,
    RiskCoverage,
    TradePoint,
    class_coverage,
    error_of,
    risk_coverage,
    trade_points,
)
from her2batch.reports.figures import Figure, unit_axes
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, render_template
from her2batch.store.cohort import Row
from her2batch.store.labels import LABELS_SCHEMA, label_slides
from her2batch.tasks import CLASSES, SCORE_TASKS, is_calibration


@dataclass(frozen=True)
class MethodTrade:
    """The labelled slides of one calibrated method and task, and what is shown of them.

    promised: coverage of each class that the calibration promises; None where it is not stored, or not the same for all
    slides.
    """

    task: str
    method: str
    promised: float | None
    slides: tuple[JudgedSlide, ...]
    points: tuple[TradePoint, ...]
    curve: RiskCoverage

    @property
    def with_ish(self) -> bool:
        """Return whether the classes are IHC scores, so that ISH tests follow."""
        return self.task in SCORE_TASKS


def abstention_section(data: ReportData) -> SectionContent | None:
    """Show what abstention and review gain and cost, and the review queue. None without calibrated predictions."""
    queue = review_queue(data)
    if not queue.slides:
        return None
    table = queue_table(data, queue)
    trades = method_trades(data)
    figures = tuple(trade_figure(one, f"risk-coverage-{k + 1}") for k, one in enumerate(trades))
    shown = [
        {"trade": one, "figures": (figure,), "sets": class_coverage(one.slides, CLASSES[one.task])}
        for one, figure in zip(trades, figures, strict=True)
    ]
    known = [one for one in queue.slides if one.label is not None]
    found = sum(one.label != one.predicted for one in queue.slides[: queue.length] if one.label is not None)
    html = render_template(
        "abstention.html", queue=queue, table=table, shown=shown, labelled=len(known),
        errors=sum(one.label != one.predicted for one in known), found=found,
    )  # fmt: skip
    return SectionContent(html, figures, (table,))


def method_trades(data: ReportData) -> list[MethodTrade]:
    """Return the trade of every calibrated method with labelled slides, for its own task.

    Tasks that follow from the IHC score are left out: their slides are those of the score.
    """
    found: dict[tuple[str, str], list[JudgedSlide]] = defaultdict(list)
    promised: dict[tuple[str, str], set[float | None]] = defaultdict(set)
    for task in CLASSES:
        if task in DERIVED_TASKS:
            continue
        labels = pa.Table.from_pylist(list(data.labels.values()), LABELS_SCHEMA)
        for label in label_slides(labels, task, data.rows)[0].to_pylist():
            rows = [row for row in data.predictions.get(label["slide_id"], ()) if row["task"] == task]
            for row in rows:
                if is_calibration(row["bundle"]) and row["predicted"] is not None:
                    found[task, row["method"]].append(_judged(row, rows, label))
                    promised[task, row["method"]] |= {row.get("coverage")} if applies(row) else set()
    return [
        MethodTrade(
            *key, next(iter(promised[key])) if len(promised[key]) == 1 else None, tuple(slides),
            tuple(trade_points(slides, data.review_budget)), curve_of(slides),
        )
        for key, slides in found.items()
    ]  # fmt: skip


def _judged(row: Row, rows: list[Row], label: dict[str, Any]) -> JudgedSlide:
    """Return a labelled slide. rows: all its predictions of the task."""
    before = [one["predicted"] for one in rows if one["method"] == row["method"] and not is_calibration(one["bundle"])]
    return JudgedSlide(
        label["slide_id"], label["patient_id"], label["truth"], row["predicted"], tuple(row["plausible"] or ()),
        error_probability(row), applies(row), before[0] if before else None,
    )  # fmt: skip


def curve_of(slides: list[JudgedSlide]) -> RiskCoverage:
    """Return the risk–coverage curve of labelled slides."""
    return risk_coverage(error_of(slides), np.array([one.wrong for one in slides], bool))


def trade_figure(trade: MethodTrade, name: str) -> Figure:
    """Draw the risk–coverage curve of a method, measured and as the probabilities expect it, and what the sets do."""
    curve, point = trade.curve, trade.points[-1]
    title = f"Risk and coverage: {trade.task} by {trade.method}"
    table = pa.table({"coverage": curve.coverage, "error": curve.risk, "expected": curve.expected})
    decided = point.others / point.slides
    return Figure(
        name, f"{title}, {point.slides} labelled slides", "predictions.p, plausible; the labels",
        plot_risk_coverage(title, curve, (decided, point.error)), table,
    )  # fmt: skip


def plot_risk_coverage(title: str, curve: RiskCoverage, operating: tuple[float, float | None]) -> str:
    """Draw the curve. operating: share of slides that the sets decide, and the error among them."""
    canvas, to_px = unit_axes(240, "share of slides decided without review", "share of errors among them")
    for values, colour, dash in ((curve.expected, "soft", "3 4"), (curve.risk, "accent", "")):
        points = list(zip(curve.coverage.tolist(), values.tolist(), strict=True))
        canvas.line([to_px(*point) for point in points], colour, 2.0, dash)
    share, error = operating
    if error is not None:
        canvas.dot(to_px(share, error), "bad")
    for y, colour, words in ((24, "accent", "measured"), (44, "soft", "expected"), (64, "bad", "sets")):
        canvas.rect((246, y, 11, 11), colour)
        canvas.text(262, y + 10, words)
    at = "no slide is decided" if error is None else f"the sets decide {share:.0%} with {error:.1%} errors"
    steps = (f"{x:.0%}: {y:.1%}" for x, y in _at_tenths(curve))
    return canvas.svg(title, f"error by share decided: {', '.join(steps)}; {at}")


def _at_tenths(curve: RiskCoverage) -> list[tuple[float, float]]:
    """Return (coverage, risk) of the curve at its first point in each fifth of the slides."""
    wanted = [int(np.searchsorted(curve.coverage, share - 1e-9)) for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    return [(float(curve.coverage[k]), float(curve.risk[k])) for k in dict.fromkeys(wanted)]
