"""How many slides each method gave each class, how many a person has to review, and which cannot be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from her2batch.reports.report_data import assess_slides
from her2batch.store.cohort import Cohort
from her2batch.tasks import CLASSES, GUIDELINE_RULES, task_order


@dataclass(frozen=True)
class PredictionCount:
    """Predictions of one method of one bundle for one task.

    classes: class → number of slides, every class of the task, in order; `predicted` for numbers.  review: slides that
    a pathologist should look at, by their assessment.  ish_decides: slides that have no class in this task until there
    is an ISH result.
    """

    bundle: str
    task: str
    method: str
    classes: dict[str, int]
    review: int
    ish_decides: int = 0

    @property
    def slides(self) -> int:
        """Slides with a prediction."""
        return sum(self.classes.values()) + self.ish_decides

    @property
    def uncalibrated(self) -> bool:
        """Whether a rule gave them without a calibration of this laboratory."""
        return self.bundle in GUIDELINE_RULES


class PredictionSummary(NamedTuple):
    """Predictions of some slides. not_scorable: reason, in words → number of slides without a class for it."""

    counts: list[PredictionCount]
    not_scorable: dict[str, int]


def summarise_predictions(cohort: Cohort, slide_ids: Iterable[str]) -> PredictionSummary:
    """Count the predictions of these slides, and the slides that cannot be scored, by their first reason.

    Tables that can't be read are left out.
    """
    wanted = set(slide_ids)
    rows = [row for slide_id, row in cohort.rows().items() if slide_id in wanted] if wanted else []
    classes: dict[tuple[str, str, str], Counter[str | None]] = {}
    review: Counter[tuple[str, str, str]] = Counter()
    known: dict[tuple[str, str, str], tuple[str, ...]] = {}
    refused: Counter[str] = Counter()
    for found in assess_slides(cohort, rows).values() if rows else ():
        if found.not_scorable:
            refused[next(one.words for one in found.reasons if one.kind == "not-scorable")] += 1
        for one in found.methods:
            key = one.bundle, one.task, one.method
            known.setdefault(key, CLASSES.get(one.task, one.classes))
            classes.setdefault(key, Counter())[one.predicted] += 1
            review[key] += found.review
    order = task_order(task for _, task, _ in classes)
    counts = [
        PredictionCount(*key, _counts(known[key], own), review[key], own[None])
        for key, own in sorted(classes.items(), key=lambda item: _rank(item[0], order))
    ]
    return PredictionSummary(counts, dict(refused.most_common()))


def _rank(key: tuple[str, str, str], tasks: list[str]) -> tuple[int, int, str, str]:
    """Return the key that sorts counts: by task, then the rules in their order, then bundles by name."""
    bundle, task, method = key
    rule = GUIDELINE_RULES.index(bundle) if bundle in GUIDELINE_RULES else len(GUIDELINE_RULES)
    return tasks.index(task), rule, bundle, method


def _counts(names: tuple[str, ...], counts: Counter[str | None]) -> dict[str, int]:
    """Return class → number of slides; of a task of numbers the number of slides with one."""
    return {name: counts[name] for name in names} if names else {"predicted": counts.total()}
