"""The content of a training run: methods with their inputs and settings, and the units (folds of methods) to train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from her2batch.errors import InputError
from her2batch.models.mil_registry import (
    Choice,
    LogUniform,
    SearchSpace,
    is_mil_method,
    mil_method,
    mil_method_names,
)
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Settings, Training
from her2batch.store.training_run import FINAL_FOLD, Unit
from her2batch.tasks import (
    COUNTS_METHODS,
    FUSION,
    HER2_TASKS,
    NETWORK_METHODS,
    ORDERED_TASKS,
    PATCH_INPUTS,
    PATCH_NETWORKS,
    THUMBNAIL_INPUTS,
    Task,
    classifies_patches,
    is_network,
)
from her2batch.training.recipes.profiles import PROFILE_SPACES, profile_settings

MethodKind = Literal["mil", "image", "patch", "counts"]

Cell = tuple[str, str, str]
"""Task, method and input."""

PATCH_NET: Final = PATCH_NETWORKS[0]
"""The method that classifies patches unless the run names another one (paper, 2.3)."""

LOW_RESOLUTION: Final = "patches-low"
"""The input whose patches may overlap."""

PATCH_TASK: Final = "her2-4way"
"""The task that patches are classified for."""

QUICK: Final[dict[MethodKind, dict[str, Any]]] = {
    "mil": {"epochs": 12, "least_epochs": 0, "patience": 6, "lr": 5e-4},
    "image": {"epochs": 12, "warmup": 1, "patience": 6, "size": "tiny", "pretrained": "none", "lr": 2e-3},
    "patch": {"epochs": 4, "warmup": 1, "patience": 2, "size": "tiny", "pretrained": "none", "lr": 2e-3},
    "counts": {"search": False},
}
"""Settings of the quick profile: enough for every kind of method to learn something on a synthetic cohort."""

IMAGE_SPACE: Final[SearchSpace] = {
    "lr": LogUniform(1e-5, 1e-3),
    "weight_decay": LogUniform(1e-5, 1e-1),
    "batch": Choice((16, 32)),
    "loss": Choice(("cross-entropy", "weighted", "focal")),
}
"""What `tune` searches for an image network. Classifiers of counts search a grid inside each fold already."""


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, those of installed packages included."""
    return (*mil_method_names(), *NETWORK_METHODS, *COUNTS_METHODS, FUSION)


def is_method(name: str) -> bool:
    """Return whether a method has this name."""
    return is_network(name) or name in (*COUNTS_METHODS, FUSION) or is_mil_method(name)


def method_kind(method: str, input_name: str) -> MethodKind:
    """Return how a method is trained on an input. Raises InputError when the method cannot read the input."""
    if is_network(method) and input_name in THUMBNAIL_INPUTS:
        return "image"
    if classifies_patches(method, input_name):
        return "patch"
    if method in COUNTS_METHODS and input_name in PATCH_INPUTS:
        return "counts"
    if input_name not in PATCH_INPUTS and input_name not in THUMBNAIL_INPUTS and _is_mil(method):
        return "mil"
    raise InputError(
        f"method {method} does not read {input_name}", None, "see her2batch train --help for what goes together"
    )


def method_settings(method: str, kind: MethodKind, training: Training) -> Settings:
    """Return a method's settings in this run: its defaults, then those of the profile, of --quick, and the options.

    Raises InputError naming the option.
    """
    values: dict[str, Any] = dict(mil_method(method).defaults) if kind == "mil" else {}
    values |= profile_settings(training.profile, method, kind)
    if training.quick:
        values |= QUICK[kind]
    model = _settings_model(method, kind)
    options = _options(training)
    values |= {name: value for name, value in options.items() if name in model.model_fields}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = first["loc"][0] if first["loc"] else "?"
        what = f"--option {where}={options.get(str(where))}: {first['msg']}"
        raise InputError(what, None, "see docs/training.md") from error


def search_space(method: str, kind: MethodKind, profile: str | None = None) -> SearchSpace:
    """Return what `tune` searches for a method, in a run with this profile; nothing for classifiers of counts."""
    if kind == "mil":
        return mil_method(method).space
    if kind == "counts":
        return {}
    return PROFILE_SPACES.get(profile or "", IMAGE_SPACE)


def _settings_model(method: str, kind: MethodKind) -> type[Settings]:
    if kind == "mil":
        return mil_method(method).settings
    return CountsSettings if kind == "counts" else ImageSettings


def _options(training: Training) -> dict[str, Any]:
    """Return the run's NAME=VALUE options as a mapping. Raises InputError for another form or an unknown name."""
    models: list[type[Settings]] = [MilSettings, ImageSettings, CountsSettings]
    models += [mil_method(name).settings for name in training.methods if _is_mil(name)]
    known = {name for model in models for name in model.model_fields}
    values: dict[str, Any] = {}
    for text in training.options:
        name, mark, value = text.partition("=")
        if not mark or name not in known:
            raise InputError(f"--option {text} is not NAME=VALUE", None, f"names: {', '.join(sorted(known))}")
        values[name] = None if value == "none" and name == "weight_decay" else value
    return values


def predicts_numbers(method: str) -> bool:
    """Return whether a method can be trained for a task whose target is a number."""
    return _is_mil(method) and mil_method(method).numbers


