"""Tasks, their classes, methods and inputs; the class of a label; the slides that a task applies to."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

IHC_SCORES: Final = ("0", "1+", "2+", "3+")

CONTRADICTIONS: Final = frozenset({("0", "+"), ("1+", "+"), ("3+", "-")})
"""IHC scores and ISH results that can't both be right (methods.md §1)."""

HER2_DETAILS: Final = ("null", "ultralow")
"""Sub-scores of 0: no membrane staining; faint, incomplete staining in at most 10 % of the tumour cells."""

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "her2-4way": IHC_SCORES,
    "her2-5way": (*HER2_DETAILS, *IHC_SCORES[1:]),
    "her2-3way": ("0", "low", "high"),
    "her2-binary": ("negative", "positive"),
    "er": ("negative", "positive"),
    "pr": ("negative", "positive"),
}
"""Built-in task → its classes, in the order of every probability list."""

RULE_TASKS: Final = ("her2-4way", "her2-3way", "her2-binary")
"""HER2 tasks whose class follows from the IHC score and the ISH result: those of the membrane rule."""

DETAIL_TASK: Final = "her2-5way"
"""HER2 task that divides the score 0 into its sub-scores, which labels must state."""

HER2_TASKS: Final = (*RULE_TASKS, DETAIL_TASK)

SCORE_TASKS: Final = ("her2-4way", DETAIL_TASK)
"""Tasks whose classes are IHC scores, or sub-scores of 0."""

ORDERED_TASKS: Final = ("her2-3way", *SCORE_TASKS)
"""Tasks of three and more classes in an order, from no staining to strong."""

MEMBRANE_RULE: Final = "membrane"
"""Name of the membrane rule, as a method and as a bundle."""

CALIBRATION_PREFIX: Final = "cal-"
"""Start of a calibration's id, which no bundle's id has."""

CELL_RULE: Final = "cells"
"""Name of the guideline on tumour cells, as a method and as a bundle."""

GUIDELINE_RULES: Final = (MEMBRANE_RULE, CELL_RULE)
"""Methods that need no bundle."""

FUSION: Final = "fusion"
"""Name of the stack of the other methods of a run, as a method and as a kind of model."""

FUSION_INPUT: Final = "methods"
"""The input of the stack: the predictions of the other methods."""

RESOLUTIONS: Final[dict[str, float]] = {"low": 3.24, "moderate": 1.17, "high": 0.23}
"""Patch resolution → µm/px (paper, section 3: mean slide sizes at 0.23 µm/px)."""

IMAGE_METHODS: Final = ("convnext-small", "resnet50", "densenet201", "vit-base")
"""Approach 2 of the paper: on the thumbnail of a slide."""

FURTHER_NETWORKS: Final = ("efficientnet-lite0",)
"""Networks that the paper does not have; the ImageNet weights of EfficientNet-Lite0 need no hub."""

NETWORK_METHODS: Final = (*IMAGE_METHODS, *FURTHER_NETWORKS)
"""All networks that are built in, for thumbnails."""

TIMM_PREFIX: Final = "timm:"
"""Prefix of an encoder, or of a network for thumbnails, that is any model of timm."""

PATCH_NETWORKS: Final = ("convnext-small", "efficientnet-lite0")
"""Networks that classify patches; the first is the paper's (2.3)."""

COUNTS_METHODS: Final = ("random-forest", "svm", "mlp", "majority-vote")
"""Approach 3 of the paper: on the counts of patch classes, which one of PATCH_NETWORKS predicts."""

THUMBNAIL_INPUTS: Final[dict[str, int]] = {"thumbnail-224": 224, "thumbnail-512": 512}
"""Input of approach 2 → its edge in px."""

PATCH_INPUTS: Final[dict[str, float]] = {f"patches-{name}": mpp for name, mpp in RESOLUTIONS.items()}
"""Input of approach 3 → µm/px of its patches."""

PATCH_PX: Final = 224
"""Edge of a patch (paper, 2.3)."""

STAINS: Final = ("her2", "er", "pr", "ki67", "he", "ihc")
"""Stains of a slide: a marker, H&E (`he`), or haematoxylin and DAB with an unknown marker (`ihc`)."""

MISSING: Final = frozenset(("", "na", "n/a", "#n/a", "nan", "none", "-", "?"))
"""Cells of a label sheet that give no value, in lower case, unless a task names them."""

