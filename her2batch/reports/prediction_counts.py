"""How many slides each method gave each class, and how many a person has to review."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from her2batch.reports.report_data import read_tables, slide_table_names
from her2batch.store.cohort import Cohort
from her2batch.tasks import CLASSES


@dataclass(frozen=True)
class PredictionCount:
    """Predictions of one method of one bundle for one task.

    classes: class → number of slides, every class of the task, in order.  review: slides that need a review.
    """

    bundle: str
    task: str
    method: str
    classes: dict[str, int]
    review: int

    @property
    def slides(self) -> int:
        """Slides with a prediction."""
        return sum(self.classes.values())


def count_predictions(cohort: Cohort, slide_ids: Iterable[str]) -> list[PredictionCount]:
    """Count the predictions of these slides, by bundle, task and method. Tables that can't be read are left out."""
    wanted = set(slide_ids)
    rows = [row for slide_id, row in cohort.rows().items() if slide_id in wanted] if wanted else []
    named = [(row, name) for row in rows for name in slide_table_names(row, "predictions")]
    classes: dict[tuple[str, str, str], Counter[str]] = {}
    review: Counter[tuple[str, str, str]] = Counter()
    for (_, name), table in zip(named, read_tables(cohort, named), strict=True):
        for call in table.select(["task", "method", "predicted", "review"]).to_pylist() if table is not None else ():
            key = name.split("/", 1)[1], call["task"], call["method"]
            classes.setdefault(key, Counter())[call["predicted"]] += 1
            review[key] += bool(call["review"])
    order = {task: k for k, task in enumerate(CLASSES)}
    return [
        PredictionCount(*key, {name: classes[key][name] for name in CLASSES[key[1]]}, review[key])
        for key in sorted(classes, key=lambda key: (order[key[1]], key[0], key[2]))
    ]
