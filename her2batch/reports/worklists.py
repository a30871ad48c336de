"""The worklist of a report, the cases, and the flagged slides: each function returns one sortable table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from her2batch.assessment import Assessment
from her2batch.reasons import KINDS
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import ColumnKind, SortableTable
from her2batch.store.cohort import Row
from her2batch.task_names import stain_name, task_name
from her2batch.tasks import GUIDELINE_RULES, IHC_SCORES, MEMBRANE_RULE, is_calibration

TableColumns = tuple[tuple[str, ColumnKind, str], ...]

HER2_4WAY: Final = "her2-4way"

SLIDE_COLUMNS: Final[TableColumns] = (
    ("slide", "slide", "slides.slide_id"),
    ("patient", "text", "slides.patient_id"),
    ("site", "text", "labels.site"),
)

VERDICT_WORDS: Final = {"agree": "agreed: {label}", "change": "changed to {label}", "needs-ish": "needs ISH"}


def list_work(data: ReportData) -> SortableTable:
    """List every slide once, those for review first, by their weightiest reason, then the oldest."""
    last = datetime.max.replace(tzinfo=UTC)

    def rank(slide_id: str) -> Any:
        return (*data.assessments[slide_id].rank, data.finished.get(slide_id, last), slide_id)

    ordered = sorted(data.rows, key=rank)
    columns = (
        ("slide", "slide", "slides.slide_id"),
        ("result", "result", "predictions.predicted, reviews.label"),
        ("reasons for review", "reasons", "predictions.reasons, slides.flags"),
        ("case", "text", "slides.patient_id"),
        ("laboratory", "text", "labels.her2, ish, er, pr"),
        ("verdict", "text", "reviews"),
        ("age", "text", "runs.finished"),
        ("score", "number", "predictions.score"),
        ("site", "text", "labels.site"),
    )
    note = (
        "Every slide once. Those to review come first: by their weightiest reason, then by age. The class is the IHC "
        "score of the newest verdict, else of the membrane rule; 2+ without an ISH result is equivocal."
    )
    rows = [_work_cells(data, slide_id) for slide_id in ordered]
    return SortableTable("worklist", "Worklist", note, columns, rows, _work_filters(data, ordered))


def _work_cells(data: ReportData, slide_id: str) -> list[Any]:
    """Return the cells of a slide in the worklist."""
    found = data.assessments[slide_id]
    reasons = [[reason.words, reason.asks and found.review] for reason in found.reasons]
    if data.rows[slide_id]["error"]:
        reasons.append([data.rows[slide_id]["error"], False])
    return [
        slide_id, [found.result, found.meaning], reasons, data.rows[slide_id]["patient_id"], laboratory_text(found),
        verdict_text(found.verdict), age_text(data.finished.get(slide_id)),
        found.main["score"] if found.main is not None and not found.not_scorable else None, data.site_of(slide_id),
    ]  # fmt: skip


def _work_filters(data: ReportData, ordered: list[str]) -> tuple[tuple[str, list[int]], ...]:
    """Return the filters of the worklist, each with the positions of its slides; those without slides are left out."""
    found = [data.assessments[slide_id] for slide_id in ordered]
    wanted: list[tuple[str, Callable[[Assessment], bool]]] = [
        ("to review", lambda one: one.review),
        ("ISH needed", lambda one: one.needs_ish),
        *((name, _has_kind(kind)) for kind, name in KINDS.items() if kind != "ish"),
        ("0 against 1+", is_zero_against_one_plus),
        ("decided", lambda one: one.state == "decided"),
        ("marker not scored", lambda one: one.state == "other"),
    ]
    filters = ((name, [k for k, one in enumerate(found) if applies(one)]) for name, applies in wanted)
    return tuple((name, rows) for name, rows in filters if rows)


def _has_kind(kind: str) -> Callable[[Assessment], bool]:
    return lambda found: found.state != "other" and any(reason.kind == kind for reason in found.reasons)


def is_zero_against_one_plus(found: Assessment) -> bool:
    """Return whether a slide is 0 or 1+ and the other can't be excluded: treatment differs between the two."""
    if found.main is None or found.result not in ("0", "1+"):
        return False
    both = {"0", "1+"} <= set(found.main["plausible"] or ())
    return both or any(reason.code == "ultralow" for reason in found.reasons)


def laboratory_text(found: Assessment) -> str | None:
    """Return the laboratory's own results of a slide; None without."""
    ish = {"+": "ISH positive", "-": "ISH negative"}.get(found.ish or "")
    label = f"{found.label} ({found.label_detail})" if found.label and found.label_detail else found.label
    return ", ".join(part for part in (label, ish) if part) or None


def verdict_text(verdict: Any) -> str | None:
    """Return a verdict with its reviewer; None without."""
    if verdict is None:
        return None
    return f"{VERDICT_WORDS[verdict['verdict']].format(label=verdict['label'])}, {verdict['reviewer']}"


