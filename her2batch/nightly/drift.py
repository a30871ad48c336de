"""Drift: compare a night's slides with those of the preceding weeks, per scanner or site.

Each measure of the slides is compared by ranks (Mann–Whitney), the mix of classes by a chi-squared test. A night makes
many comparisons, so the significance level of each is divided by their number (Bonferroni). With the default of three
standard errors, one night in 370 without drift gives an alarm for a measure, and one in a hundred for the mix. Slides
of one patient count as independent, so nights of few patients give alarms more often.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from scipy import stats

from her2batch.assessment import WITHOUT_PATIENT
from her2batch.errors import InputError
from her2batch.files.parquet import read_parquet
from her2batch.job_settings import DriftSettings
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.patient_tiles import read_patient_tiles
from her2batch.tasks import CLASSES, MEMBRANE_RULE

CLASS_MIX = "score mix"
TASK = "her2-3way"

MEASURES = {
    "dab": "mean optical density of DAB in tissue",
    "cells": "share of tissue among nuclei or membranes",
    "score": "continuous HER2 score",
    "blur": "share of tissue out of focus",
    "pen": "share of the slide under pen",
    "saturated": "share of tissue with clipped colour",
    "background": "grey value of the background",
    "flagged": "share of slides with a quality flag",
}
"""Measures that are compared, with their descriptions."""


@dataclass(frozen=True)
class DriftTest:
    """One comparison at a site.

    measure: a key of MEASURES, CLASS_MIX, or "all" when there are too few slides.  night, reference: means; for the
    mix, counts by class as text.  n_night, n_reference: numbers of slides.  p: p value; None with too few slides.
    """

    site: str
    measure: str
    night: float | str
    reference: float | str
    n_night: int
    n_reference: int
    p: float | None
    alarm: bool = False

    @property
    def sentence(self) -> str:
        """The result as a sentence for the report."""
        if self.p is None:
            return (
                f"{self.site}: too few slides to compare ({self.n_night} tonight, {self.n_reference} in the reference)"
            )
        name = MEASURES.get(self.measure, "mix of HER2 classes")
        a, b = (value if isinstance(value, str) else f"{value:.3g}" for value in (self.night, self.reference))
        result = "has shifted: check the settings of this scanner and stainer" if self.alarm else "shows no shift"
        slides = f"{self.n_night} and {self.n_reference} slides"
        return f"{self.site}: {name} {result} ({a} tonight, {b} in the reference; {slides})"


def detect_drift(cohort: Cohort, fresh: set[str], settings: DriftSettings, at: datetime) -> list[DriftTest]:
    """Compare a night's slides with those of the preceding reference period.

    fresh: ids of the night's slides.  at: start of the night.  Raises InputError when the site's regular expression is
    not valid.
    """
    finished, rows = finish_times(cohort), cohort.rows()
    since = at - timedelta(days=settings.reference_days)
    sides: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    site_of = site_reader(settings.site)
    for slide_id, row in sorted(rows.items()):
        if row["status"] != "done":
            continue
        if slide_id in fresh:
            sides[site_of(row)][0].append(row)
        elif since <= finished.get(slide_id, datetime.min.replace(tzinfo=at.tzinfo)) < at:
            sides[site_of(row)][1].append(row)
    tests: list[DriftTest] = []
    for site, (night, reference) in sorted(sides.items()):
        if night and min(len(night), len(reference)) < settings.least:
            tests.append(DriftTest(site, "all", "", "", len(night), len(reference), None))
        elif night:
            tests += _site_tests(site, _slide_measures(cohort, night), _slide_measures(cohort, reference))
    return flag_alarms(tests, settings)


def flag_alarms(tests: Sequence[DriftTest], settings: DriftSettings) -> list[DriftTest]:
    """Return the tests with their alarms. The significance level of each kind is divided by its number of tests."""
    levels = {False: 2 * float(stats.norm.sf(settings.deviations)), True: settings.shares}
    counts = Counter(test.measure == CLASS_MIX for test in tests if test.p is not None)

    def is_alarm(test: DriftTest) -> bool:
        is_mix = test.measure == CLASS_MIX
        return test.p is not None and test.p < levels[is_mix] / counts[is_mix]

    return [replace(test, alarm=is_alarm(test)) for test in tests]


def _site_tests(site: str, night: list[Row], reference: list[Row]) -> list[DriftTest]:
    """Return the tests of one site from the measures of its slides."""
    tests = []
    for name in MEASURES:
        a, b = (
            np.array([row[name] for row in side if row.get(name) is not None], float) for side in (night, reference)
        )
        if min(len(a), len(b)) > 1:
            tests.append(DriftTest(site, name, float(a.mean()), float(b.mean()), len(a), len(b), rank_test_p(a, b)))
    mixes = [Counter(row["class"] for row in side if row.get("class")) for side in (night, reference)]
    if all(mix.total() for mix in mixes):
        tonight, before = (", ".join(f"{mix[name]} {name}" for name in CLASSES[TASK]) for mix in mixes)
        sizes = mixes[0].total(), mixes[1].total()
        tests.append(DriftTest(site, CLASS_MIX, tonight, before, *sizes, class_mix_p(*mixes)))
    return tests


def rank_test_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the p value that two samples have one distribution (Mann & Whitney 1947, normal approximation with ties).

    The test uses ranks because shares of blur and pen are skewed: Welch's t-test gave 15 alarms in 1,000 nights without
    drift instead of the nominal three.
    """
    if len(np.unique(np.concatenate([a, b]))) == 1:
        return 1.0
    return float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)


