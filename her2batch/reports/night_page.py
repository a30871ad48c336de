"""The report of a night as one HTML file, without scripts and without external resources. All values are escaped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from her2batch.reports.theme import csp_for_file
from her2batch.reports.worklists import verdict_text
from her2batch.task_names import stain_name


def render_night_page(findings: Mapping[str, Any]) -> str:
    """Return the HTML of a night's report.

    findings: night (its counts), distribution, fresh, failures, deferred, review (rows and assessments), verdicts,
    cases, drift, sentinels, notes; see `nightly.overnight.NightFindings`.  The report of a night that is held back
    shows the reason and the counts, but no results.
    """
    return _template().render(policy=csp_for_file(), **findings)


def _template() -> jinja2.Template:
    text = resources.files("her2batch.reports").joinpath("templates/night.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["gigabytes"] = lambda size: "unknown" if size is None else f"{size / 1e9:,.2f} GB"
    environment.filters["verdict"] = verdict_text
    environment.filters["time"] = _format_duration
    environment.filters["clock"] = lambda text: text[:16].replace("T", " ")
    environment.filters["stain_name"] = stain_name
    return environment.from_string(text)


def _format_duration(seconds: float) -> str:
    """Format a duration in hours and minutes, or in seconds below two minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