NUMBER: Final = re.compile(r"[+-]?\d+([.,]\d+)?\s*%?")
"""A number in a label sheet: `12`, `12.5`, `12,5` or `12 %`."""

COMPARISON: Final = re.compile(r"(>=|<=|>|<)\s*([+-]?\d+(?:\.\d+)?)")
"""A condition on a number: `>= 30`."""

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt
}  # fmt: skip

LABEL_COLUMNS: Final = ("slide_id", "patient_id", "her2", "her2_detail", "ish", "er", "pr", "site", "stain")
"""Columns that a label sheet may have for all tasks, with the values of her2batch."""

Condition = str | tuple[str, ...]
"""A value of a column, several values, or a comparison such as `>= 20`."""


class Task(BaseModel):
    """A task: what is predicted for a slide, and how its truth is read from a label sheet.

    name: as given with --task.  column: of the label sheet; None where `rules` decide.  classes: in order, lowest
    first; none for a number.  ordinal: whether that order has a meaning; without one kappa is not weighted.  stains:
    slides that the task applies to; `ihc` includes those whose marker is not known.  target: a class or a number.
    values: text in the column → class.  thresholds: lower limits of the second class, the third, …: `30` and `>= 30`
    include the limit, `> 30` does not.  rules: the first whose conditions all hold gives the class.  missing: texts
    that count as no label.  limits: smallest and largest number.  unit: of the number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    column: str | None = None
    classes: tuple[str, ...] = ()
    ordinal: bool = True
    stains: tuple[Literal["her2", "er", "pr", "ki67", "he", "ihc"], ...]
    target: Literal["class", "number"] = "class"
    values: dict[str, str] | None = None
    thresholds: tuple[float | str, ...] | None = None
    rules: tuple[dict[str, Condition], ...] | None = None
    missing: tuple[str, ...] | None = None
    limits: tuple[float, float] | None = None
    unit: str | None = None

    @field_validator("thresholds")
    @classmethod
    def _thresholds_are_limits(cls, given: tuple[float | str, ...] | None) -> tuple[float | str, ...] | None:
        for limit in given or ():
            if isinstance(limit, str) and not ((found := COMPARISON.fullmatch(limit)) and found[1] in (">", ">=")):
                raise ValueError(f"{limit!r} is no lower limit; write a number, '>= 30' or '> 30'")
        limits = [_limit(limit)[1] for limit in given or ()]
        if any(low >= high for low, high in pairwise(limits)):
            raise ValueError("the limits must increase, one for each class after the first")
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if reason := self._contradiction():
            raise ValueError(reason)
        return self

    def _contradiction(self) -> str | None:
        """Return why the parts of a definition do not fit together; None when they do."""
        ways = [name for name in ("values", "thresholds", "rules") if getattr(self, name) is not None]
        if not self.stains:
            return "stains: name at least one stain whose slides the task applies to"
        if len(ways) > 1:
            return f"{ways[1]}: a task has either {ways[0]} or {ways[1]}, not both"
        if (self.column is None) != (self.rules is not None):
            return "column: name the column of the label sheet, or give rules on several columns, not both"
        if self.is_number:
            unused = [*ways, *(["classes"] if self.classes else [])]
            if self.limits is not None and self.limits[0] >= self.limits[1]:
                return "limits: the first must be smaller than the second"
            return f"{unused[0]}: a number has none; leave it out, or target = 'class'" if unused else None
        return self._contradiction_of_classes()

    def _contradiction_of_classes(self) -> str | None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or "" in self.classes:
            return "classes: name at least two different classes, lowest first"
        if self.limits is not None or self.unit is not None:
            return "limits, unit: only a number has them; leave them out, or target = 'number'"
        if self.thresholds is not None and len(self.thresholds) != len(self.classes) - 1:
            n = len(self.classes)
            return f"thresholds: {n} classes need {n - 1} limits, here are {len(self.thresholds)}"
        named = [*(self.values or {}).values(), *(str(rule.get("class")) for rule in self.rules or ())]
        part = "values" if self.values is not None else "rules"
        if unknown := [name for name in named if name not in self.classes]:
            return f"{part}: {unknown[0]!r} is none of the classes {', '.join(self.classes)}"
        if self.rules is not None and (unreached := [name for name in self.classes if name not in named]):
            return f"rules: no rule gives the class {unreached[0]!r}"
        if any(len(rule) < 2 for rule in self.rules or ()):
            return "rules: a rule names a class and at least one column"
        return None

    @property
    def is_number(self) -> bool:
        """Return whether the task predicts a number (regression)."""
        return self.target == "number"

    @property
    def is_builtin(self) -> bool:
        """Return whether her2batch itself defines the task."""
        return self.name in CLASSES

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of the label sheet that the task reads."""
        if self.rules is not None:
            return tuple(dict.fromkeys(name for rule in self.rules for name in rule if name != "class"))
        return (self.column,) if self.column is not None else ()

    @property
    def outputs(self) -> int:
        """Return the number of values that a network gives: one for each class, one for a number."""
        return 1 if self.is_number else len(self.classes)

    def presumes_marker(self, stain: str | None) -> bool:
        """Return whether the task takes the marker of a slide of this stain for granted, as no label states it."""
        return task_applies(self, stain) and stain in ("ihc", None) and self.stains != ("ihc",)

    def truth(self, row: Mapping[str, Any]) -> str | float | None:
        """Return the class or number of a row of a label sheet; None without one.

        Raises ValueError naming the column, its value and what is accepted. Not for built-in tasks: see `her2_class`.
        """
        if self.rules is not None:
            return self._class_by_rules(self.rules, row)
        text = self._text(row, str(self.column))
        if text is None:
            return None
        if self.is_number or self.thresholds is not None:
            number = _number(str(self.column), text)
            return self._checked(number) if self.is_number else self._class_of_number(number)
        named = {name.lower(): name for name in self.classes}
        named |= {word.lower(): name for word, name in (self.values or {}).items()}
        if text.lower() not in named:
            known = ", ".join([*(self.values or {}), *self.classes])
            raise ValueError(f"{self.column} is {text!r}; use one of {known}, or leave it empty")
        return named[text.lower()]

    def _text(self, row: Mapping[str, Any], column: str) -> str | None:
        """Return the text of a cell, None where it counts as missing."""
        text = _cell(row, column)
        known = {word.lower() for word in (*self.classes, *(self.values or {}))}
        missing = {word.lower() for word in self.missing or ()} | (MISSING - known)
        return None if text.lower() in missing else text

    def _class_by_rules(self, rules: tuple[dict[str, Condition], ...], row: Mapping[str, Any]) -> str | None:
        """Return the class of the first rule that holds; None without one. Raises ValueError for text, not a number."""
        for rule in rules:
            if self._holds(rule, row):
                return str(rule["class"])
        for column, wanted in ((column, wanted) for rule in rules for column, wanted in rule.items()):
            compared = any(map(COMPARISON.fullmatch, (wanted,) if isinstance(wanted, str) else wanted))
            if compared and (text := self._text(row, column)) is not None:
                _number(column, text)
        return None

    def _holds(self, rule: Mapping[str, Condition], row: Mapping[str, Any]) -> bool:
        return all(self._matches(column, wanted, row) for column, wanted in rule.items() if column != "class")

    def _matches(self, column: str, wanted: Condition, row: Mapping[str, Any]) -> bool:
        """Return whether a cell is one of the wanted values, or fulfils the comparison. Other text is no number."""
        cell = _cell(row, column)
        for one in (wanted,) if isinstance(wanted, str) else wanted:
            comparison = COMPARISON.fullmatch(one)
            if comparison is None and cell.lower() == one.strip().lower():
                return True
            if comparison is None or NUMBER.fullmatch(cell) is None:
                continue
            if OPERATORS[comparison[1]](_number(column, cell), float(comparison[2])):
                return True
        return False

    def _checked(self, number: float) -> float:
        if self.limits is not None and not self.limits[0] <= number <= self.limits[1]:
            raise ValueError(
                f"{self.column} is {number:g}; it must lie between {self.limits[0]:g} and {self.limits[1]:g}"
            )
        return number

    def _class_of_number(self, number: float) -> str:
        reached = [OPERATORS[sign](number, limit) for sign, limit in map(_limit, self.thresholds or ())]
        return self.classes[sum(reached)]


