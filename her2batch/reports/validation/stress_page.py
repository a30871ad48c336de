"""The report of a stress test: what shifts of scanner and staining do to a laboratory's slides. HTML and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from her2batch.files.atomic import atomic_write
from her2batch.pipeline.stress.rescoring import ShiftResult, StressedSlide
from her2batch.reports.figures import Figure, plot_bars
from her2batch.reports.report_data import assess_slides
from her2batch.reports.theme import render_html_page, render_template
from her2batch.store.cohort import Cohort
from her2batch.store.validation.fingerprint import package_versions


@dataclass(frozen=True)
class StressSummary:
    """The results of a stress test.

    rows: one for each slide and shift, with slide_id, shift, score, change, predicted, unchanged, flipped and
    for_review: whether the slide was for review before; cells, cells_score, cells_unchanged and cells_flipped: the same
    by the tumour cells.  shifts: one for each shift, over all slides.
    """

    slides: tuple[StressedSlide, ...]
    failures: Mapping[str, str]
    rows: list[dict[str, Any]]
    shifts: list[dict[str, Any]]

    @property
    def flips(self) -> int:
        """Number of slides and shifts with another class."""
        return sum(row["flipped"] for row in self.rows)

    @property
    def flips_for_review(self) -> int:
        """Of these, on slides that were for review before."""
        return sum(row["flipped"] and row["for_review"] for row in self.rows)

    @property
    def cell_flips(self) -> int:
        """Number of slides and shifts with another class by the cells."""
        return sum(row["cells_flipped"] for row in self.rows)

    @property
    def cell_flips_for_review(self) -> int:
        """Of these, on slides that were for review before."""
        return sum(row["cells_flipped"] and row["for_review"] for row in self.rows)

    @property
    def with_cells(self) -> bool:
        """Whether any slide was scored by its cells."""
        return any(slide.unchanged.cells is not None for slide in self.slides)

    @property
    def score_falls(self) -> list[tuple[str, str, str]]:
        """Slides whose score falls with more DAB, as (slide_id, weaker shift, stronger shift)."""
        return [(slide.slide_id, *pair) for slide in self.slides for pair in falls_with_dab(slide)]


def falls_with_dab(slide: StressedSlide) -> list[tuple[str, str]]:
    """Return the neighbouring strengths of DAB between which the score of a slide falls: (weaker, stronger)."""
    strength = {result.shift: dab_factor(result.shift) for result in slide.shifted}
    ladder: list[tuple[float, ShiftResult]] = [(1.0, slide.unchanged)]
    ladder += [(factor, result) for result in slide.shifted if (factor := strength[result.shift]) is not None]
    ladder.sort(key=lambda step: step[0])
    return [
        (weaker.shift, stronger.shift)
        for (_, weaker), (_, stronger) in pairwise(ladder)
        if stronger.score < weaker.score
    ]


def dab_factor(shift: str) -> float | None:
    """Return the factor of DAB of a shift by its name; None for other shifts."""
    kind, _, factor = shift.partition(" × ")
    return float(factor) if kind == "DAB" else None


def summarize_stress(cohort: Cohort, slides: Sequence[StressedSlide], failures: Mapping[str, str]) -> StressSummary:
    """Return the summary of tested slides. Whether a slide was for review before is that of its stored predictions."""
    rows_of_slides = cohort.rows()
    before = assess_slides(cohort, [rows_of_slides[slide.slide_id] for slide in slides], [])
    rows = [
        {
            "slide_id": slide.slide_id, "shift": result.shift, "score": result.score,
            "change": result.score - slide.unchanged.score, "predicted": result.predicted,
            "unchanged": slide.unchanged.predicted, "flipped": result.predicted != slide.unchanged.predicted,
            "for_review": before[slide.slide_id].review,
            "cells": result.cells, "cells_score": result.cells_score, "cells_unchanged": slide.unchanged.cells,
            "cells_flipped": result.cells != slide.unchanged.cells,
        }
        for slide in slides
        for result in slide.shifted
    ]  # fmt: skip
    return StressSummary(tuple(slides), dict(failures), rows, _by_shift(rows))


def _by_shift(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each shift, in order: mean and largest change of the score, flips, flips for review."""
    found = []
    for shift in dict.fromkeys(row["shift"] for row in rows):
        own = [row for row in rows if row["shift"] == shift]
        changes = [row["change"] for row in own]
        found.append(
            {"shift": shift, "mean_change": fmean(changes), "largest_change": max(changes, key=abs),
             "flips": sum(row["flipped"] for row in own),
             "flips_for_review": sum(row["flipped"] and row["for_review"] for row in own), "slides": len(own),
             "cell_flips": sum(row["cells_flipped"] for row in own),
             "cell_flips_for_review": sum(row["cells_flipped"] and row["for_review"] for row in own)}
        )  # fmt: skip
    return found


def write_stress_report(cohort: Cohort, summary: StressSummary, out: Path, seed: int) -> Path:
    """Write the report as HTML, and as JSON beside it; returns the path of the JSON file."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    figures = (_change_figure(summary),) if summary.shifts else ()
    body = render_template(
        "stress.html", name=cohort.root.name, summary=summary, created=created, figures=figures, seed=seed,
        versions=package_versions(),
    )  # fmt: skip
    html = render_html_page(f"{cohort.root.name} · stress test", Markup(body), {}, {})  # noqa: S704  (rendered above)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as part:
        part.write_text(html, encoding="utf-8")
    path = out.with_suffix(".json")
    with atomic_write(path) as part:
        content = {"created": created, "seed": seed, **stress_json(summary), "versions": package_versions()}
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def stress_json(summary: StressSummary) -> dict[str, Any]:
    """Return the summary as plain values."""
    slides = [
        {"slide_id": slide.slide_id, "tiles": slide.tiles, "n_tiles": slide.n_tiles,
         "score": slide.unchanged.score, "predicted": slide.unchanged.predicted,
         "cells_score": slide.unchanged.cells_score, "cells": slide.unchanged.cells}
        for slide in summary.slides
    ]  # fmt: skip
    falls = [list(fall) for fall in summary.score_falls]
    return {"slides": slides, "shifts": summary.shifts, "results": summary.rows, "flips": summary.flips,
            "flips_for_review": summary.flips_for_review, "cell_flips": summary.cell_flips,
            "cell_flips_for_review": summary.cell_flips_for_review, "score_falls_with_dab": falls,
            "failures": dict(summary.failures)}  # fmt: skip


def _change_figure(summary: StressSummary) -> Figure:
    """Draw the largest change of the score under each shift."""
    names = [row["shift"] for row in summary.shifts]
    table = pa.table({"name": names, "value": [round(abs(row["largest_change"]), 3) for row in summary.shifts]})
    title = "Largest change of the score"
    return Figure("stress-change", title, "membrane rule, score 0–3", plot_bars(title, table), table)
