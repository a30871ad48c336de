"""The cohort report: one HTML file with everything in it. A section is a function and a line in SECTIONS."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from her2batch.errors import REMEDIES
from her2batch.files.atomic import atomic_write
from her2batch.reports import agreement, slide_page, worklists
from her2batch.reports.figures import Figure, plot_bars, plot_shares
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.reports.theme import SectionContent, render_html_page, render_template, thumbnail_uris
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import TrainingRun
from her2batch.tasks import CLASSES, MEMBRANE_RULE

SMALL: Final = 20
"""Slides up to which each slide's evidence stands in the report itself."""

PICTURES: Final = 1000
"""Slides of lists that get a picture, those of the first lists first: about 3 kB each."""

SITES: Final = 12
"""Sites that get a bar of their own, the largest first."""


class Section(NamedTuple):
    """A part of the report. make: from the material to its part; None leaves it out."""

    name: str
    title: str
    make: Callable[[ReportData], SectionContent | None]


def summary(material: ReportData) -> SectionContent:
    """Counts, and the proof that nothing vanished."""
    done = material.done
    listed = [(one.name, one.title, len(one.rows)) for one in material.worklists]
    patients = {row["patient_id"] for row in material.rows.values()} - {None}
    facts = {
        "slides done": len(done),
        "patients": len(patients) or None,
        "mm² of tissue": round(material.status.tissue_mm2),
        "tiles": material.status.tiles,
    }
    bundles = sorted({one["bundle"] for calls in material.calls.values() for one in calls} - {MEMBRANE_RULE})
    plans = sorted({row["plan_id"] for row in material.rows.values() if row["plan_id"]})
    return SectionContent(
        render_template("summary.html", status=material.status, facts=facts, listed=listed, bundles=bundles, plans=plans,
               labelled=len(material.labels), run=material.run, notes=material.notes)
    )  # fmt: skip


def scores(material: ReportData) -> SectionContent | None:
    """How often each class was given: by task, method and site."""
    made = []
    for task, classes in CLASSES.items():
        said = [(one["slide_id"], worklists.method_name(one), one["predicted"]) for calls in material.calls.values()
                for one in calls if one["task"] == task]  # fmt: skip
        if not said:
            continue
        counts = Counter((method, predicted) for _, method, predicted in said)
        methods = sorted({method for _, method, _ in said}, key=worklists.rule_first)
        made.append(_shares(f"scores-{task}", task, methods, classes, counts, "predictions.predicted"))
        first = methods[0]
        where = Counter(material.site(slide_id) for slide_id, method, _ in said if method == first)
        if set(where) - {None}:
            sites = [str(one) for one, _ in where.most_common(SITES)]
            counts = Counter((str(material.site(one)), predicted) for one, method, predicted in said if method == first)
            title = f"{task} by site, {first}"
            made.append(_shares(f"sites-{task}", title, sites, classes, counts, "predictions.predicted, labels.site"))
    return SectionContent(render_template("scores.html", figures=made), tuple(made)) if made else None


def _shares(
    name: str, title: str, groups: list[str], classes: tuple[str, ...], counts: Counter[Any], source: str
) -> Figure:
    rows = [{"group": group, "class": one, "n": counts[group, one]} for group in groups for one in classes]
    table = pa.Table.from_pylist(rows)
    return Figure(name, title, source, plot_shares(title, table), table)


def priorities(material: ReportData) -> SectionContent:
    """The lists a pathologist opens first."""
    return SectionContent(render_template("lists.html", lists=material.worklists), lists=material.worklists)


def quality(material: ReportData) -> SectionContent:
    """What the scans themselves say."""
    counts = Counter(flag for row in material.done for flag in row["flags"])
    table = pa.table({"name": list(counts), "value": [float(one) for one in counts.values()]}).sort_by(
        [("value", "descending"), ("name", "ascending")]
    )
    title = "Slides with each flag"
    made = (Figure("flags", title, "slides.flags", plot_bars(title, table), table),) if counts else ()
    listed = worklists.flagged(material)
    return SectionContent(render_template("quality.html", figures=made, list=listed), made, (listed,))


def throughput(material: ReportData) -> SectionContent:
    """How long slides took, and what became of those that failed."""
    times, made = material.times, []
    stages: dict[str, list[float]] = defaultdict(list)
    for found in times["stages"].to_pylist():
        for name, seconds in found or ():
            stages[name].append(seconds)
    if stages:
        table = pa.table({"name": list(stages), "value": [sum(one) / times.num_rows for one in stages.values()]})
        title = "Seconds a slide, by stage"
        made.append(Figure("stages", title, "runs.stages", plot_bars(title, table, " s"), table))
    failed = Counter(row["error_code"] for row in material.status.failures)
    failures = [(code, n, REMEDIES.get(code, "")) for code, n in failed.most_common()]
    reasons = dict(sorted(material.status.reasons.items()))
    html = render_template("throughput.html", figures=made, runs=_runs(material), failures=failures, reasons=reasons)
    return SectionContent(html, tuple(made))


