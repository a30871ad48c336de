"""The lists a pathologist opens first: each a function from the cohort's material to rows that sort and filter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from her2batch.models.membrane_rule import NEAR, TEN_PERCENT, slide_shares
from her2batch.reports.report_data import ReportData, read_tables
from her2batch.reports.theme import ColumnKind, SortableTable
from her2batch.store.cohort import Row
from her2batch.tasks import CLASSES, HER2_TASKS, MEMBRANE_RULE

Columns = tuple[tuple[str, ColumnKind, str], ...]

FOUR: Final = "her2-4way"

SLIDE: Final[Columns] = (
    ("slide", "slide", "slides.slide_id"),
    ("patient", "text", "slides.patient_id"),
    ("site", "text", "labels.site"),
)
CALL: Final[Columns] = (
    ("method", "text", "predictions.method"),
    ("class", "class", "predictions.predicted"),
    ("could be", "words", "predictions.plausible"),
    ("score", "number", "predictions.score"),
    ("why", "words", "predictions.reasons"),
)
LABEL: Final[Columns] = (("label", "class", "labels.her2"), ("ISH", "text", "labels.ish"))

LADDER: Final = {"faint": "faint", "moderate_complete": "moderate, complete", "intense_complete": "intense, complete"}
"""Columns of the membrane table that the rule asks for."""


def equivocal(material: ReportData) -> SortableTable:
    """2+ by any method, without a known ISH."""
    rows = []
    for slide_id, one in _calls(material, (FOUR,)):
        if one["predicted"] == "2+" and _label(material, slide_id)[1] is None:
            rows.append([*_slide(material, slide_id), *_call(one), *_label(material, slide_id)])
    note = "Equivocal by at least one method, and no ISH among the labels: candidates for reflex ISH."
    return SortableTable("equivocal", "2+, for reflex ISH", note, SLIDE + CALL + LABEL, rows)


def second_look(material: ReportData) -> SortableTable:
    """0 against 1+: the line between none and low, where treatment now differs and readers agree least."""
    rows = []
    for slide_id, one in _calls(material, (FOUR,)):
        both = {"0", "1+"} <= set(one["plausible"] or ())
        if one["predicted"] in ("0", "1+") and (both or "ultralow" in (one["reasons"] or ())):
            rows.append([*_slide(material, slide_id), *_call(one), *_label(material, slide_id)])
    note = "Called 0 or 1+ where the other can't be ruled out, or ultralow: for a second look."
    return SortableTable("second-look", "0 against 1+", note, SLIDE + CALL + LABEL, rows)


def disagreement(material: ReportData) -> SortableTable:
    """Methods that say different classes of one slide."""
    names = sorted({method_name(one) for calls in material.calls.values() for one in calls}, key=rule_first)
    rows = []
    for slide_id in material.rows:
        for task in CLASSES:
            said = {method_name(one): one["predicted"] for one in material.said(slide_id, task)}
            if len(set(said.values())) > 1:
                rows.append([*_slide(material, slide_id), task, *(said.get(name) for name in names)])
    columns = (
        *SLIDE,
        ("task", "text", "predictions.task"),
        *((one, "class", "predictions.predicted") for one in names),
    )
    note = "Patch counts, thumbnail, MIL and the rule on the same slide, where they differ."
    return SortableTable("disagreement", "Methods disagree", note, columns, rows)


def near_threshold(material: ReportData) -> SortableTable:
    """A share of the membrane figures near 10 %: a few cells more would make another class."""
    found = [
        (material.rows[slide_id], one)
        for slide_id, one in _calls(material, (FOUR,))
        if one["method"] == MEMBRANE_RULE and "near-10-percent" in (one["reasons"] or ())
    ]
    tables = read_tables(material.cohort, [(row, "membrane") for row, _ in found])
    rows = []
    for (row, one), table in zip(found, tables, strict=True):
        shares: dict[str, float] = {}
        if table is not None and table.num_rows:
            shares = slide_shares({name: table[name].to_numpy() for name in table.column_names[2:]})
        given = [shares.get(name) for name in LADDER]
        rows.append([*_slide(material, row["slide_id"]), one["predicted"], one["score"], _nearest(given), *given])
    shown = tuple((words, "share", f"membrane.{name}, weighted by membrane.cells") for name, words in LADDER.items())
    columns = (*SLIDE, CALL[1], CALL[3], ("nearest", "share", "membrane"), *shown)
    note = f"A share of the cellular area within a factor of {NEAR:g} of the guideline's {TEN_PERCENT:.0%}."
    return SortableTable("near", f"Near {TEN_PERCENT:.0%}", note, columns, rows)


def unscorable(material: ReportData) -> SortableTable:
    """No score, or none to rely on, with the reason."""
    rows = []
    for slide_id, row in material.rows.items():
        why, what = _hindrance(material, row)
        if why is not None:
            rows.append([*_slide(material, slide_id), row["status"], why, what])
    columns = (*SLIDE, ("status", "text", "slides.status"), ("reason", "text", "slides.error_code, slides.flags, "
               "predictions.reasons"), ("what happened, and what to do", "text", "slides.error"))  # fmt: skip
    note = "Failed, without tissue, with too few cells, or of a marker that no method here reads."
    return SortableTable("unscorable", "Unscorable", note, columns, rows)


def side_by_side(material: ReportData) -> SortableTable:
    """All slides of each case that has more than one."""
    rows = []
    for case in material.cases:
        if len(case.slides) > 1:
            shown = [[row["slide_id"], _words(material, row)] for row in case.slides]
            highest = case.highest().get((FOUR, MEMBRANE_RULE))
            rows.append([case.name, len(shown), highest, shown, case.conflicts])
    rows.sort(key=lambda row: (not row[4], row[0]))
    columns = (
        ("case", "text", "slides.patient_id"),
        ("slides", "number", "slides"),
        ("highest", "class", "predictions"),
        ("side by side", "slides", "slides, predictions"),
        ("conflicts", "words", "slides, predictions"),
    )
    note = 'Cases with conflicts first. "Highest" is the highest class that the rule gave any slide, no diagnosis.'
    return SortableTable("cases", "Cases side by side", note, columns, rows)


def flagged(material: ReportData) -> SortableTable:
    """Slides with a quality flag."""
    rows = [
        [*_slide(material, row["slide_id"]), row["flags"], row["blur"], row["pen"], row["saturated"], row["background"]]
        for row in material.done
        if row["flags"]
    ]
    figures = (("blurred", "share", "slides.blur"), ("pen", "share", "slides.pen"),
               ("saturated", "share", "slides.saturated"), ("background", "number", "slides.background"))  # fmt: skip
    note = "What the scan itself says: look at the glass before you look at the score."
    return SortableTable(
        "flagged", "Flagged slides", note, (*SLIDE, ("flags", "words", "slides.flags"), *figures), rows
    )


def every(material: ReportData) -> SortableTable:
    """All slides, with what the rule says."""
    rows = []
    for slide_id, row in material.rows.items():
        rule = next((one for one in material.said(slide_id, FOUR) if one["method"] == MEMBRANE_RULE), {})
        said = [rule.get("predicted"), rule.get("score"), "yes" if rule.get("review") else None]
        facts = [row["tissue_mm2"], row["n_tiles"]]
        rows.append([*_slide(material, slide_id), row["stain"], row["status"], *said, *facts, row["flags"] or []])
    columns = (*SLIDE, ("stain", "text", "slides.stain"), ("status", "text", "slides.status"), CALL[1], CALL[3],
               ("review", "text", "predictions.review"), ("tissue mm²", "number", "slides.tissue_mm2"),
               ("tiles", "number", "slides.n_tiles"), ("flags", "words", "slides.flags"))  # fmt: skip
    return SortableTable(
        "all", "All slides", "Every slide of the cohort; class and score by the membrane rule.", columns, rows
    )


WORKLISTS: Final[tuple[Callable[[ReportData], SortableTable], ...]] = (
    equivocal,
    second_look,
    disagreement,
    near_threshold,
    unscorable,
    side_by_side,
)
"""In the order they are opened."""


def _calls(material: ReportData, tasks: Iterable[str]) -> Iterable[tuple[str, Row]]:
    for slide_id in material.rows:
        for task in tasks:
            for one in material.said(slide_id, task):
                yield slide_id, one


def _slide(material: ReportData, slide_id: str) -> list[Any]:
    return [slide_id, material.rows[slide_id]["patient_id"], material.site(slide_id)]


def _call(one: Row) -> list[Any]:
    return [method_name(one), one["predicted"], one["plausible"] or [], one["score"], one["reasons"] or []]


def _label(material: ReportData, slide_id: str) -> list[Any]:
    label = material.labels.get(slide_id, {})
    return [label.get("her2"), label.get("ish")]


def method_name(one: Row) -> str:
    """A method with its bundle; the rule is the rule."""
    return str(one["method"]) if one["method"] == MEMBRANE_RULE else f"{one['method']} {one['bundle'][:4]}"


def rule_first(name: str) -> tuple[bool, str]:
    """Order of method names."""
    return name != MEMBRANE_RULE, name


def _nearest(shares: Iterable[float | None]) -> float | None:
    given = [one for one in shares if one is not None]
    return min(given, key=lambda one: abs(np.log(max(one, 1e-4) / TEN_PERCENT)), default=None)


def _hindrance(material: ReportData, row: Row) -> tuple[str | None, str | None]:
    """Why a slide has no score to rely on, and what to do; None, None where it has one."""
    if row["status"] == "failed":
        return row["error_code"], row["error"]
    if not row["n_tiles"]:
        return "no-tissue", "no tissue was found: check that the glass was scanned in focus and in the right place"
    calls = material.calls.get(row["slide_id"], [])
    if not calls:
        return "no-method", f"nothing here reads slides stained for {row['stain']}: score with a bundle that does"
    if any("low-cellularity" in (one["reasons"] or ()) for one in calls if one["task"] in HER2_TASKS):
        return "low-cellularity", "hardly any cells among the tissue: look whether the tumour is on this slide"
    return None, None


def _words(material: ReportData, row: Row) -> str:
    """What to say of a slide under its picture."""
    if row["status"] == "failed":
        return str(row["error_code"])
    said = [f"{one['predicted']}" for one in material.said(row["slide_id"], FOUR) if one["method"] == MEMBRANE_RULE]
    return " · ".join([row["stain"] or "marker not known", *said])
