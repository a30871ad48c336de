"""Every method: what it reads, its settings, how a run's options and its quick profile change them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from her2batch.errors import InputError
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Settings, Training
from her2batch.store.training_run import FINAL_FOLD, Unit
from her2batch.tasks import (
    CLASSES,
    COUNTS_METHODS,
    HER2_TASKS,
    IMAGE_METHODS,
    METHODS,
    MIL_METHODS,
    PATCH_INPUTS,
    THUMBNAIL_INPUTS,
)

MethodKind = Literal["mil", "image", "patch", "counts"]

Cell = tuple[str, str, str]
"""task, method, input"""

PATCH_NET: Final = "convnext-small"
"""Classifies patches (paper, 2.3)."""

PATCH_TASK: Final = "her2-4way"
"""What a patch is classified for."""

DTFD: Final = {"weight_decay": 1e-4}
"""Where DTFD-MIL's published training differs from CLAM's (methods.md §4)."""

QUICK: Final[dict[MethodKind, dict[str, Any]]] = {
    "mil": {"epochs": 12, "least_epochs": 0, "patience": 6, "lr": 5e-4},
    "image": {"epochs": 12, "warmup": 1, "patience": 6, "size": "tiny", "pretrained": "none", "lr": 2e-3},
    "patch": {"epochs": 4, "warmup": 1, "patience": 2, "size": "tiny", "pretrained": "none", "lr": 2e-3},
    "counts": {"search": False},
}
"""The quick profile: enough to see every branch learn something on a synthetic cohort."""


@dataclass(frozen=True)
class LogUniform:
    """Evenly in the logarithm."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of these, all alike."""

    values: tuple[Any, ...]


Space = Mapping[str, LogUniform | Choice]

_IMAGE: Space = {
    "lr": LogUniform(1e-5, 1e-3),
    "weight_decay": LogUniform(1e-5, 1e-1),
    "batch": Choice((16, 32)),
    "loss": Choice(("cross-entropy", "weighted", "focal")),
}

SPACES: Final[dict[MethodKind, Space]] = {
    "mil": {
        "lr": LogUniform(1e-5, 1e-3),
        "weight_decay": LogUniform(1e-6, 1e-3),
        "dropout": Choice((0.0, 0.25, 0.5)),
        "bag_weight": Choice((0.5, 0.7, 0.9)),
        "k": Choice((4, 8, 16)),
        "pseudo_bags": Choice((2, 4, 8)),
    },
    "image": _IMAGE,
    "patch": _IMAGE,
}
"""What `tune` searches, by kind. The counts' classifiers search a grid inside each fold already."""

QUICK_PATCHES: Final = 24
"""Patches of a slide that the quick profile looks at, annotated and tissue each."""


def method_kind(method: str, given: str) -> MethodKind:
    """How a method on an input is trained. Raises InputError when they don't go together."""
    if method in MIL_METHODS and given not in PATCH_INPUTS and given not in THUMBNAIL_INPUTS:
        return "mil"
    if method in IMAGE_METHODS and given in THUMBNAIL_INPUTS:
        return "image"
    if method == PATCH_NET and given in PATCH_INPUTS:
        return "patch"
    if method in COUNTS_METHODS and given in PATCH_INPUTS:
        return "counts"
    raise InputError(
        f"method {method} does not read {given}", None, "see her2batch train --help for what goes together"
    )


def method_settings(method: str, kind: MethodKind, training: Training) -> Settings:
    """A method's settings in this run: its own defaults, the quick profile's, then the run's options.

    Raises InputError naming the option.
    """
    values: dict[str, Any] = dict(DTFD) if method.startswith("dtfd") else {}
    if training.quick:
        values |= QUICK[kind]
    model = _model(kind)
    given = _options(training.options)
    values |= {name: one for name, one in given.items() if name in model.model_fields}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = first["loc"][0] if first["loc"] else "?"
        what = f"--option {where}={given.get(str(where))}: {first['msg']}"
        raise InputError(what, None, "see docs/training.md") from error


