"""Control trend: the scores of the controls of each run, as a Levey–Jennings chart with Westgard's rules.

Controls of one expected class are one series, and a run is one point, the mean of its controls. The limits are mean ± 2
and ± 3 standard deviations of the first BASELINE runs, or of all runs while there are fewer (Levey & Jennings 1950).
Rules: 1-3s, a point beyond 3 SD; 2-2s, two points in a row beyond 2 SD on one side (Westgard et al. 1981).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

from her2batch.reports.figures import FIGURE_WIDTH, Figure, SvgCanvas, standalone_svg
from her2batch.reports.report_data import ReportData, read_run_times, read_tables
from her2batch.reports.theme import SectionContent, SortableTable, data_uri, render_template
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.control_runs import has_failed

BASELINE: Final = 20
"""Number of runs that the limits are taken from; laboratories use at least 20."""

MIN_POINTS: Final = 5
"""Number of runs from which limits are drawn: the standard deviation of fewer says little."""

NOT_STATED: Final = "not stated"
"""Series of the controls without an expected class."""

HEIGHT: Final = 190
"""Height of a chart, px."""

SOURCE: Final = "pieces.score, pieces.expected, runs.finished"


@dataclass(frozen=True)
class ControlScore:
    """The score of one control tissue.  run, finished: of its slide; None where no run is known."""

    slide_id: str
    piece: int
    expected: str | None
    predicted: str
    score: float
    run: str | None
    finished: datetime | None

    @property
    def failed(self) -> bool:
        """Return whether the control did not score as expected."""
        return has_failed(self.expected, self.predicted)


@dataclass(frozen=True)
class TrendPoint:
    """The controls of one run with one expected class.

    finished: end of the last of their slides.  score: their mean.  n, failed: their number, and that of the failed
    ones.  mean, sd: of the baseline; None for fewer than MIN_POINTS runs.  rule: Westgard's rule that it breaks.
    """

    expected: str
    run: str
    finished: datetime
    n: int
    score: float
    failed: int
    mean: float | None = None
    sd: float | None = None
    rule: str | None = None

    @property
    def deviation(self) -> float | None:
        """Return the distance from the mean in standard deviations."""
        return (self.score - self.mean) / self.sd if self.mean is not None and self.sd else None


def read_control_scores(
    cohort: Cohort, rows: Iterable[Row], runs: Mapping[str, tuple[str, datetime]]
) -> list[ControlScore]:
    """Return the scores of all controls, in the order of the slides. Tables that can't be read are left out.

    runs: slide_id → its run and the time at which it was finished.
    """
    wanted = [(row, "pieces") for row in rows if row["status"] == "done" and row.get("control_mm2") is not None]
    found = []
    for (row, _), table in zip(wanted, read_tables(cohort, wanted), strict=True):
        run, finished = runs.get(row["slide_id"], (None, None))
        for piece in table.to_pylist() if table is not None else ():
            if piece["role"] == "control" and piece["predicted"] is not None:
                values = piece["piece"], piece["expected"], piece["predicted"], piece["score"]
                found.append(ControlScore(row["slide_id"], *values, run, finished))
    return found


def runs_of_slides(run_times: pa.Table) -> dict[str, tuple[str, datetime]]:
    """Return slide_id → its latest run and the time at which it was finished. run_times: of all runs, with `run`."""
    names = ("slide_id", "run", "finished")
    found: dict[str, tuple[str, datetime]] = {}
    for slide_id, run, finished in zip(*(run_times[name].to_pylist() for name in names), strict=True):
        if finished is not None and (slide_id not in found or finished > found[slide_id][1]):
            found[slide_id] = run, finished
    return found


def trend_points(scores: Iterable[ControlScore]) -> dict[str, list[TrendPoint]]:
    """Return the points of each series, in the order of time, with their limits and the rules that they break."""
    groups: dict[tuple[str, str], list[ControlScore]] = defaultdict(list)
    for one in scores:
        if one.run is not None and one.finished is not None:
            groups[one.expected or NOT_STATED, one.run].append(one)
    series: dict[str, list[TrendPoint]] = defaultdict(list)
    for (expected, run), own in groups.items():
        finished = max(one.finished for one in own if one.finished is not None)
        mean, failed = float(np.mean([one.score for one in own])), sum(one.failed for one in own)
        series[expected].append(TrendPoint(expected, run, finished, len(own), mean, failed))
    return {name: with_limits(sorted(series[name], key=lambda point: point.finished)) for name in sorted(series)}


def with_limits(points: Sequence[TrendPoint]) -> list[TrendPoint]:
    """Return the points of a series with mean and SD of its baseline, and Westgard's rules."""
    if len(points) < MIN_POINTS:
        return list(points)
    baseline = np.array([point.score for point in points[:BASELINE]], np.float64)
    mean, sd = float(baseline.mean()), round(float(baseline.std(ddof=1)), 9)
    found = [replace(point, mean=mean, sd=sd) for point in points]
    deviations = [point.deviation or 0.0 for point in found]
    for k, value in enumerate(deviations):
        previous = deviations[k - 1] if k else 0.0
        if abs(value) > 3:
            found[k] = replace(found[k], rule="1-3s")
        elif abs(value) > 2 and abs(previous) > 2 and value * previous > 0:
            found[k] = replace(found[k], rule="2-2s")
    return found