def _runs(material: ReportData) -> list[dict[str, Any]]:
    """One row a run, the latest first: slides, workers' seconds, tiles a worker's second, from first to last slide."""
    found = []
    for run in sorted(pc.unique(material.times["run"]).to_pylist(), reverse=True):
        part = material.times.filter(pc.equal(material.times["run"], run))
        seconds = part["seconds"].to_numpy()
        tiles = sum(material.rows.get(one, {}).get("n_tiles") or 0 for one in part["slide_id"].to_pylist())
        ended = part["finished"].to_numpy()
        span = float((ended.max() - ended.min()) / np.timedelta64(1, "s"))
        found.append(
            {"run": run, "slides": part.num_rows, "median": float(np.median(seconds)), "work": float(seconds.sum()),
             "span": span, "rate": tiles / float(seconds.sum()) if seconds.sum() else None,
             "hosts": len(set(part["host"].to_pylist()))}
        )  # fmt: skip
    return found


def slides(material: ReportData) -> SectionContent:
    """All slides; of a small cohort, with the evidence of each."""
    listed = worklists.every(material)
    inside = slide_page.sections(material) if len(material.rows) <= SMALL and material.pages else []
    return SectionContent(render_template("slides.html", list=listed, evidence=inside), lists=(listed,))


SECTIONS: Final = (
    Section("summary", "Summary", summary),
    Section("lists", "Look at these first", priorities),
    Section("scores", "Scores", scores),
    Section("labels", "Against the labels", agreement.against_labels),
    Section("run", "Training run", agreement.of_run),
    Section("quality", "Quality", quality),
    Section("throughput", "Throughput and failures", throughput),
    Section("slides", "Slides", slides),
)
"""The report, in order. A new section is a line here."""


@dataclass(frozen=True)
class Report:
    """What was written. slides: pages of slides in the folder beside it."""

    path: Path
    bytes: int
    slides: int
    figures: tuple[Figure, ...]


def with_worklists(material: ReportData) -> ReportData:
    """The material with its work lists."""
    return replace(material, worklists=tuple(make(material) for make in worklists.WORKLISTS))


def page(material: ReportData) -> tuple[str, tuple[Figure, ...]]:
    """The report's HTML, and its figures."""
    parts = [(one, made) for one in SECTIONS if (made := one.make(material)) is not None]
    name = material.cohort.root.name
    body = render_template("cohort.html", name=name, parts=[(one.name, one.title, made.html) for one, made in parts])
    shown = dict.fromkeys(slide_id for _, made in parts for one in made.lists for slide_id in one.slides)
    small = thumbnail_uris(material.cohort, list(shown)[:PICTURES])
    html = render_html_page(f"{name} · HER2 cohort report", body, small, material.pages)
    return html, tuple(figure for _, made in parts for figure in made.figures)


def write_report(cohort: Cohort, out: Path, run: TrainingRun | None = None, pages: int = 100) -> Report:
    """Make the report; beside it, for a cohort of more than SMALL slides, a folder of pages of slides.

    pages: at most so many slides get their evidence shown, those on work lists first.  Raises StoreError, InputError.
    """
    material = with_worklists(load_report_data(cohort, run))
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = _chosen(material, pages)
    if len(material.rows) <= SMALL:
        material = replace(material, pages={one: f"#slide-{one}" for one in chosen}, beside=out.parent)
        made = 0
    else:
        folder = out.with_name(f"{out.stem}_slides")
        material = replace(material, pages={one: f"{folder.name}/{one}.html" for one in chosen}, beside=folder)
        made = slide_page.write_pages(material, folder, f"../{out.name}")
    html, figures = page(material)
    with atomic_write(out) as part:
        part.write_text(html, encoding="utf-8")
    return Report(out, out.stat().st_size, made, figures)


def _chosen(material: ReportData, pages: int) -> list[str]:
    """Slides whose evidence is shown: those on work lists, then the others, as many as asked for."""
    listed = [slide_id for one in material.worklists for slide_id in one.slides]
    done = {row["slide_id"] for row in material.done if row["n_tiles"]}
    return [one for one in dict.fromkeys([*listed, *material.rows]) if one in done][:pages]
