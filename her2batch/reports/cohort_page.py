"""The cohort report: one self-contained HTML file. A section is a function and a row of SECTIONS."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from her2batch.assessment import UNCALIBRATED_NOTE, is_uncalibrated
from her2batch.errors import REMEDIES
from her2batch.files.atomic import atomic_write
from her2batch.reports import slide_page, worklists
from her2batch.reports.abstention.abstention_section import abstention_section
from her2batch.reports.abstention.review_queue import review_queue
from her2batch.reports.agreement.readers import readers_section
from her2batch.reports.agreement.sections import label_agreement_section, training_run_section
from her2batch.reports.controls.control_trend import controls_section
from her2batch.reports.controls.tma_section import tma_section
from her2batch.reports.figures import Figure, plot_bars, plot_shares
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.reports.theme import SectionContent, render_html_page, render_template, thumbnail_uris
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import TrainingRun
from her2batch.task_names import task_name
from her2batch.tasks import CELL_RULE, GUIDELINE_RULES, IHC_SCORES, MEMBRANE_RULE

MAX_SLIDES_INLINE: Final = 20
"""Largest cohort whose report contains the evidence of each slide. Larger cohorts get a page for each slide."""

MAX_THUMBNAILS: Final = 1000
"""Slides that get a thumbnail in tables, those of the first tables first. A thumbnail takes about 3 kB."""

RULE_WORDS: Final = {MEMBRANE_RULE: "the membrane rule", CELL_RULE: "the rule on tumour cells"}
"""Rule → its name in a sentence."""

ISH_DECIDES: Final = "ISH decides"
"""Group of the slides that have no class in a task until there is an ISH result."""

MAX_SITES: Final = 12
"""Sites that get a bar of their own, the largest first."""


class Section(NamedTuple):
    """A section of the report. build: returns its content, or None to leave the section out."""

    name: str
    title: str
    build: Callable[[ReportData], SectionContent | None]


def summary_section(data: ReportData) -> SectionContent:
    """Show the counts, and that they add up to the number of files seen."""
    patients = {row["patient_id"] for row in data.rows.values()} - {None}
    facts = {
        "slides done": len(data.done_rows),
        "patients": len(patients) or None,
        "mm² of tissue": round(data.status.tissue_mm2),
        "tiles": data.status.tiles,
    }
    used = {row["bundle"] for rows in data.predictions.values() for row in rows}
    bundles = sorted(used - {*GUIDELINE_RULES})
    rules = " and ".join(words for name, words in RULE_WORDS.items() if name in used)
    plans = sorted({row["plan_id"] for row in data.rows.values() if row["plan_id"]})
    sites = Counter(site for slide_id in data.rows if (site := data.site_of(slide_id)) is not None)
    figures = _result_figure(data)
    uncalibrated = any(is_uncalibrated(rows) for rows in data.predictions.values())
    html = render_template(
        "summary.html", status=data.status, facts=facts, bundles=bundles, rules=rules, figures=figures, plans=plans,
        uncalibrated=UNCALIBRATED_NOTE if uncalibrated else None,
        labelled=len(data.labels), notes=data.notes, plan_words=_plan_words(data),
        distribution=worklists.distribution_text(list(data.assessments.values())),
        sites=", ".join(f"{site} ({n})" for site, n in sites.most_common(MAX_SITES)),
    )  # fmt: skip
    return SectionContent(html, figures)


def _plan_words(data: ReportData) -> str:
    """Return the plan of the cohort in words."""
    plan = data.cohort.plan()
    encoders = ", ".join(plan.encoders)
    return f"Tiles of {plan.tile} px at {plan.mpp:g} µm/px, encoder{'s' if len(plan.encoders) > 1 else ''} {encoders}."


def _result_figure(data: ReportData) -> tuple[Figure, ...]:
    """Draw the results of the HER2 slides as one bar. Nothing without results."""
    counts = Counter(("slides", one.result) for one in data.assessments.values() if one.derived and one.result)
    if not counts:
        return ()
    title = "IHC score of each HER2 slide"
    return (_shares_figure("results", title, ["slides"], IHC_SCORES, counts, "predictions.predicted, reviews.label"),)


def scores_section(data: ReportData) -> SectionContent | None:
    """Show the number of slides of each class, by task, method and site. None without predictions.

    Slides whose class hangs on ISH are counted as such, whatever a method prefers.
    """
    figures = []
    shown = [(slide_id, one) for slide_id, found in data.assessments.items() for one in found.methods]
    for task, own_classes in data.task_classes.items():
        predictions = [
            (slide_id, worklists.method_label(one._asdict()), one.predicted or ISH_DECIDES)
            for slide_id, one in shown if one.task == task
        ]  # fmt: skip
        classes = (*own_classes, *([ISH_DECIDES] if ISH_DECIDES in {name for *_, name in predictions} else []))
        if not predictions or not own_classes:
            continue
        counts = Counter((method, predicted) for _, method, predicted in predictions)
        methods = sorted({method for _, method, _ in predictions}, key=worklists.method_sort_key)
        figures.append(
            _shares_figure(f"scores-{task}", task_name(task), methods, classes, counts, "predictions.predicted")
        )
        first = methods[0]
        of_first = [
            (data.site_of(slide_id), predicted) for slide_id, method, predicted in predictions if method == first
        ]
        slides_of_site = Counter(site for site, _ in of_first)
        if set(slides_of_site) - {None}:
            sites = [str(site) for site, _ in slides_of_site.most_common(MAX_SITES)]
            counts = Counter((str(site), predicted) for site, predicted in of_first)
            source = "predictions.predicted, labels.site"
            title = f"{task_name(task)} by site, {first}"
            figures.append(_shares_figure(f"sites-{task}", title, sites, classes, counts, source))
    return SectionContent(render_template("scores.html", figures=figures), tuple(figures)) if figures else None


def _shares_figure(
    name: str, title: str, groups: list[str], classes: tuple[str, ...], counts: Counter[Any], source: str
) -> Figure:
    """Draw how many slides of each group have each class. counts: (group, class) → slides."""
    rows = [
        {"group": group, "class": predicted, "n": counts[group, predicted]} for group in groups for predicted in classes
    ]
    table = pa.Table.from_pylist(rows)
    return Figure(name, title, source, plot_shares(title, table), table)


def worklists_section(data: ReportData) -> SectionContent:
    """Show the work lists."""
    return SectionContent(render_template("worklists.html", tables=data.worklists), tables=data.worklists)


def quality_section(data: ReportData) -> SectionContent:
    """Show the quality flags and the slides that have them."""
    counts = Counter(flag for row in data.done_rows for flag in row["flags"])
    table = pa.table({"name": list(counts), "value": [float(count) for count in counts.values()]}).sort_by(
        [("value", "descending"), ("name", "ascending")]
    )
    title = "Slides with each flag"
    figures = (Figure("flags", title, "slides.flags", plot_bars(title, table), table),) if counts else ()
    flagged = worklists.list_flagged(data)
    return SectionContent(render_template("quality.html", figures=figures, table=flagged), figures, (flagged,))


def throughput_section(data: ReportData) -> SectionContent:
    """Show the processing times, and the failures with their remedies."""
    figures = []
    stages: dict[str, list[float]] = defaultdict(list)
    for times in data.run_times["stages"].to_pylist():
        for name, seconds in times or ():
            stages[name].append(seconds)
    if stages:
        means = [sum(seconds) / data.run_times.num_rows for seconds in stages.values()]
        table = pa.table({"name": list(stages), "value": means})
        title = "Seconds per slide, by stage"
        figures.append(Figure("stages", title, "runs.stages", plot_bars(title, table, " s"), table))
    failed = Counter(row["error_code"] for row in data.status.failures)
    failures = [(code, n, REMEDIES.get(code, "")) for code, n in failed.most_common()]
    reasons = dict(sorted(data.status.reasons.items()))
    html = render_template("throughput.html", figures=figures, runs=_run_rows(data), failures=failures, reasons=reasons)
    return SectionContent(html, tuple(figures))


def _run_rows(data: ReportData) -> list[dict[str, Any]]:
    """Return one row for each run, the latest first.

    Values: slides, median s per slide, work (s of all workers), span (s from the first to the last slide), rate (tiles
    per s of work), hosts.
    """
    rows = []
    for run in sorted(pc.unique(data.run_times["run"]).to_pylist(), reverse=True):
        part = data.run_times.filter(pc.equal(data.run_times["run"], run))
        seconds, finished = part["seconds"].to_numpy(), part["finished"].to_numpy()
        work = float(seconds.sum())
        tiles = sum(data.rows.get(slide_id, {}).get("n_tiles") or 0 for slide_id in part["slide_id"].to_pylist())
        rows.append(
            {"run": run, "slides": part.num_rows, "median": float(np.median(seconds)), "work": work,
             "span": float((finished.max() - finished.min()) / np.timedelta64(1, "s")),
             "rate": tiles / work if work else None, "hosts": len(set(part["host"].to_pylist()))}
        )  # fmt: skip
    return rows


def slides_section(data: ReportData) -> SectionContent:
    """Show the evidence of each slide of a small cohort; for a large one the pages of the slides are linked."""
    inline = len(data.rows) <= MAX_SLIDES_INLINE and data.page_links
    evidence = slide_page.render_evidence_sections(data) if inline else []
    return SectionContent(render_template("slides.html", evidence=evidence))


SECTIONS: Final = (
    Section("summary", "Summary", summary_section),
    Section("lists", "Worklist", worklists_section),
    Section("abstention", "Abstention and review", abstention_section),
    Section("scores", "Scores", scores_section),
    Section("labels", "Agreement with the labels", label_agreement_section),
    Section("readers", "Agreement of the readers", readers_section),
    Section("run", "Training run", training_run_section),
    Section("tma", "Tissue microarrays", tma_section),
    Section("controls", "Controls", controls_section),
    Section("quality", "Quality", quality_section),
    Section("throughput", "Throughput and failures", throughput_section),
    Section("slides", "Evidence", slides_section),
)
"""The sections of the report in their order. A new section is a row here."""


@dataclass(frozen=True)
class WrittenReport:
    """The files of a report. slides: number of slide pages in the folder beside it.

    review_queue: figures of the review queue; None without calibrated predictions.
    """

    path: Path
    bytes: int
    slides: int
    figures: tuple[Figure, ...]
    review_queue: dict[str, Any] | None = None


def add_worklists(data: ReportData) -> ReportData:
    """Return the data with its work lists."""
    return replace(data, worklists=tuple(list_slides(data) for list_slides in worklists.WORKLISTS))


def render_cohort_page(data: ReportData) -> tuple[str, tuple[Figure, ...]]:
    """Return the HTML of the report, and its figures."""
    sections = [(section, content) for section in SECTIONS if (content := section.build(data)) is not None]
    name = data.cohort.root.name
    body = render_template(
        "cohort.html",
        name=name,
        date=f"{datetime.now().astimezone():%-d %B %Y}",
        sections=[(section.name, section.title, content.html) for section, content in sections],
    )
    shown = dict.fromkeys(
        slide_id for _, content in sections for table in content.tables for slide_id in table.slide_ids
    )
    thumbnails = thumbnail_uris(data.cohort, list(shown)[:MAX_THUMBNAILS])
    html = render_html_page(f"{name} · HER2 cohort report", body, thumbnails, data.page_links)
    return html, tuple(figure for _, content in sections for figure in content.figures)


def write_report(
    cohort: Cohort, out: Path, run: TrainingRun | None = None, pages: int = 100, review_budget: float | None = None
) -> WrittenReport:
    """Write the report and, for a cohort of more than MAX_SLIDES_INLINE slides, a folder of slide pages beside it.

    pages: largest number of slides whose evidence is shown, those on work lists first.  review_budget: share of slides
    that people can look at, which cuts the review queue; it needs calibrated predictions.  Raises StoreError,
    InputError.
    """
    data = replace(add_worklists(load_report_data(cohort, run)), review_budget=review_budget)
    queue = review_queue(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    slide_ids = _select_slides(data, pages)
    if len(data.rows) <= MAX_SLIDES_INLINE:
        links = {slide_id: f"#slide-{slide_id}" for slide_id in slide_ids}
        data = replace(data, page_links=links, page_folder=out.parent)
        written = 0
    else:
        folder = out.with_name(f"{out.stem}_slides")
        links = {slide_id: f"{folder.name}/{slide_id}.html" for slide_id in slide_ids}
        data = replace(data, page_links=links, page_folder=folder)
        written = slide_page.write_slide_pages(data, folder, f"../{out.name}")
    html, figures = render_cohort_page(data)
    with atomic_write(out) as part:
        part.write_text(html, encoding="utf-8")
    return WrittenReport(out, out.stat().st_size, written, figures, queue.as_json if queue.slides else None)


def _select_slides(data: ReportData, pages: int) -> list[str]:
    """Return the slides whose evidence is shown, at most `pages`: those on work lists, then the others."""
    listed = [slide_id for table in data.worklists for slide_id in table.slide_ids]
    with_tiles = {row["slide_id"] for row in data.done_rows if row["n_tiles"]}
    return [slide_id for slide_id in dict.fromkeys([*listed, *data.rows]) if slide_id in with_tiles][:pages]
