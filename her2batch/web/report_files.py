"""The cohort report as the server shows it: `report.html` in the folder of the cohort, and the slide pages beside it.

A report that `her2batch report COHORT --out COHORT/report.html` wrote is linked from each slide, and links back to it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

from fastapi import Request, Response

from her2batch.errors import InputError
from her2batch.store.cohort import Cohort
from her2batch.web.catalog import Catalog

REPORT: Final = "report.html"

NIGHTS_INDEX: Final = "index.html"
"""Page of all nights in the cohort's folder `nights`, which every night writes anew."""

SLIDE_PAGES: Final = "report_slides"
"""Folder of the slide pages beside the report; see `reports.cohort_page.write_report`."""

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
"""The policy that a report states itself: no request, and only its own script, by its hash."""

HEAD_CHARACTERS: Final = 2000
"""Length of the start of a report in which its policy stands."""


def report_address(cohort: Cohort, slide_id: str) -> str | None:
    """Return the address of a slide in the report; None where the cohort's folder has no report, or it has no page."""
    if cohort.remote:
        return None
    if (cohort.root / SLIDE_PAGES / f"{slide_id}.html").is_file():
        return f"/{SLIDE_PAGES}/{quote(slide_id)}.html"
    return f"/{REPORT}#slide-{quote(slide_id)}" if has_report(cohort) else None


def has_report(cohort: Cohort) -> bool:
    """Return whether the folder of the cohort contains a report."""
    return not cohort.remote and (cohort.root / REPORT).is_file()


def serve_report(catalog: Catalog, request: Request) -> Response:
    """Serve the report, or the page of one slide of it.

    The slide id in the address is compared with those of the cohort before it becomes a path. Raises InputError.
    """
    slide_id, root = request.path_params.get("slide_id"), catalog.cohort.root
    if slide_id is None:
        return _serve_page(root / REPORT)
    return _serve_page(root / SLIDE_PAGES / f"{catalog.row(slide_id)['slide_id']}.html")


def has_nights(cohort: Cohort) -> bool:
    """Return whether the cohort has the page of all nights, nights/index.html."""
    return not cohort.remote and (cohort.nights / NIGHTS_INDEX).is_file()


def serve_night(catalog: Catalog, request: Request) -> Response:
    """Serve the page of all nights, or the report of one. Raises InputError for one that is not there.

    The name in the address is compared with those of the cohort's nights before it becomes a path.
    """
    nights, night = catalog.cohort.nights, request.path_params.get("night")
    if night is None:
        return _serve_page(nights / NIGHTS_INDEX)
    known = {path.name for path in nights.iterdir() if path.is_dir()} if nights.is_dir() else set()
    if night not in known:
        raise InputError("there is no such night", None, "see the list of nights")
    return _serve_page(nights / night / REPORT)


def _serve_page(path: Path) -> Response:
    """Return a page with the policy that it states, as a header. Raises InputError for one that is not there."""
    try:
        html = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            "there is no such page", None, "write it with her2batch report --out COHORT/report.html"
        ) from error
    policy = POLICY.search(html[:HEAD_CHARACTERS])
    stated = policy[1].replace("&#39;", "'") if policy is not None else "default-src 'none'"
    headers = {"content-security-policy": f"{stated}; frame-ancestors 'none'"}
    return Response(html, media_type="text/html", headers=headers)