def _is_mil(method: str) -> bool:
    """Return whether this is a MIL method; other packages are looked at for names that are not built in."""
    return not is_network(method) and method not in (*COUNTS_METHODS, FUSION) and is_mil_method(method)


@dataclass(frozen=True)
class UnitPlan:
    """The units of a run, in an order in which every unit comes after the units whose results it reads."""

    units: tuple[Unit, ...]

    def of(self, *kinds: MethodKind) -> list[Unit]:
        """Return the units of these kinds."""
        return [unit for unit in self.units if method_kind(unit.method, unit.input) in kinds]

    def inputs(self, *kinds: MethodKind) -> list[str]:
        """Return the inputs of the units of these kinds."""
        return sorted({unit.input for unit in self.of(*kinds)})


def plan_units(training: Training, encoders: Iterable[str]) -> UnitPlan:
    """Return the units of a run: tasks × methods × inputs × folds, a final one each, and patch networks for counts.

    The method `fusion` has no units: it follows from the predictions of the others.

    encoders: of the cohort, read by MIL methods where the run names no input.  Raises InputError for an unknown task or
    method, and for a method that cannot read the input.
    """
    numbers = [task for task in training.tasks if training.task(task).is_number]
    for method in training.methods:
        if not is_method(method):
            remedy = f"choose from {', '.join(method_names())}, or install the package that adds it"
            raise InputError(f"no method is called {method!r}", None, remedy)
        if numbers and not predicts_numbers(method):
            remedy = f"choose from {', '.join(filter(predicts_numbers, mil_method_names()))}"
            raise InputError(f"{method} does not predict a number, as {numbers[0]} asks", None, remedy)
    cells = [cell for task in training.tasks for method in training.methods if method != FUSION
             for cell in _cells(task, method, training.inputs, tuple(encoders))]  # fmt: skip
    if FUSION in training.methods:
        _check_fusion(training.tasks, cells)
    for task, method, input_name in cells:
        settings = method_settings(method, method_kind(method, input_name), training)
        check_ordered(training.task(task), getattr(settings, "ordinal", "none"))
    return units_of_cells(cells, [*range(training.folds), FINAL_FOLD], patch_network(training))


def _check_fusion(tasks: Iterable[str], cells: Iterable[Cell]) -> None:
    """Refuse a fusion without another method that predicts slides for each task. Raises InputError."""
    read = {task for task, method, input_name in cells if method_kind(method, input_name) != "patch"}
    for task in tasks:
        if task not in read:
            what = f"{FUSION} has no other method to read that predicts the slides of {task}"
            raise InputError(what, None, "add --method, such as clam-sb")


def check_ordered(task: Task, ordinal: str) -> None:
    """Refuse an ordinal loss for a task whose classes have no order, or are two. Raises InputError."""
    if ordinal != "none" and task.name not in ORDERED_TASKS:
        what = f"--option ordinal={ordinal} needs ordered classes, which {task.name} does not have"
        raise InputError(what, None, f"omit the option, or train for {', '.join(ORDERED_TASKS)}")


def patch_network(training: Training) -> str:
    """Return the network whose patch classes are counted in this run."""
    return training.patch_network or PATCH_NET


def patches_per_edge(training: Training, input_name: str) -> int:
    """Return how many patches begin within the edge of one in this run; 1: they do not overlap."""
    return training.low_overlap if input_name == LOW_RESOLUTION else 1


def units_of_cells(cells: Iterable[Cell], folds: Iterable[int], network: str = PATCH_NET) -> UnitPlan:
    """Return the units of these cells in these folds, with the patch networks that counts need.

    network: classifies the patches that are counted.
    """
    cells = list(cells)
    counted = [input_name for _, method, input_name in cells if method_kind(method, input_name) == "counts"]
    patch_cells = [(PATCH_TASK, network, input_name) for input_name in counted]
    units = [Unit(*cell, fold) for cell in dict.fromkeys([*patch_cells, *cells]) for fold in folds]
    order: Mapping[MethodKind, int] = {"patch": 0, "image": 1, "mil": 2, "counts": 3}
    return UnitPlan(tuple(sorted(units, key=lambda unit: order[method_kind(unit.method, unit.input)])))


def _cells(task: str, method: str, inputs: tuple[str, ...], encoders: tuple[str, ...]) -> Iterator[Cell]:
    """Yield a cell for each input that the method can read; for its default input where the run names none."""
    if method in COUNTS_METHODS and task not in HER2_TASKS:
        raise InputError(f"{method} counts HER2 patches, {task} has none", None, "use another method for this task")
    if method == "majority-vote" and task != PATCH_TASK:
        return
    readable = [input_name for input_name in inputs if _reads(method, input_name)]
    if inputs and not readable:
        raise InputError(
            f"{method} reads none of the inputs {', '.join(inputs)}", None, "add one that it reads, or omit --input"
        )
    for input_name in readable or _default_inputs(method, encoders):
        yield (PATCH_TASK if classifies_patches(method, input_name) else task), method, input_name


def _default_inputs(method: str, encoders: tuple[str, ...]) -> tuple[str, ...]:
    if is_network(method):
        return ("thumbnail-224",)
    return ("patches-low",) if method in COUNTS_METHODS else encoders


def _reads(method: str, input_name: str) -> bool:
    try:
        method_kind(method, input_name)
    except InputError:
        return False
    return True