def plot_levey_jennings(title: str, points: Sequence[TrendPoint]) -> str:
    """Draw a series: points by run, the mean, and lines at ± 2 and ± 3 SD. Failed points and broken rules are red."""
    canvas, left, right, top, bottom = SvgCanvas(HEIGHT), 34.0, FIGURE_WIDTH - 44.0, 10.0, HEIGHT - 26.0
    values = [point.score for point in points]
    mean, sd = points[0].mean, points[0].sd
    limits = {k: mean + k * sd for k in (-3, -2, 0, 2, 3)} if mean is not None and sd is not None else {}
    low, high = min([*values, *limits.values()]), max([*values, *limits.values()])
    pad = max(0.05, 0.08 * (high - low))

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low + pad) / (high - low + 2 * pad)

    def x(k: int) -> float:
        return left + (right - left) * (k + 0.5) / len(points)

    for k, limit in limits.items():
        at = y(limit)
        canvas.line(((left, at), (right, at)), "bad" if abs(k) == 3 else "soft", dash="" if k == 0 else "4 3")
        if sd or k == 0:
            canvas.text(right + 4, at + 4, "mean" if k == 0 else f"{k:+d} SD", colour="soft")
    for value in (low, high):
        canvas.text(left - 6, y(value) + 4, f"{value:.2f}", "end", "soft")
    canvas.line([(x(k), y(value)) for k, value in enumerate(values)], "accent", 1.2)
    for k, point in enumerate(points):
        canvas.dot((x(k), y(point.score)), "bad" if point.failed or point.rule else "accent")
    for k in sorted({0, len(points) - 1}):
        canvas.text(x(k), HEIGHT - 8, f"{points[k].finished:%Y-%m-%d}", "start" if k == 0 else "end", "soft")
    words = "; ".join(f"{point.finished:%Y-%m-%d}: {point.score:.2f}" for point in points)
    return canvas.svg(title, words)


def trend_figures(series: Mapping[str, Sequence[TrendPoint]]) -> tuple[Figure, ...]:
    """Return one chart for each series."""
    figures = []
    for expected, points in series.items():
        name = f"controls-{expected.replace('+', 'plus').replace(' ', '-')}"
        title = f"Controls, expected {expected}" if expected != NOT_STATED else "Controls, class not stated"
        table = pa.Table.from_pylist(
            [
                {"run": one.run, "finished": one.finished, "score": one.score, "mean": one.mean, "sd": one.sd}
                for one in points
            ]
        )
        figures.append(Figure(name, title, SOURCE, plot_levey_jennings(title, points), table))
    return tuple(figures)


