"""Predictions of the guideline rules, which a fusion reads beside the methods of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from her2batch.store.cohort import Cohort, tables_of
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import GUIDELINE_RULES, Task


def read_rule_predictions(cohort: Cohort, tasks: Sequence[Task], slides: Iterable[str]) -> pa.Table:
    """Return the class probabilities of the rules for these tasks and slides, the table `rules` of a run.

    The rules learn from no label, so that their predictions of all slides are out of fold. Slides that a rule cannot
    score, or whose cells were not measured, have no row.
    """
    known, rows = cohort.rows(), []
    classes = {task.name: list(task.classes) for task in tasks}
    for slide_id in sorted(set(slides) & known.keys()):
        there = tables_of(known[slide_id])
        for rule in (rule for rule in GUIDELINE_RULES if f"predictions/{rule}" in there):
            found: list[dict[str, Any]] = cohort.read(f"predictions/{rule}", slide_id).to_pylist()
            rows += [
                {"task": row["task"], "method": rule, "slide_id": slide_id, "p": row["p"]}
                for row in found
                if row["p"] and row["classes"] == classes.get(row["task"])
            ]
    return pa.Table.from_pylist(rows, run_schema("rules"))