def sheet_column(name: str) -> str:
    """Return the name under which labels have a column that a task of the user's own reads: the columns of labels
    themselves, by which a column of a sheet could be called, keep their meaning."""
    return name if name in LABEL_COLUMNS else f"column {name}"


def further_columns(tasks: Iterable[str | Task]) -> list[str]:
    """Return the columns of a label sheet that tasks of the user's own read beside those that every sheet may have."""
    own = [task for task in map(as_task, tasks) if not task.is_builtin]
    return list(dict.fromkeys(name for task in own for name in task.columns if name not in LABEL_COLUMNS))


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Return the text of a row of labels, or of a sheet, in a column."""
    value = row.get(sheet_column(column), row.get(column))
    return "" if value is None else str(value).strip()


def _limit(limit: float | str) -> tuple[str, float]:
    """Return a lower limit as comparison and number."""
    found = COMPARISON.fullmatch(limit) if isinstance(limit, str) else None
    return (found[1], float(found[2])) if found is not None else (">=", float(limit))


def _number(column: str, text: str) -> float:
    if NUMBER.fullmatch(text) is None:
        raise ValueError(f"{column} is {text!r}; write a number such as 12 or 12.5, or leave it empty")
    return float(text.rstrip("% ").replace(",", "."))


def _builtin(name: str, classes: tuple[str, ...]) -> Task:
    own: Any = ("her2", "ihc") if name in HER2_TASKS else (name,)
    return Task(name=name, column=own[0], classes=classes, stains=own)


BUILTIN_TASKS: Final[dict[str, Task]] = {name: _builtin(name, classes) for name, classes in CLASSES.items()}
"""The tasks of her2batch itself, by name."""


def as_task(task: str | Task) -> Task:
    """Return a task by its name; a Task is returned as it is. Raises KeyError for an unknown name."""
    return task if isinstance(task, Task) else BUILTIN_TASKS[task]


def task_order(names: Iterable[str]) -> list[str]:
    """Return the names of tasks in the order in which reports show them: built-in ones first, then by name."""
    order = list(CLASSES)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def her2_class(task: str, ihc: str, ish: str | None, detail: str | None = None) -> str | None:
    """The class of an IHC score ('0' … '3+') and an ISH result ('+', '-' or None) in a HER2 task.

    detail: sub-score of 0, `null` or `ultralow`; None where it is not known.  None: 2+ without ISH, or 0 without
    sub-score, where the task needs it.  Source: paper, table 2; ASCO/CAP 2018, affirmed 2023; for the sub-scores the
    ESMO consensus of 2023 and CAP 2024, as DESTINY-Breast06 used them.  Raises ValueError for other tasks.
    """
    if task == "her2-4way":
        return ihc
    if task == DETAIL_TASK:
        return detail if ihc == "0" else ihc
    if ihc == "2+" and ish is None:
        return None
    high = ihc == "3+" or (ihc == "2+" and ish == "+")
    if task == "her2-binary":
        return "positive" if high else "negative"
    if task == "her2-3way":
        return "high" if high else "0" if ihc == "0" else "low"
    raise ValueError(f"{task} is no HER2 task; known: {', '.join(HER2_TASKS)}")


def is_calibration(bundle: str) -> bool:
    """Whether predictions are those of a calibration. bundle: name of what made them, as in `predictions/BUNDLE`."""
    return bundle.startswith(CALIBRATION_PREFIX)


def ihc_score(label: str) -> str:
    """The IHC score of a class of SCORE_TASKS: its own, and 0 of a sub-score."""
    return "0" if label in HER2_DETAILS else label


def task_applies(task: str | Task, stain: str | None) -> bool:
    """Whether a task applies to slides of a stain. Training and scoring select their slides by this rule.

    stain: of the labels, or of the slides table where the labels give none.  HER2 tasks apply to HER2 slides and to IHC
    slides whose marker is not known (`ihc` or None), which are presumed to be HER2; ER and PR to slides of that marker;
    other tasks to the stains of their definition.
    """
    return ("ihc" if stain is None else stain) in as_task(task).stains


def classifies_patches(method: str, input_name: str) -> bool:
    """Whether a method and its input are those of a network that classifies patches, and not slides."""
    return method in PATCH_NETWORKS and input_name in PATCH_INPUTS


def is_network(method: str) -> bool:
    """Whether a method is a network that is fine-tuned on images: a built-in one, or `timm:NAME`."""
    return method in NETWORK_METHODS or method.startswith(TIMM_PREFIX)