def list_points(series: Mapping[str, Sequence[TrendPoint]]) -> list[dict[str, Any]]:
    """Return the points of all series as rows, the newest first."""
    points = [point for own in series.values() for point in own]
    return [vars(one) | {"deviation": one.deviation} for one in sorted(points, key=_newest_first)]


def _newest_first(point: TrendPoint) -> tuple[float, str]:
    return -point.finished.timestamp(), point.expected


def _failed_first(one: ControlScore) -> tuple[bool, str, int]:
    return not one.failed, one.slide_id, one.piece


def controls_section(data: ReportData) -> SectionContent | None:
    """Show the trend of the controls, and every control tissue. None in a cohort without controls."""
    scores = read_control_scores(data.cohort, data.rows.values(), runs_of_slides(data.run_times))
    if not scores:
        return None
    series = trend_points(scores)
    figures = trend_figures(series)
    nights = SortableTable(
        "control-runs", "Controls of each run",
        f"Mean score of the controls of a run. Limits: the first {BASELINE} runs, or all while there are fewer; none "
        f"below {MIN_POINTS} runs. 1-3s: beyond 3 SD; 2-2s: twice in a row beyond 2 SD (Westgard).",
        (("run", "text", "runs.run"), ("finished", "text", "runs.finished"), ("expected", "class", "pieces.expected"),
         ("controls", "number", "pieces"), ("failed", "number", "pieces.predicted"),
         ("score", "number", "pieces.score"), ("SD from mean", "number", "pieces.score"),
         ("rule", "text", "pieces.score")),
        [[one["run"], f"{one['finished']:%Y-%m-%d %H:%M}", one["expected"], one["n"], one["failed"], one["score"],
          one["deviation"], one["rule"]] for one in list_points(series)],
    )  # fmt: skip
    tissues = SortableTable(
        "control-tissues", "Control tissues", "Every control, the failed ones first.",
        (("slide", "slide", "slides.slide_id"), ("piece", "number", "pieces.piece"),
         ("expected", "class", "pieces.expected"), ("scored", "class", "pieces.predicted"),
         ("score", "number", "pieces.score"), ("run", "text", "runs.run")),
        [[one.slide_id, one.piece, one.expected, one.predicted, one.score, one.run]
         for one in sorted(scores, key=_failed_first)],
    )  # fmt: skip
    html = render_template(
        "controls.html", figures=figures, tables=(nights, tissues), failed=any(one.failed for one in scores)
    )
    return SectionContent(html, figures, (nights, tissues))


@dataclass(frozen=True)
class NightControls:
    """The controls of a night.  scores: of its control tissues, the failed ones first.  charts: title and image URI."""

    scores: tuple[ControlScore, ...] = ()
    charts: tuple[tuple[str, str], ...] = ()

    @property
    def failed(self) -> int:
        """Return the number of controls that did not score as expected."""
        return sum(one.failed for one in self.scores)


def night_controls(cohort: Cohort, fresh: Iterable[str]) -> NightControls:
    """Return the controls of a night, and the trend of all nights. fresh: ids of the slides of the night."""
    rows = cohort.rows()
    if not any(row["control_mm2"] is not None for row in rows.values()):
        return NightControls()
    scores, own = read_control_scores(cohort, rows.values(), runs_of_slides(read_run_times(cohort))), set(fresh)
    tonight = sorted(
        (one for one in scores if one.slide_id in own), key=lambda one: (not one.failed, one.slide_id, one.piece)
    )
    charts = [
        (figure.title, data_uri("image/svg+xml", standalone_svg(figure.svg).encode()))
        for figure in trend_figures(trend_points(scores))
    ]
    return NightControls(tuple(tonight), tuple(charts))
