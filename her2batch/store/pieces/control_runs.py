"""Runs whose controls failed: no slide that was stained and scanned with a failed control can be trusted.

The run of a slide is the ingest (the night) that processed it last. A run that was killed or stopped, and the one that
goes on with it, are one. The tables of a slide are a function of the slide and the plan alone, so that what another
slide's control says is found here, when the tables are read, and never written into them. Each run's table of times
keeps that a control failed: a later ingest, or a control slide that is scanned again, does not make it undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from her2batch.files.parquet import read_parquet
from her2batch.store.cohort import Cohort, Row
from her2batch.store.run_log import log_entries

CONTROL_FAILED = "control-failed"
"""Flag of a slide whose control did not score as expected, or that belongs to the run of such a slide."""

CONTROL_COLUMNS = ("slide_id", "flags", "control_mm2")


def has_failed(expected: str | None, predicted: str | None) -> bool:
    """Return whether a control did not score as expected. Without a known class or a score it has not failed."""
    return expected is not None and predicted is not None and predicted != expected


def slides_of_failed_runs(cohort: Cohort) -> set[str]:
    """Return the ids of the slides of all runs with a failed control. Tables and logs that can't be read are left out.

    A cohort whose slides have no controls is answered from its rows alone.
    """
    rows = cohort.rows(CONTROL_COLUMNS)
    if not any(row["control_mm2"] is not None or CONTROL_FAILED in (row["flags"] or ()) for row in rows.values()):
        return set()
    failed_now = {slide_id for slide_id, row in rows.items() if CONTROL_FAILED in (row["flags"] or ())}
    run_of: dict[str, str] = {}
    failed_runs: set[str] = set()
    for run, slides in _slides_by_run(cohort).items():
        run_of |= dict.fromkeys(slides, run)
        if any(slides.values()):
            failed_runs.add(run)
    failed_runs |= {run_of[slide_id] for slide_id in failed_now if slide_id in run_of}
    return failed_now | {slide_id for slide_id, run in run_of.items() if run in failed_runs and slide_id in rows}


def flag_failed_runs(cohort: Cohort, rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return rows of slides, by slide_id, in which those of a run with a failed control have the flag for it."""
    failed = slides_of_failed_runs(cohort)
    return {slide_id: _flagged(row) if slide_id in failed else row for slide_id, row in rows.items()}


def _flagged(row: Row) -> Row:
    flags = list(row["flags"] or ())
    return row if CONTROL_FAILED in flags or row["status"] != "done" else {**row, "flags": [*flags, CONTROL_FAILED]}


def _slides_by_run(cohort: Cohort) -> dict[str, dict[str, bool]]:
    """Return run → its slides → whether their control had failed, in the order of the runs; a continued run is one."""
    logs = {path.stem: path for path in cohort.runs.glob("ingest-*.jsonl")}
    tables = {path.stem: path for path in cohort.runs.glob("ingest-*.parquet")}
    found: dict[str, dict[str, bool]] = {}
    continued: str | None = None
    for run in sorted(logs.keys() | tables.keys()):
        events = [event for _, event in log_entries(logs[run])] if run in logs else []
        slides = {
            str(event["slide_id"]): False for event in events if event["event"] == "slide" and "encoders" not in event
        }
        if run in tables:
            slides |= _read_times(tables[run])
        name = continued or run
        found.setdefault(name, {}).update(slides)
        continued = name if _was_interrupted(events) else None
    return found


def _read_times(path: Path) -> dict[str, bool]:
    """Return the slides of a run's table of times, and whether their control had failed."""
    try:
        table = read_parquet(path)
        failed = table["control_failed"].to_pylist() if "control_failed" in table.column_names else []
        ids = table["slide_id"].to_pylist()
    except (OSError, KeyError, pa.ArrowInvalid):
        return {}
    return dict(zip(ids, [bool(one) for one in failed] or [False] * len(ids), strict=True))


def _was_interrupted(events: list[dict[str, Any]]) -> bool:
    """Return whether a run has a log that lacks its end, or was stopped."""
    if not events:
        return False
    last = next((event for event in reversed(events) if event["event"] == "ended"), None)
    return last is None or bool(last.get("stopped")) or "error" in last
