"""A night as one HTML file: no script, nothing from outside, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from her2batch.reports.theme import for_file


def page(findings: Mapping[str, Any]) -> str:
    """The report.

    findings: night (its counts), fresh, failures, deferred, review (rows), cases, drift, sentinels, notes; see
    `night.overnight.Findings`.  A night that is held back shows why and its counts, and no result.
    """
    return _template().render(policy=for_file(), **findings)


def _template() -> jinja2.Template:
    text = resources.files("her2batch.reports").joinpath("templates/night.html").read_text()
    made = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    made.filters["gigabytes"] = lambda size: "unknown" if size is None else f"{size / 1e9:,.2f} GB"
    made.filters["time"] = _time
    made.filters["clock"] = lambda text: text[:16].replace("T", " ")
    return made.from_string(text)


def _time(seconds: float) -> str:
    """As hours and minutes; below two minutes, seconds."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