def class_mix_p(night: Mapping[str, int], reference: Mapping[str, int]) -> float:
    """Return the p value that two counts by class have one mix (Pearson's chi-squared), without empty classes."""
    present = [name for name in CLASSES[TASK] if night.get(name, 0) + reference.get(name, 0)]
    if len(present) < 2:
        return 1.0
    table = [[side.get(name, 0) for name in present] for side in (night, reference)]
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _slide_measures(cohort: Cohort, rows: list[Row]) -> list[Row]:
    """Return the measures of each slide."""
    slides = []
    for row in rows:
        measures: Row = {name: row[name] for name in ("blur", "pen", "saturated", "background")}
        measures["flagged"] = float(bool(row["flags"]))
        if row["n_tiles"] and not WITHOUT_PATIENT & set(row["flags"] or ()):
            measures["dab"] = float(np.mean(read_patient_tiles(cohort, row["slide_id"])["dab"].to_numpy()))
            measures["cells"] = float(
                np.mean(read_patient_tiles(cohort, row["slide_id"], "membrane")["cells"].to_numpy())
            )
        for prediction in _rule_predictions(cohort, row["slide_id"]):
            if prediction["task"] == TASK:
                measures |= {"class": prediction["predicted"], "score": prediction["score"]}
        slides.append(measures)
    return slides


def _rule_predictions(cohort: Cohort, slide_id: str) -> list[Row]:
    """Return the membrane rule's predictions of a slide."""
    name = f"predictions/{MEMBRANE_RULE}"
    rows: list[Row] = cohort.read(name, slide_id).to_pylist() if cohort.table(name, slide_id).exists() else []
    return rows


def site_reader(expression: str | None) -> _SiteReader:
    """Return a function from a slide's row to its scanner or site. Raises InputError.

    expression: regular expression for the slide's path, whose first group is the site; None: format and µm/px instead.
    """
    if expression is None:
        return _SiteReader(None)
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(
            f"drift.site is not a valid regular expression: {error}", None, "give one with one group"
        ) from error
    if pattern.groups < 1:
        raise InputError("drift.site has no group", None, "put parentheses around the part that names the site")
    return _SiteReader(pattern)


@dataclass(frozen=True)
class _SiteReader:
    pattern: re.Pattern[str] | None

    def __call__(self, row: Row) -> str:
        if self.pattern is None:
            return f"{row['format']} at {row['mpp']:.3g} µm/px"
        match = self.pattern.search(row["path"] or "")
        return str(match.group(1)) if match and match.group(1) else "elsewhere"


def finish_times(cohort: Cohort) -> dict[str, datetime]:
    """Return when each slide was last finished, from the run logs."""
    times: dict[str, datetime] = {}
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        for row in read_parquet(path).select(["slide_id", "finished"]).to_pylist():
            times[row["slide_id"]] = max(row["finished"], times.get(row["slide_id"], row["finished"]))
    return times