def _model(kind: MethodKind) -> type[Settings]:
    models: dict[MethodKind, type[Settings]] = {
        "mil": MilSettings,
        "image": ImageSettings,
        "patch": ImageSettings,
        "counts": CountsSettings,
    }
    return models[kind]


def _options(options: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a mapping. Raises InputError for another form or a name no method has."""
    known = {name for model in (MilSettings, ImageSettings, CountsSettings) for name in model.model_fields}
    found: dict[str, Any] = {}
    for text in options:
        name, mark, value = text.partition("=")
        if not mark or name not in known:
            raise InputError(f"--option {text} is not NAME=VALUE", None, f"names: {', '.join(sorted(known))}")
        found[name] = None if value == "none" and name == "weight_decay" else value
    return found


@dataclass(frozen=True)
class UnitPlan:
    """What a run has to do: units by kind, in an order in which what a unit needs comes before it."""

    units: tuple[Unit, ...]

    def of(self, *kinds: MethodKind) -> list[Unit]:
        """The units of these kinds."""
        return [one for one in self.units if method_kind(one.method, one.input) in kinds]

    def inputs(self, *kinds: MethodKind) -> list[str]:
        """What units of these kinds read."""
        return sorted({one.input for one in self.of(*kinds)})


def plan_units(training: Training, encoders: Iterable[str]) -> UnitPlan:
    """The units of a run: tasks × methods × inputs × folds, a final one each, and the patch nets that counts need.

    encoders: of the cohort, for MIL methods without an input of their own.  Raises InputError for what is not known or
    does not go together.
    """
    _known("task", training.tasks, CLASSES)
    _known("method", training.methods, METHODS)
    cells = [cell for task in training.tasks for method in training.methods
             for cell in _cells(task, method, training.inputs, tuple(encoders))]  # fmt: skip
    for _, method, given in cells:
        method_settings(method, method_kind(method, given), training)
    return units_of_cells(cells, [*range(training.folds), FINAL_FOLD])


def units_of_cells(cells: Iterable[Cell], folds: Iterable[int]) -> UnitPlan:
    """The units of these cells in these folds, with the patch nets that counts need."""
    cells = list(cells)
    nets = [(PATCH_TASK, PATCH_NET, given) for _, method, given in cells if method_kind(method, given) == "counts"]
    units = [Unit(*cell, fold) for cell in dict.fromkeys([*nets, *cells]) for fold in folds]
    order: Mapping[MethodKind, int] = {"patch": 0, "image": 1, "mil": 2, "counts": 3}
    return UnitPlan(tuple(sorted(units, key=lambda one: order[method_kind(one.method, one.input)])))


def _known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    for one in given:
        if one not in known:
            raise InputError(f"no {what} is called {one!r}", None, f"choose from {', '.join(known)}")


def _cells(
    task: str, method: str, inputs: tuple[str, ...], encoders: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
    """(task, method, input) for each input that suits the method; its default where none was asked for."""
    if method in COUNTS_METHODS and task not in HER2_TASKS:
        raise InputError(f"{method} counts HER2 patches, {task} has none", None, "use another method for this task")
    if method == "majority-vote" and task != PATCH_TASK:
        return
    suiting = [one for one in inputs if _goes(method, one)]
    if inputs and not suiting:
        raise InputError(
            f"none of the inputs {', '.join(inputs)} suits {method}", None, "add one, or leave --input away"
        )
    for one in suiting or _defaults(method, encoders):
        yield (PATCH_TASK if one in PATCH_INPUTS and method == PATCH_NET else task), method, one


def _defaults(method: str, encoders: tuple[str, ...]) -> tuple[str, ...]:
    """What a method reads where nothing was asked for."""
    if method in MIL_METHODS:
        return encoders
    return ("thumbnail-224",) if method in IMAGE_METHODS else ("patches-low",)


def _goes(method: str, given: str) -> bool:
    try:
        method_kind(method, given)
    except InputError:
        return False
    return True
