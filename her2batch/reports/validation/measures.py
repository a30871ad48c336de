"""Measures of agreement of a validation, with exact intervals.

Positive and negative percent agreement are the terms of CLSI EP12 (third edition 2023) for a method that is compared
with another method, whose result is not the truth. EP12 is about results of two kinds; IHC scores are compared at each
cut-off of their scale.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from her2batch.reports.agreement.kappa import kappa_interval, without_false_certainty
from her2batch.reports.validation.comparison import NO_RESULT, Compared, Comparison
from her2batch.training.statistics import exact_interval

RESAMPLES = 2000
"""Bootstrap resamples of patients for the interval of kappa (methods.md §7)."""

IHC_CATEGORY = {"0": "negative", "1+": "negative", "2+": "equivocal", "3+": "positive"}
"""IHC score → its category (ASCO/CAP 2018, affirmed 2023)."""


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval.

    n: slides, or pairs of slides, that it is measured on.  agreed: those that agree; None for kappa.  patients: of
    these slides.  value, low, high: None where there is nothing to measure, or no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    patients: int
    agreed: int | None = None

    @property
    def as_json(self) -> dict[str, Any]:
        """The estimate as plain values."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "agreed": self.agreed,
                "patients": self.patients}  # fmt: skip


def exact_share(outcomes: Iterable[tuple[str, bool]]) -> Estimate:
    """Return the share of outcomes that agree with its exact interval (Clopper & Pearson 1934).

    outcomes: (patient, whether it agrees) of each slide or pair.  Slides of one patient are not independent: where
    patients have several, the interval is that of as many trials as there are patients (the smallest effective number,
    after Korn & Graubard 1998), which is wider.
    """
    pairs = list(outcomes)
    if not pairs:
        return Estimate(None, None, None, 0, 0, 0)
    patients = len({patient for patient, _ in pairs})
    agreed = sum(agrees for _, agrees in pairs)
    share = agreed / len(pairs)
    whole = agreed if patients == len(pairs) else share * patients
    low, high = exact_interval(whole, patients)
    return Estimate(share, low, high, len(pairs), patients, agreed)


@dataclass(frozen=True)
class Measures:
    """The measures of a comparison.  task, method and slides: those of `comparison`."""

    comparison: Comparison

    @property
    def _slides(self) -> Sequence[Compared]:
        return self.comparison.slides

    @property
    def agreement(self) -> Estimate:
        """Share of slides whose class is that of the label."""
        return exact_share((one.patient_id, one.predicted == one.truth) for one in self._slides)

    @property
    def category_agreement(self) -> Estimate:
        """Share of slides whose IHC category, negative, equivocal or positive, is that of the label."""
        return exact_share(
            (one.patient_id, IHC_CATEGORY[one.predicted] == IHC_CATEGORY[one.truth]) for one in self._slides
        )

    @property
    def unattended_agreement(self) -> Estimate:
        """Share of the slides that are not for review whose class is that of the label."""
        own = [one for one in self._slides if not one.prediction["review"]]
        return exact_share((one.patient_id, one.predicted == one.truth) for one in own)

    @property
    def results(self) -> Estimate:
        """Share of the labelled slides that have a result."""
        missing = [(row["patient_id"], False) for row in self.comparison.excluded if row["reason"] in LEFT_OUT]
        return exact_share([*((one.patient_id, True) for one in self._slides), *missing])

    def positive_agreement(self, cut: str) -> Estimate:
        """Share of the slides with a label of at least `cut` that the prediction confirms."""
        return self._at_cut(cut, positive=True)

    def negative_agreement(self, cut: str) -> Estimate:
        """Share of the slides with a label below `cut` that the prediction confirms."""
        return self._at_cut(cut, positive=False)

    def _at_cut(self, cut: str, positive: bool) -> Estimate:
        classes = self.comparison.classes
        above = set(classes[classes.index(cut) :])
        own = [one for one in self._slides if (one.truth in above) == positive]
        return exact_share((one.patient_id, (one.predicted in above) == positive) for one in own)

    def class_agreement(self, name: str) -> tuple[Estimate, Estimate]:
        """Return the positive and negative agreement of one class against all others."""
        own = [one for one in self._slides if one.truth == name]
        others = [one for one in self._slides if one.truth != name]
        return (
            exact_share((one.patient_id, one.predicted == name) for one in own),
            exact_share((one.patient_id, one.predicted != name) for one in others),
        )

    @cached_property
    def kappa(self) -> Estimate:
        """Quadratically weighted kappa (Cohen 1968); its interval is a bootstrap over patients."""
        found = kappa_interval(self.comparison.table, self.comparison.patients, RESAMPLES)
        shown = without_false_certainty(found)
        patients = len(set(self.comparison.patients.values()))
        return Estimate(shown["value"], shown["low"], shown["high"], len(self._slides), patients)

    @property
    def repeated_scans(self) -> Estimate:
        """Share of pairs of scans of one physical slide with the same class."""
        return exact_share((a.patient_id, a.predicted == b.predicted) for a, b in self.scan_pairs)

    @property
    def scan_pairs(self) -> list[tuple[Compared, Compared]]:
        """All pairs of scans of one physical slide."""
        return [pair for scans in self._scans().values() for pair in combinations(scans, 2)]

    @property
    def slides_of_patient(self) -> Estimate:
        """Share of pairs of slides of one patient with the same label that have the same class."""
        return exact_share((a.patient_id, a.predicted == b.predicted) for a, b in self.patient_pairs)

    @property
    def patient_pairs(self) -> list[tuple[Compared, Compared]]:
        """All pairs of physical slides of one patient with the same label; of a slide's scans the first."""
        by_patient: dict[tuple[str, str], list[Compared]] = defaultdict(list)
        for scans in self._scans().values():
            by_patient[scans[0].patient_id, scans[0].truth].append(scans[0])
        return [pair for slides in by_patient.values() for pair in combinations(slides, 2)]

    def _scans(self) -> dict[tuple[str, str], list[Compared]]:
        """Scans of each physical slide; two patients may have slides of one name."""
        scans: dict[tuple[str, str], list[Compared]] = defaultdict(list)
        for one in self._slides:
            scans[one.patient_id, one.physical_slide].append(one)
        return scans

    @property
    def score_sd(self) -> float | None:
        """Standard deviation of the continuous score between scans of one physical slide; None without such scans.

        Within-slide standard deviation of pairs: √(Σ d² / 2m) over m pairs (Dahlberg 1940).
        """
        squares = [
            (a.prediction["score"] - b.prediction["score"]) ** 2
            for a, b in self.scan_pairs
            if a.prediction["score"] is not None and b.prediction["score"] is not None
        ]
        return math.sqrt(sum(squares) / (2 * len(squares))) if squares else None

    def parts(self, by: str) -> dict[str, Measures]:
        """Return the measures of each site or scanner. by: `site` or `scanner`."""
        return self._parts[by]

    @cached_property
    def _parts(self) -> dict[str, dict[str, Measures]]:
        """Measures of each site and of each scanner, so that the bootstrap of each runs once."""
        return {by: self._divided(by) for by in ("site", "scanner")}

    def _divided(self, by: str) -> dict[str, Measures]:
        groups: dict[str, list[Compared]] = defaultdict(list)
        for one in self._slides:
            groups[getattr(one, by) or "not stated"].append(one)
        return {
            name: Measures(replace(self.comparison, slides=tuple(groups[name]), excluded=())) for name in sorted(groups)
        }


LEFT_OUT = (NO_RESULT, "failed", "no-tiles")
"""Reasons for which a labelled slide has no result."""
