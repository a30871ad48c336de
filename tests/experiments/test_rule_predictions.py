"""Predictions of the rules for a fusion: those of the cohort, where the rule gives probabilities of the task."""

from pathlib import Path

import pyarrow as pa

from her2batch.experiments.rule_predictions import read_rule_predictions
from her2batch.store import schemas
from her2batch.store.cohort import Cohort
from her2batch.tasks import BUILTIN_TASKS


class StoredRules(Cohort):
    """A cohort of three slides: one with both rules, one whose cells cannot be scored, one without tables."""

    def rows(self, columns: object = None) -> dict:
        files = {"a": ("membrane", "cells"), "b": ("membrane", "cells"), "c": ()}
        return {
            name: {"files": [{"path": f"tables/predictions/{rule}/{name}.parquet"} for rule in rules]}
            for name, rules in files.items()
        }

    def read(self, name: str, slide_id: str) -> pa.Table:
        scored = not (name.endswith("cells") and slide_id == "b")
        rows = [
            {"slide_id": slide_id, "task": task, "classes": list(BUILTIN_TASKS[task].classes) if scored else [],
             "p": [1 / len(BUILTIN_TASKS[task].classes)] * len(BUILTIN_TASKS[task].classes) if scored else []}
            for task in ("her2-4way", "her2-3way")
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schemas.table_schema("predictions"))


def test_rules_without_probabilities_have_no_row(tmp_path: Path) -> None:
    cohort = StoredRules(tmp_path)
    found = read_rule_predictions(cohort, [BUILTIN_TASKS["her2-3way"]], ["c", "b", "a", "elsewhere"]).to_pylist()
    assert [(row["method"], row["slide_id"], len(row["p"])) for row in found] == [
        ("membrane", "a", 3), ("cells", "a", 3), ("membrane", "b", 3),
    ]  # fmt: skip
    assert read_rule_predictions(cohort, [BUILTIN_TASKS["er"]], ["a"]).num_rows == 0