def age_text(finished: datetime | None, now: datetime | None = None) -> str | None:
    """Return the time since a slide was processed in hours, or in days from two days on: "< 1 h", "5 h", "3 d"."""
    if finished is None:
        return None
    hours = max(0, int(((now or datetime.now(UTC)) - finished).total_seconds() // 3600))
    if hours >= 48:
        return f"{hours // 24} d"
    return f"{hours} h" if hours else "< 1 h"


def distribution_text(assessments: list[Assessment]) -> str:
    """Return the classes of slides in one line, such as "17 HER2 slides: 7 × 0, …; 2 need ISH; 7 to review"."""
    her2 = Counter(one.result for one in assessments if one.derived and one.result in IHC_SCORES)
    others = Counter(
        task_name(one.task) if one.main and not one.main.get("classes", True) else f"{task_name(one.task)} {one.result}"
        for one in assessments
        if one.task is not None and one.result and not one.derived
    )
    not_scored = sum(one.state == "other" for one in assessments)
    parts = [f"{her2.total()} HER2 slide{'s' if her2.total() != 1 else ''} scored"]
    if her2:
        parts[0] += ": " + ", ".join(f"{her2[score]} × {score}" for score in IHC_SCORES if her2[score])
    if ish := sum(one.needs_ish for one in assessments):
        parts.append(f"{ish} need{'s' if ish == 1 else ''} ISH")
    if not_scorable := sum(one.not_scorable and one.result is None for one in assessments):
        parts.append(f"{not_scorable} not scorable")
    if others:
        parts.append(", ".join(f"{n} × {name}" for name, n in sorted(others.items())))
    if not_scored:
        parts.append(f"{not_scored} of markers that no method scores")
    open_slides = [one for one in assessments if one.review]
    failed = sum(any(reason.code == "failed" for reason in one.reasons) for one in open_slides)
    parts.append(f"{len(open_slides) - failed} to review")
    if failed:
        parts.append(f"{failed} failed")
    if decided := sum(one.state == "decided" for one in assessments):
        parts.append(f"{decided} decided")
    return "; ".join(parts)


def list_cases(data: ReportData) -> SortableTable:
    """List the cases that have more than one slide, with all their slides."""
    rows = []
    for case in data.cases:
        if len(case.slides) > 1:
            slides = [[row["slide_id"], _slide_caption(data, row)] for row in case.slides]
            highest = case.highest_classes().get((HER2_4WAY, MEMBRANE_RULE))
            rows.append([case.name, len(slides), highest, slides, case.conflicts])
    rows.sort(key=lambda row: (not row[4], row[0]))
    columns = (
        ("case", "text", "slides.patient_id"),
        ("slides", "number", "slides"),
        ("highest", "class", "predictions"),
        ("side by side", "slides", "slides, predictions"),
        ("conflicts", "words", "slides, predictions"),
    )
    note = (
        'Cases with conflicts come first. "Highest" is the highest class of any slide by the membrane rule. '
        "It is not a diagnosis."
    )
    return SortableTable("cases", "Cases side by side", note, columns, rows)


def list_flagged(data: ReportData) -> SortableTable:
    """List the slides that have a quality flag, with the quality measures."""
    measures = ("flags", "blur", "pen", "saturated", "background")
    rows = [
        [*_slide_cells(data, row["slide_id"]), *(row[name] for name in measures)]
        for row in data.done_rows
        if row["flags"]
    ]
    columns = (
        *SLIDE_COLUMNS,
        ("flags", "words", "slides.flags"),
        ("blurred", "share", "slides.blur"),
        ("pen", "share", "slides.pen"),
        ("saturated", "share", "slides.saturated"),
        ("background", "number", "slides.background"),
    )
    note = "Quality flags of the scan. Check the slide itself before you rely on its score."
    return SortableTable("flagged", "Flagged slides", note, columns, rows)


WORKLISTS: Final[tuple[Callable[[ReportData], SortableTable], ...]] = (list_work, list_cases)
"""The tables of the section, in their order."""


def _slide_cells(data: ReportData, slide_id: str) -> list[Any]:
    """Return the cells of SLIDE_COLUMNS."""
    return [slide_id, data.rows[slide_id]["patient_id"], data.site_of(slide_id)]


def method_label(prediction: Row) -> str:
    """Return the name of a method with the start of its bundle's id; the rules have their names alone."""
    method = str(prediction["method"])
    if is_calibration(prediction["bundle"]):
        return f"{method} calibrated"
    return method if method in GUIDELINE_RULES else f"{method} {prediction['bundle'][:4]}"


def method_sort_key(label: str) -> tuple[bool, bool, str]:
    """Return the key that sorts method labels: the membrane rule first, then the cells, then by name."""
    return label != MEMBRANE_RULE, label not in GUIDELINE_RULES, label


def _slide_caption(data: ReportData, row: Row) -> str:
    """Return the caption of a slide in a case: its stain and result, or the code of its failure."""
    if row["status"] == "failed":
        return str(row["error_code"])
    found = data.assessments[row["slide_id"]]
    if found.result is not None and not found.derived:
        return found.meaning
    result = [f"{found.result}: {found.meaning}" if found.meaning else found.result] if found.result else []
    return " · ".join([stain_name(row["stain"]), *result])
