"""Page of all nights with their counts and alarms: nights/index.html in the cohort. It names no slide or patient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from her2batch.files.atomic import atomic_write
from her2batch.nightly.summary import NightSummary
from her2batch.reports.theme import csp_for_file
from her2batch.store.cohort import Cohort

INDEX = "index.html"


def write_nights_index(cohort: Cohort) -> None:
    """Write the page anew from the summaries of the nights that are kept. Raises OSError."""
    with atomic_write(cohort.nights / INDEX) as part:
        part.write_text(render_nights_index(cohort.root.name, read_summaries(cohort)), encoding="utf-8")


def read_summaries(cohort: Cohort) -> list[dict[str, Any]]:
    """Return the summaries of the nights, the newest first, each with `has_report`.

    One that cannot be read has its name and `unreadable`.
    """
    summaries = []
    for folder in sorted((path for path in cohort.nights.iterdir() if path.is_dir()), reverse=True):
        try:
            stored = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            has_report = (folder / "report.html").is_file()
            summaries.append(
                {**NightSummary("", "").to_dict(), **stored, "night": folder.name, "has_report": has_report}
            )
        except (OSError, ValueError, TypeError):
            summaries.append({"night": folder.name, "unreadable": True})
    return summaries


def render_nights_index(name: str, summaries: list[dict[str, Any]]) -> str:
    """Return the HTML of the page. name: of the cohort.  summaries: as of `read_summaries`."""
    text = resources.files("her2batch.nightly").joinpath("templates/index.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    nights = [{**summary, "signs": alarm_words(summary)} for summary in summaries]
    return environment.from_string(text).render(policy=csp_for_file(), name=name, nights=nights)


def alarm_words(summary: Mapping[str, Any]) -> list[str]:
    """Return what a person has to know about a night before its counts, the most serious first."""
    if summary.get("unreadable"):
        return ["its summary cannot be read"]
    alarms = int(summary["alarms"])
    signs = {
        summary["reason"] or "ended with an error": summary["error"] is not None,
        "results held back": summary["held"],
        "counts do not add up": not summary["adds_up"] and summary["error"] is None,
        "stopped": summary["stopped"],
        f"{alarms} drift alarm" + ("s" if alarms != 1 else ""): alarms,
        "disk nearly full": summary["disk_low"],
    }
    return [sign for sign, is_set in signs.items() if is_set]
