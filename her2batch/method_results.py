"""What the methods say of a slide: the class of each, as it may be shown, and where they disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from her2batch.tasks import CELL_RULE, GUIDELINE_RULES, task_order

Fields = Mapping[str, Any]

DERIVED_TASKS: Final = ("her2-3way", "her2-binary")
"""HER2 tasks whose class follows from the IHC score and, with 2+, from the ISH result."""


class MethodResult(NamedTuple):
    """The class of one method for one task, as it may be shown.

    predicted: None where it depends on an ISH result that does not exist.  text: the class, or what it depends on.
    classes: of the task, in order; none for a number.
    """

    task: str
    method: str
    bundle: str
    predicted: str | None
    text: str
    classes: tuple[str, ...] = ()


def depends_on_ish(prediction: Fields, needs_ish: bool, result: str | None) -> bool:
    """Return whether ISH, and not this prediction, decides the class of its task."""
    by_itself = "needs-ish" in (prediction["reasons"] or ())
    return prediction["task"] in DERIVED_TASKS and (needs_ish or by_itself or result == "2+")


def method_result(prediction: Fields, needs_ish: bool, result: str | None) -> MethodResult:
    """Return a prediction as it may be shown.  result, needs_ish: of the slide."""
    task, predicted = prediction["task"], prediction["predicted"]
    names = task, prediction["method"], prediction["bundle"]
    classes = tuple(prediction.get("classes") or ())
    if depends_on_ish(prediction, needs_ish, result):
        return MethodResult(*names, None, "ISH decides", classes)
    text = "2+: equivocal, ISH needed" if predicted == "2+" and needs_ish else predicted
    return MethodResult(*names, predicted, text, classes)


def cells_are_scored(predictions: Iterable[Fields]) -> bool:
    """Return whether the cells of a slide have categories: not where the cells say that it cannot be scored.

    predictions: its rows of the predictions tables. On such a slide a category would claim staining of membranes, or
    of nuclei, that the refusal denies.
    """
    return all(one["predicted"] is not None for one in predictions if one["method"] == CELL_RULE)


def disagreements(predictions: Sequence[Fields], needs_ish: bool) -> Iterable[tuple[str, str, str]]:
    """Yield (code, task, classes by method) for every task whose methods differ, except where ISH decides.

    Where the two rules differ, that is a code of its own, and the other methods are compared with the membrane rule.
    """
    for task in task_order(
        one["task"] for one in predictions if one.get("classes", True)
    ):  # numbers are never quite the same
        own = [one for one in predictions if one["task"] == task and not depends_on_ish(one, needs_ish, None)]
        rules = [one for one in own if one["method"] in GUIDELINE_RULES]
        if len({one["predicted"] for one in rules}) > 1:
            yield "cells-disagree", task, _classes_by_method(rules)
            own = [one for one in own if one["method"] != CELL_RULE]
        if len({one["predicted"] for one in own}) > 1:
            yield "methods-disagree", task, _classes_by_method(own)


def _classes_by_method(predictions: Iterable[Fields]) -> str:
    return ", ".join(f"{one['predicted']} by {one['method']}" for one in predictions)
