"""Slides whose predicted class differs from the label: the cohort's, and those of a training run for each approach."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from her2batch.method_results import DERIVED_TASKS
from her2batch.tasks import CLASSES, FUSION, PATCH_INPUTS, THUMBNAIL_INPUTS

MAX_MISCLASSIFIED: Final = 36
"""Misclassified slides of a cohort that are shown with their thumbnail."""

MAX_OF_APPROACH: Final = 12
"""Misclassified slides of each approach of a training run that are shown."""

APPROACHES: Final = ("multiple instance learning", "networks on thumbnails", "classified patches", "fusion")
"""Approaches of a training run: the paper's three, and our stack of them."""


@dataclass(frozen=True)
class Gallery:
    """The misclassified slides of an approach.  errors: the worst of `n`.  tested: slides with a prediction."""

    approach: str
    errors: list[dict[str, Any]]
    n: int
    tested: int


def approach_of(method: str, input_name: str) -> str:
    """Return the approach of a method on an input."""
    if method == FUSION:
        return APPROACHES[3]
    return APPROACHES[1 if input_name in THUMBNAIL_INPUTS else 2 if input_name in PATCH_INPUTS else 0]


def galleries_by_approach(
    predictions: pa.Table, open_for_ish: Collection[str], classes: Mapping[str, tuple[str, ...]] = CLASSES
) -> list[Gallery]:
    """Return a gallery for each approach that a run used, in their order; empty ones too.

    predictions: of a run, one row per slide, method, input and task.  classes: of its tasks.
    """
    rows = predictions.to_pylist()
    found = []
    for approach in APPROACHES:
        own = [row for row in rows if approach_of(row["method"], row["input"]) == approach]
        if own:
            errors = _worst_of_slides(own, open_for_ish, classes)
            tested = len({row["slide_id"] for row in own})
            found.append(Gallery(approach, errors[:MAX_OF_APPROACH], len(errors), tested))
    return found


def worst_misclassified(predictions: pa.Table, open_for_ish: Collection[str]) -> list[dict[str, Any]]:
    """Return one misclassified prediction for each slide: furthest from the label, then most probable. Worst first.

    open_for_ish: slides whose classes hang on ISH: only their IHC score is shown.
    """
    return _worst_of_slides(predictions.to_pylist(), open_for_ish, CLASSES)[:MAX_MISCLASSIFIED]


def _worst_of_slides(
    rows: list[dict[str, Any]], open_for_ish: Collection[str], classes: Mapping[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["predicted"] == row["truth"] or (row["task"] in DERIVED_TASKS and row["slide_id"] in open_for_ish):
            continue
        order = classes[row["task"]]
        distance = abs(order.index(row["predicted"]) - order.index(row["truth"]))
        probability = row["p"][order.index(row["predicted"])]
        rank = (-distance, -probability)
        if row["slide_id"] not in worst or rank < worst[row["slide_id"]]["rank"]:
            worst[row["slide_id"]] = {**row, "rank": rank, "probability": probability}
    return sorted(worst.values(), key=lambda row: (row["rank"], row["slide_id"]))
