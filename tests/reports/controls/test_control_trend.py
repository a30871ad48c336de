"""Trend of controls over nights: points, limits, Westgard's rules, and what reports show of it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from her2batch.reports.controls.control_trend import (
    BASELINE,
    NOT_STATED,
    ControlScore,
    TrendPoint,
    controls_section,
    list_points,
    night_controls,
    plot_levey_jennings,
    trend_figures,
    trend_points,
    with_limits,
)
from her2batch.reports.night_page import render_night_page
from her2batch.reports.report_data import load_report_data
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import table_schema
from tests.reports.test_night_page import findings

START = datetime(2026, 6, 1, 22, tzinfo=UTC)


def control(
    night: int, score: float, expected: str | None = "3+", predicted: str = "3+", slide: str = ""
) -> ControlScore:
    run = f"ingest-{night:02d}"
    return ControlScore(slide or f"C{night}", 0, expected, predicted, score, run, START + timedelta(days=night))


def series(*scores: float) -> list[TrendPoint]:
    return with_limits(
        [TrendPoint("3+", f"r{k}", START + timedelta(days=k), 1, one, 0) for k, one in enumerate(scores)]
    )


def test_a_run_is_one_point_the_mean_of_its_controls_of_one_class() -> None:
    found = trend_points([control(1, 2.9), control(1, 2.7, slide="other"), control(2, 2.8), control(2, 0.1, "0", "0")])
    assert list(found) == ["0", "3+"]
    first, second = found["3+"]
    assert (first.n, first.score, second.score) == (2, pytest.approx(2.8), 2.8)
    assert trend_points([control(1, 2.9, None)]).keys() == {NOT_STATED}


def test_limits_are_those_of_the_first_twenty_runs() -> None:
    steady = [2.8 + 0.02 * (-1) ** k for k in range(BASELINE)]
    points = series(*steady, 2.0, 2.0)
    assert points[0].mean == pytest.approx(2.8)
    assert points[0].sd == pytest.approx(0.0205, abs=1e-3)
    assert [point.rule for point in points[-2:]] == ["1-3s", "1-3s"]
    assert {point.rule for point in points[:-2]} == {None}


def test_fewer_than_five_runs_have_no_limits() -> None:
    assert [(point.mean, point.deviation, point.rule) for point in series(2.8, 2.9, 2.7, 0.1)] == [
        (None, None, None)
    ] * 4


def test_two_in_a_row_beyond_two_sd_on_one_side_break_a_rule() -> None:
    steady = [2.8 + 0.02 * (-1) ** k for k in range(BASELINE)]
    assert [point.rule for point in series(*steady, 2.85, 2.85)[-2:]] == [None, "2-2s"]
    assert [point.rule for point in series(*steady, 2.85, 2.75)[-2:]] == [None, None]


def test_controls_without_deviation_have_no_rule() -> None:
    points = series(*[2.8] * 6)
    assert {(point.deviation, point.rule) for point in points} == {(None, None)}
    assert "SD" not in plot_levey_jennings("t", points)


def test_the_chart_has_limits_and_marks_what_failed() -> None:
    steady = [2.8 + 0.02 * (-1) ** k for k in range(BASELINE)]
    svg = plot_levey_jennings("Controls", series(*steady, 2.0))
    assert all(word in svg for word in ("mean", "+2 SD", "-3 SD", "2026-06-01"))
    assert svg.count('r="3.2" fill="var(--bad)"') == 1
    (figure,) = trend_figures({"3+": series(2.8, 2.7)})
    assert (figure.name, figure.table.num_rows) == ("controls-3plus", 2)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Two nights with a control each, the second of which failed."""
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    for night, (predicted, score) in enumerate((("3+", 2.9), ("1+", 1.1))):
        flags = ["control-slide", *(["control-failed"] if predicted != "3+" else [])]
        row = {"slide_id": f"C{night}", "status": "done", "stain": "her2", "flags": flags, "control_mm2": 1.0,
               "n_tiles": 9, "files": [], "plan_id": "p", "tissue_mm2": 1.0}  # fmt: skip
        write_row(made, row)
        values = {"slide_id": f"C{night}", "piece": 0, "role": "control", "expected": "3+", "predicted": predicted,
                  "score": score, "n_tiles": 9, "suspected": False}  # fmt: skip
        made.add_tables(row, {"pieces": pa.Table.from_pylist([values], table_schema("pieces"))})
        times = {
            "slide_id": f"C{night}",
            "finished": START + timedelta(days=night),
            "control_failed": predicted != "3+",
        }
        made.write_times(f"ingest-2026060{night}T220000.0Z", [times])
    return made


def test_the_report_lists_runs_newest_first_and_failed_controls_first(cohort: Cohort) -> None:
    section = controls_section(load_report_data(cohort))
    assert section is not None
    runs, tissues = section.tables
    assert [row[2:6] for row in runs.rows] == [["3+", 1, 1, pytest.approx(1.1)], ["3+", 1, 0, pytest.approx(2.9)]]
    assert [row[0] for row in tissues.rows] == ["C1", "C0"]
    assert "did not score as expected" in section.html
    assert len(list_points({})) == 0


def test_the_night_shows_its_own_controls_and_the_trend(cohort: Cohort) -> None:
    good, bad = night_controls(cohort, ["C0"]), night_controls(cohort, ["C1"])
    assert (good.failed, bad.failed) == (0, 1)
    page = render_night_page(findings(controls=bad))
    assert "1 control did not score as expected" in page
    assert "data:image/svg+xml" in page
    assert "All controls of this night" in render_night_page(findings(controls=good))


def test_a_cohort_without_controls_has_no_section(tmp_path: Path) -> None:
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    assert controls_section(load_report_data(made)) is None
    assert night_controls(made, []).scores == ()
