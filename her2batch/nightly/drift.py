"""Whether a night's slides look like those of the weeks before, per scanner or site.

Each figure of the slides is compared by ranks (Mann–Whitney), the mix of scores by a chi-squared test. A night makes
many comparisons: the limit of each is divided by their number (Bonferroni), so that with the default of three standard
errors one quiet night in 370 gives an alarm over a figure, and one in a hundred over the mix. Slides of one patient
count as if they were independent, so a night of few patients alarms more often than that.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from scipy import stats

from her2batch.errors import InputError
from her2batch.files.parquet import read_parquet
from her2batch.settings import DriftSettings
from her2batch.store.cohort import Cohort, Row
from her2batch.tasks import CLASSES, MEMBRANE_RULE

CLASS_MIX = "score mix"
TASK = "her2-3way"

MEASURES = {
    "dab": "mean optical density of DAB in tissue",
    "cells": "share of tissue among nuclei or membranes",
    "score": "continuous HER2 score",
    "blur": "share of tissue out of focus",
    "pen": "share of the slide under pen ink",
    "saturated": "share of tissue with clipped colour",
    "background": "grey value of the background",
    "flagged": "share of slides with a quality flag",
}
"""What is compared, in words."""


@dataclass(frozen=True)
class DriftTest:
    """One comparison. night, reference: means; of the mix, counts by class as text.  p: None where too few slides."""

    site: str
    figure: str
    night: float | str
    reference: float | str
    n_night: int
    n_reference: int
    p: float | None
    alarm: bool = False

    @property
    def sentence(self) -> str:
        """In plain words."""
        if self.p is None:
            return f"{self.site}: too few slides to compare ({self.n_night} tonight, {self.n_reference} before)"
        words = MEASURES.get(self.figure, "mix of HER2 classes")
        a, b = (one if isinstance(one, str) else f"{one:.3g}" for one in (self.night, self.reference))
        verdict = "has moved: look at this scanner's and stainer's settings" if self.alarm else "is as before"
        return f"{self.site}: {words} {verdict} ({a} tonight, {b} before; {self.n_night} and {self.n_reference} slides)"


def detect_drift(cohort: Cohort, fresh: set[str], settings: DriftSettings, at: datetime) -> list[DriftTest]:
    """A night's slides against those of the reference period before it.

    fresh: ids of the night's slides.  at: its start.  Raises InputError when the site's expression is none.
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
    figures: list[DriftTest] = []
    for site, (night, reference) in sorted(sides.items()):
        if night:
            few = min(len(night), len(reference)) < settings.least
            figures += (
                [DriftTest(site, "all", "", "", len(night), len(reference), None)]
                if few
                else _site_tests(site, _slide_measures(cohort, night), _slide_measures(cohort, reference))
            )
    return flag_alarms(figures, settings)


def flag_alarms(figures: Sequence[DriftTest], settings: DriftSettings) -> list[DriftTest]:
    """The same with their alarms: every kind of test shares its limit among its comparisons."""
    wanted = {False: 2 * float(stats.norm.sf(settings.deviations)), True: settings.shares}
    count = Counter(one.figure == CLASS_MIX for one in figures if one.p is not None)
    return [
        replace(
            one, alarm=one.p is not None and one.p < wanted[one.figure == CLASS_MIX] / count[one.figure == CLASS_MIX]
        )
        for one in figures
    ]


def _site_tests(site: str, night: list[Row], reference: list[Row]) -> list[DriftTest]:
    found = []
    for name in MEASURES:
        a, b = (
            np.array([one[name] for one in side if one.get(name) is not None], float) for side in (night, reference)
        )
        if min(len(a), len(b)) > 1:
            found.append(DriftTest(site, name, float(a.mean()), float(b.mean()), len(a), len(b), rank_test_p(a, b)))
    mixes = [Counter(one["class"] for one in side if one.get("class")) for side in (night, reference)]
    if all(mix.total() for mix in mixes):
        tonight, before = (", ".join(f"{mix[name]} {name}" for name in CLASSES[TASK]) for mix in mixes)
        found.append(
            DriftTest(site, CLASS_MIX, tonight, before, mixes[0].total(), mixes[1].total(), class_mix_p(*mixes))
        )
    return found


def rank_test_p(a: np.ndarray, b: np.ndarray) -> float:
    """p value that two samples come from one distribution (Mann & Whitney 1947, normal approximation, ties counted).

    Ranks, not means: shares of blur and ink are so skewed that Welch's t-test gave 15 alarms in 1,000 quiet nights
    where three were promised.
    """
    if len(np.unique(np.concatenate([a, b]))) == 1:
        return 1.0
    return float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)


def class_mix_p(night: Mapping[str, int], reference: Mapping[str, int]) -> float:
    """p value that two counts by class come from one mix (Pearson's chi-squared), without classes nobody has."""
    there = [name for name in CLASSES[TASK] if night.get(name, 0) + reference.get(name, 0)]
    if len(there) < 2:
        return 1.0
    table = [[side.get(name, 0) for name in there] for side in (night, reference)]
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _slide_measures(cohort: Cohort, rows: list[Row]) -> list[Row]:
    """Each slide's figures."""
    found = []
    for row in rows:
        one: Row = {name: row[name] for name in ("blur", "pen", "saturated", "background")}
        one["flagged"] = float(bool(row["flags"]))
        if row["n_tiles"]:
            one["dab"] = float(np.mean(cohort.read("tiles", row["slide_id"])["dab"].to_numpy()))
            one["cells"] = float(np.mean(cohort.read("membrane", row["slide_id"])["cells"].to_numpy()))
        for said in _predictions(cohort, row["slide_id"]):
            if said["task"] == TASK:
                one |= {"class": said["predicted"], "score": said["score"]}
        found.append(one)
    return found


def _predictions(cohort: Cohort, slide_id: str) -> list[Row]:
    name = f"predictions/{MEMBRANE_RULE}"
    rows: list[Row] = cohort.read(name, slide_id).to_pylist() if cohort.table(name, slide_id).exists() else []
    return rows


def site_reader(expression: str | None) -> _SiteReader:
    """What tells a slide's scanner or site. Raises InputError."""
    if expression is None:
        return _SiteReader(None)
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"drift.site: {error}", None, "give a regular expression with one group") from error
    if pattern.groups < 1:
        raise InputError("drift.site has no group", None, "put the part that names the site in parentheses")
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
    """When each slide was done last, by the runs' times."""
    found: dict[str, datetime] = {}
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        for row in read_parquet(path).select(["slide_id", "finished"]).to_pylist():
            found[row["slide_id"]] = max(row["finished"], found.get(row["slide_id"], row["finished"]))
    return found
