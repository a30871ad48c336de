"""Fit a calibration to the labelled slides of a cohort."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.models.calibration.calibration_file import CalibratedMethod, Calibration, measurement_plan
from her2batch.models.calibration.conformal import needed_patients
from her2batch.models.calibration.evidence import CELLS_EVIDENCE, scanner_name
from her2batch.models.calibration.fitting import LabelledEvidence, fit_method
from her2batch.pipeline.calibration.read_evidence import read_evidence
from her2batch.settings import ALGORITHMS
from her2batch.store.cohort import Cohort, Row
from her2batch.store.labels import label_slides
from her2batch.tasks import BUILTIN_TASKS, GUIDELINE_RULES, RULE_TASKS, as_task

Per = Literal["site", "scanner"]

UNREADABLE = (OSError, pa.ArrowInvalid)


@dataclass
class FittedCalibration:
    """A calibration, and what a person should know of it, in sentences. unreadable: slides whose tables are damaged."""

    calibration: Calibration
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def fit_calibration(
    cohort: Cohort, labels: pa.Table, per: Per | None = None, coverage: float = 0.9
) -> FittedCalibration:
    """Fit a calibration of every method with predictions in the cohort to its labelled slides.

    labels: of LABELS_SCHEMA, already matched to the cohort.  per: fit each site, or each scanner, by itself.
    Raises InputError when no slide can be used, with the reasons; and for a slide without a site.
    """
    rows = {slide_id: row for slide_id, row in cohort.rows().items() if row["status"] == "done"}
    sites = {label["slide_id"]: label["site"] for label in labels.to_pylist()}
    labelled, excluded = _labelled_tasks(labels, rows)
    collected: dict[tuple[str, str, str, str | None], list[LabelledEvidence]] = defaultdict(list)
    unreadable = []
    for slide_id in sorted({slide for slides in labelled.values() for slide in slides}):
        row = rows[slide_id]
        group = group_of(row, sites, per)
        if per == "site" and group is None:
            what = f"slide {slide_id} has no site, which --per site needs"
            raise InputError(what, None, "fill in the column site of the labels, or leave --per out")
        try:
            for prediction, evidence in read_evidence(cohort, row):
                if is_fitted(evidence.source, prediction["task"]) and slide_id in labelled[prediction["task"]]:
                    truth, patient = labelled[prediction["task"]][slide_id]
                    key = evidence.source, evidence.task, evidence.method, group
                    collected[key].append(LabelledEvidence(evidence, truth, patient))
        except UNREADABLE:
            unreadable.append(slide_id)
    if not collected:
        raise InputError(_why_none(excluded, unreadable), cohort.root, "see her2batch labels SHEET --cohort COHORT")
    methods = tuple(fit_method(_with_cells(collected[key]), key[3]) for key in sorted(collected, key=_order))
    stains = tuple(sorted({as_task(method.task).stains[0] for method in methods}))
    made = Calibration(
        her2batch=version("her2batch"), algorithms=ALGORITHMS, plan=measurement_plan(cohort.plan()), stains=stains,
        per=per, coverage=coverage, methods=methods,
    )  # fmt: skip
    left_out = [_left_out_words(method, len(collected[method.key]) - len(method.labelled)) for method in methods]
    return FittedCalibration(made, [*filter(None, left_out), *_notes(made)], unreadable)


def is_fitted(source: str, task: str) -> bool:
    """Return whether a task of a source is calibrated itself; further tasks of a rule follow from the IHC score."""
    return source not in GUIDELINE_RULES or task == RULE_TASKS[0]


def group_of(row: Row, sites: Mapping[str, str | None], per: str | None) -> str | None:
    """Return the group of a slide: its site by the labels, or its scanner by the slides table; None: all are one."""
    if per == "scanner":
        return scanner_name(row)
    return sites.get(row["slide_id"]) if per == "site" else None


def _order(key: tuple[str, str, str, str | None]) -> tuple[str, str, str, str]:
    return key[0], key[1], key[2], key[3] or ""


def _labelled_tasks(
    labels: pa.Table, rows: Mapping[str, Row]
) -> tuple[dict[str, dict[str, tuple[str, str]]], Counter[str]]:
    """Return task → slide → its class and patient, and how many slides were excluded from the IHC task, by reason."""
    found, reasons = {}, Counter[str]()
    for task in BUILTIN_TASKS:
        labelled, excluded = label_slides(labels, task, rows)
        found[task] = {one["slide_id"]: (one["truth"], one["patient_id"]) for one in labelled.to_pylist()}
        if task == RULE_TASKS[0]:
            reasons.update(excluded["words"].to_pylist())
    return found, reasons


def _why_none(excluded: Counter[str], unreadable: list[str]) -> str:
    examples = "; ".join(list(excluded)[:3])
    more = f"; the tables of {', '.join(unreadable[:3])} cannot be read" if unreadable else ""
    return f"has no labelled slide with a prediction to calibrate{': ' + examples if examples else ''}{more}"


def _notes(calibration: Calibration) -> list[str]:
    """Return which classes have too few patients for the coverage, one sentence for each method and group."""
    return [_too_few_words(method, calibration.coverage) for method in calibration.methods
            if method.too_few(calibration.coverage)]  # fmt: skip


def _with_cells(slides: list[LabelledEvidence]) -> list[LabelledEvidence]:
    """Return the slides whose cells have a score, if most have one; otherwise all.

    A slide without tumour cells has none, and would take this evidence from all others. Its class cannot be read.
    """
    found = [one for one in slides if CELLS_EVIDENCE in one.evidence.others]
    return found if 2 * len(found) > len(slides) else slides


def _left_out_words(method: CalibratedMethod, slides: int) -> str:
    """Return a sentence on labelled slides that the fit left out; empty without any."""
    if not slides:
        return ""
    where = f" of {method.group}" if method.group is not None else ""
    return (
        f"{method.method}, {method.task}{where}: {slides} of {slides + len(method.labelled)} labelled slides have no "
        "tumour cells and are not used"
    )


def _too_few_words(method: CalibratedMethod, coverage: float) -> str:
    counts = ", ".join(f"{name} has {method.patients[name]}" for name in method.too_few(coverage))
    where = f" of {method.group}" if method.group is not None else ""
    return (
        f"{method.method}, {method.task}{where}: a coverage of {coverage:g} needs labelled slides of "
        f"{needed_patients(coverage)} patients in every class; {counts}. Until then no class is excluded, and every "
        "slide is for review"
    )
