"""The validation report: one self-contained HTML page, with a page of evidence for every discordant slide beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from markupsafe import Markup

from her2batch.models.guideline.steps import GuidelineStep
from her2batch.models.membrane_rule import guideline_steps, slide_shares
from her2batch.reports.agreement.curves import confusion_table
from her2batch.reports.agreement.readers import render_readers
from her2batch.reports.figures import Figure, plot_confusion, plot_intervals
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import render_html_page, render_template, thumbnail_uris
from her2batch.reports.validation.comparison import Compared
from her2batch.reports.validation.measures import Estimate, Measures
from her2batch.reports.validation.verdicts import Verdict, conclusion
from her2batch.store.cohort import Row, tables_of
from her2batch.store.pieces.patient_tiles import read_patient_tiles
from her2batch.training.readers.agreement import ReaderAgreement
from her2batch.vision.membrane import MEMBRANE_COLUMNS

THUMBNAIL_PX: Final = 240
"""Long edge of the thumbnail of a discordant slide, px."""

INTERVAL_SCHEMA: Final = pa.schema(
    [("name", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int32())]
)


@dataclass(frozen=True)
class ValidationFacts:
    """What the page shows besides the measures.

    registration: when the criteria were written down, as sentences; the first one says whether it was before the
    figures.  fingerprint: of `store.validation.fingerprint`.  labels: name and checksum of the label sheet.  created:
    time of the report.  readers: agreement of the readers of the labels.
    """

    title: str
    registration: tuple[str, ...]
    registered_before: bool
    fingerprint: Mapping[str, Any]
    labels: Mapping[str, Any]
    log_head: str
    created: str
    readers: tuple[ReaderAgreement, ...] = ()


@dataclass(frozen=True)
class DiscordantSlide:
    """A discordant slide with its evidence. steps: of the membrane rule; empty where there is no membrane table."""

    compared: Compared
    probability: float | None
    steps: list[GuidelineStep]


def render_validation_page(
    data: ReportData, measures: Measures, verdicts: Sequence[Verdict], facts: ValidationFacts
) -> tuple[str, tuple[Figure, ...]]:
    """Return the HTML of the report, and its figures.  data: its page_links are the pages of discordant slides."""
    comparison = measures.comparison
    discordant = [_with_evidence(data, one) for one in comparison.discordant]
    parts = {by: _part_rows(measures, by) for by in ("site", "scanner")}
    figures = (_confusion_figure(measures), *_part_figures(parts))
    body = render_template(
        "validation.html", name=data.cohort.root.name, facts=facts, choice=comparison.choice, measures=measures,
        verdicts=verdicts, conclusion=conclusion(verdicts), overall=_overall_rows(measures),
        cuts=_cut_rows(measures), classes=_class_rows(measures), parts=parts, figures=figures,
        discordant=discordant, thumbnails=thumbnail_uris(data.cohort, [one.slide_id for one in comparison.discordant],
                                                          THUMBNAIL_PX),
        links=data.page_links, excluded=comparison.excluded, scan_differences=_differences(measures.scan_pairs),
        patient_differences=_differences(measures.patient_pairs), scanner_source=comparison.scanner_source,
        reasons=Counter(row["reason"] for row in comparison.excluded),
        readers=render_readers(facts.readers, {}) if facts.readers else None,
    )  # fmt: skip
    return render_html_page(f"{data.cohort.root.name} · validation report", Markup(body), {}, {}), figures  # noqa: S704


def _overall_rows(measures: Measures) -> list[tuple[str, Estimate, bool]]:
    """Return (name, estimate, whether it is a share) of the measures over all classes."""
    rows = [("Agreement of classes", measures.agreement, True)]
    if measures.comparison.choice.task == "her2-4way":
        rows.append(("Agreement of IHC categories (negative, equivocal, positive)", measures.category_agreement, True))
    return [
        *rows,
        ("Agreement of slides that are not for review", measures.unattended_agreement, True),
        ("Quadratic weighted kappa", measures.kappa, False),
        ("Labelled slides with a result", measures.results, True),
    ]


def _cut_rows(measures: Measures) -> list[dict[str, Any]]:
    """Return the positive and negative agreement at each cut-off of the scale."""
    classes = measures.comparison.classes
    return [
        {
            "cut": cut if cut == classes[-1] else f"{cut} or higher",
            "positive": measures.positive_agreement(cut),
            "negative": measures.negative_agreement(cut),
        }
        for cut in classes[1:]
    ]


def _class_rows(measures: Measures) -> list[dict[str, Any]]:
    rows = []
    for name in measures.comparison.classes:
        positive, negative = measures.class_agreement(name)
        rows.append({"class": name, "positive": positive, "negative": negative})
    return rows


def _part_rows(measures: Measures, by: str) -> list[dict[str, Any]]:
    """Return the agreement at each site or scanner."""
    return [
        {"name": name, "agreement": own.agreement, "kappa": own.kappa, "positive": own.positive_agreement(cut),
         "negative": own.negative_agreement(cut)}
        for cut in [measures.comparison.classes[-1]]
        for name, own in measures.parts(by).items()
    ]  # fmt: skip


def _confusion_figure(measures: Measures) -> Figure:
    table = confusion_table(measures.comparison.table)
    choice = measures.comparison.choice
    title = f"Labels and predictions, {choice.task} by {choice.method}"
    source = f"predictions/{choice.folder}.predicted, the labels"
    return Figure("validation-confusion", "Labels and predictions", source, plot_confusion(title, table), table)


def _part_figures(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """Draw the agreement at each site and scanner, where there is more than one."""
    figures = []
    for by, rows in parts.items():
        if len(rows) < 2:
            continue
        values = [
            {"name": row["name"], "value": found.value, "low": found.low, "high": found.high, "n": found.n}
            for row in rows
            for found in [row["agreement"]]
        ]
        table = pa.Table.from_pylist(values, INTERVAL_SCHEMA)
        title = f"Agreement by {by}"
        source = f"predictions.predicted, the labels, {by}"
        figures.append(Figure(f"validation-{by}", title, source, plot_intervals(title, table), table))
    return figures


def _differences(pairs: Sequence[tuple[Compared, Compared]]) -> list[tuple[Compared, Compared]]:
    """Return the pairs whose classes differ."""
    return [(a, b) for a, b in pairs if a.predicted != b.predicted]


def _with_evidence(data: ReportData, one: Compared) -> DiscordantSlide:
    """Return a discordant slide with the probability of its class and the steps of the membrane rule."""
    classes, p = one.prediction["classes"], one.prediction["p"]
    probability = p[classes.index(one.predicted)] if one.predicted in classes else None
    return DiscordantSlide(one, probability, _rule_steps(data, data.rows[one.slide_id]))


def _rule_steps(data: ReportData, row: Row) -> list[GuidelineStep]:
    """Return the steps of the membrane rule on the patient's tissue; none where the table can't be read."""
    if "membrane" not in tables_of(row):
        return []
    try:
        table = read_patient_tiles(data.cohort, row["slide_id"], "membrane")
    except (OSError, pa.ArrowInvalid):
        return []
    if not table.num_rows:
        return []
    return guideline_steps(slide_shares({name: table[name].to_numpy() for name in MEMBRANE_COLUMNS}))
