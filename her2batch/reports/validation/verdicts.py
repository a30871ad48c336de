"""Verdicts of a validation: for each criterion whether it is met, not met, or has too few slides to decide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from her2batch.reports.theme import NBSP, format_number, format_percent
from her2batch.reports.validation.measures import Estimate, Measures
from her2batch.store.validation.criteria import Criteria, Criterion

MET, NOT_MET, TOO_FEW = "met", "not met", "too few slides"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one criterion.  part: the site or scanner that it is about; None: all slides."""

    criterion: Criterion
    part: str | None
    estimate: Estimate
    result: str

    @property
    def sentence(self) -> str:
        """The verdict as a sentence with its figures."""
        criterion, found = self.criterion, self.estimate
        unit = "pairs" if criterion.measure in ("repeated-scans", "slides-of-patient") else "slides"
        name = criterion.name if self.part is None else f"{criterion.name}, {criterion.each} {self.part}"
        asked = f"at least {show_value(criterion, criterion.at_least)}"
        if criterion.bound == "lower":
            asked = f"a lower limit of {asked}"
        counted = f"{found.n} {unit}"
        if found.value is None:
            return f"{name}: nothing to measure in {counted}; {asked} was asked: {self.result}."
        interval = ""
        if found.low is not None and found.high is not None:
            ends = f"{show_value(criterion, found.low)} to {show_value(criterion, found.high)}"
            interval = f" (95{NBSP}% interval {ends})"
        least = f", {criterion.least_slides} are needed" if self.result == TOO_FEW else ""
        value = show_value(criterion, found.value)
        return f"{name}: {value}{interval} of {counted}{least}; {asked} was asked: {self.result}."

    @property
    def as_json(self) -> dict[str, Any]:
        """The verdict as plain values."""
        own = self.criterion.model_dump(exclude_none=True)
        return {**own, "part": self.part, **self.estimate.as_json, "result": self.result, "sentence": self.sentence}


def show_value(criterion: Criterion, value: float) -> str:
    """Format a value of a criterion's measure: kappa as a number, shares in percent."""
    return format_number(value) if criterion.measure == "kappa" else format_percent(value)


def judge(criteria: Criteria, measures: Measures) -> list[Verdict]:
    """Return the verdict on every criterion, for each site or scanner where the criterion says so."""
    verdicts = []
    for criterion in criteria.criteria:
        parts: Iterable[tuple[str | None, Measures]] = [(None, measures)]
        if criterion.each is not None:
            parts = measures.parts(criterion.each).items()
        for part, own in parts:
            found = measure(criterion, own)
            verdicts.append(Verdict(criterion, part, found, _result(criterion, found)))
    return verdicts


def measure(criterion: Criterion, measures: Measures) -> Estimate:
    """Return the estimate that a criterion is about."""
    cut = criterion.of or measures.comparison.classes[-1]
    match criterion.measure:
        case "positive-agreement":
            return measures.positive_agreement(cut)
        case "negative-agreement":
            return measures.negative_agreement(cut)
        case "category-agreement":
            return measures.category_agreement
        case "kappa":
            return measures.kappa
        case "repeated-scans":
            return measures.repeated_scans
        case "slides-of-patient":
            return measures.slides_of_patient
        case "results":
            return measures.results
        case _:
            return measures.agreement


def _result(criterion: Criterion, found: Estimate) -> str:
    """Return the result. With too few slides a criterion is neither met nor missed, whatever the value."""
    value = found.low if criterion.bound == "lower" else found.value
    if found.n < criterion.least_slides or value is None:
        return TOO_FEW
    return MET if value >= criterion.at_least else NOT_MET


def conclusion(verdicts: Iterable[Verdict]) -> str:
    """Return the verdict on all criteria as a sentence."""
    results = [verdict.result for verdict in verdicts]
    n, missed, few = len(results), results.count(NOT_MET), results.count(TOO_FEW)
    if missed:
        return f"Not accepted: {missed} of {n} criteria not met" + (
            f", {few} undecided for too few slides." if few else "."
        )
    if few:
        others = "; the others are met" if few < n else ""
        return f"Not decided: {few} of {n} criteria have too few slides{others}."
    return f"Accepted: all {n} criteria are met."
