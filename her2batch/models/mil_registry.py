"""MIL methods, one row each: the network, how it is trained, its settings and their search space.

A new method is one row of MIL_METHODS, or a row that an installed package adds (entry point group "her2batch.mil").
Rows are read without torch: a row names its network as text, which is imported when a network is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from her2batch.errors import InputError
from her2batch.plugins import Package, Registry, resolve
from her2batch.settings import MilSettings
from her2batch.tasks import COUNTS_METHODS, FUSION, MEMBRANE_RULE, NETWORK_METHODS

if TYPE_CHECKING:
    from torch import nn

GROUP: Final = "her2batch.mil"
"""Entry point group of methods that other packages add."""


@dataclass(frozen=True)
class LogUniform:
    """Search domain: uniform in the logarithm, from low to high."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """Search domain: one of these values, with equal probability."""

    values: tuple[Any, ...]


SearchSpace = Mapping[str, LogUniform | Choice]
"""Setting → values that `tune` tries."""

MIL_SPACE: Final[SearchSpace] = {
    "lr": LogUniform(1e-5, 1e-3),
    "weight_decay": LogUniform(1e-6, 1e-3),
    "dropout": Choice((0.0, 0.25, 0.5)),
    "bag_weight": Choice((0.5, 0.7, 0.9)),
    "k": Choice((4, 8, 16)),
    "pseudo_bags": Choice((2, 4, 8)),
}
"""Search space of CLAM and DTFD-MIL. All methods share it, so that one seed draws the same trials for each of them; a
method ignores the settings that it does not have."""

NetworkBuilder = Callable[..., "nn.Module"]
"""(length of an embedding, number of classes, settings) → a network. It may do without the settings.

The network follows `attention.MilModel`, or takes a bag, (N, D) float32, alone and returns logits, (C,), or logits and
attention, (N,): see `attention.BagClassifier`. A class of such networks is a builder.
"""


@dataclass(frozen=True)
class MilMethod:
    """A MIL method.

    build: a NetworkBuilder, or its name as "package.module:function".
    settings: the model of its settings: MilSettings or a subclass with further fields, each an `--option NAME=VALUE`.
    defaults: settings whose default differs from the model's.
    shape: settings that decide what a trained network computes. A bundle keeps them, and all that `settings` adds.
    space: what `tune` searches.
    sampling: how an epoch draws its bags: class-balanced with replacement, or each once in random order.
    lr_drop: (epoch, factor): after this epoch the learning rate is multiplied by the factor.
    clip_norm: largest norm of the gradient of a step; None: no limit.
    numbers: whether it can predict a number: its logits without a label, one of them, can be trained on.

    A network with a method `tiers()` that returns lists of parameters has one optimiser for each list.
    """

    build: NetworkBuilder | str
    settings: type[MilSettings] = MilSettings
    defaults: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[str, ...] = ()
    space: SearchSpace = field(default_factory=lambda: MIL_SPACE)
    sampling: Literal["class-balanced", "shuffled"] = "class-balanced"
    lr_drop: tuple[int, float] | None = None
    clip_norm: float | None = None
    numbers: bool = True


def _dtfd(builder: str) -> MilMethod:
    """Return the row of a DTFD-MIL variant: its published training (methods.md §4; Zhang 2022)."""
    return MilMethod(
        f"her2batch.models.dtfd:{builder}",
        defaults={"weight_decay": 1e-4},
        shape=("pseudo_bags", "splits_at_test"),
        sampling="shuffled",
        lr_drop=(100, 0.2),
        clip_norm=5.0,
        numbers=False,
    )


MIL_METHODS: Final[dict[str, MilMethod]] = {
    "clam-sb": MilMethod("her2batch.models.clam:build_single_branch"),
    "clam-mb": MilMethod("her2batch.models.clam:build_multi_branch"),
    "dtfd-afs": _dtfd("build_afs"),
    "dtfd-maxs": _dtfd("build_maxs"),
    "dtfd-maxmins": _dtfd("build_maxmins"),
}
"""Method → its row. Approach 1 of the paper: attention over the embeddings of a slide's tiles."""


def _as_method(row: Any) -> Any:
    """Return the row of a class of networks; anything else as it is."""
    return MilMethod(row) if isinstance(row, type) and callable(getattr(row, "forward", None)) else row


_registry: Final = Registry(
    "MIL method",
    GROUP,
    (MilMethod,),
    MIL_METHODS,
    (*NETWORK_METHODS, *COUNTS_METHODS, MEMBRANE_RULE, FUSION),
    _as_method,
)


def mil_method_names() -> tuple[str, ...]:
    """Return the names of all MIL methods, built-in ones first. No other package is imported."""
    return _registry.names()


def is_mil_method(name: str) -> bool:
    """Return whether a MIL method has this name."""
    return name in _registry


def mil_method(name: str) -> MilMethod:
    """Return a method's row. Raises InputError for an unknown name and for a package that cannot be loaded."""
    method = _registry.find(name)
    if method is None:
        raise InputError(f"no MIL method is called {name!r}", None, f"choose from {', '.join(mil_method_names())}")
    return method


def mil_package(name: str) -> Package | None:
    """Return the package that adds a method; None for a built-in or unknown one and one registered at run time."""
    return _registry.package_of(name)


def register_mil(name: str, spec: MilMethod | type[nn.Module]) -> None:
    """Add a MIL method to this program, by name, for `train`, `tune` and `score`: a row, or a class of networks.

    The Ray workers that this program starts get it too; their machines must be able to import what it refers to. A
    bundle that is trained with it can be used where the same name is registered. For the command line, and for every
    process on its own, let a package add it: entry point group "her2batch.mil".
    Raises InputError for a name that is taken or not valid, and for anything but a MilMethod.
    """
    _registry.register(name, _as_method(spec))


def build_mil_network(method: str, dim: int, n_classes: int, settings: MilSettings) -> Any:
    """Return a network with fresh weights from torch's generator.

    dim: length of an embedding.  Raises InputError for an unknown method and for code that cannot be imported.
    """
    row = mil_method(method)
    try:
        build: NetworkBuilder = resolve(row.build)
    except (ImportError, AttributeError) as error:
        package = mil_package(method)
        owner = f" of package {package.name} {package.version}" if package is not None else ""
        remedy = f"run `pip install --upgrade {package.name}`" if package is not None else "install what it imports"
        what = f"the network of MIL method {method!r}{owner} cannot be imported ({error})"
        raise InputError(what, None, remedy) from error
    network = build(dim, n_classes, settings) if _takes_settings(build) else build(dim, n_classes)
    if "label" in inspect.signature(network.forward).parameters:
        if settings.ordinal != "none" and not is_builtin_mil(method):
            what = f"MIL method {method!r} computes its own loss, so --option ordinal={settings.ordinal} has no effect"
            raise InputError(what, None, "omit the option, or let the network return logits alone")
        return network
    from her2batch.models.attention import BagClassifier

    return BagClassifier(network, method, n_classes, settings.ordinal)


def _takes_settings(build: NetworkBuilder) -> bool:
    """Return whether a builder has a third positional parameter."""
    parameters = inspect.signature(build).parameters.values()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 or any(one.kind is one.VAR_POSITIONAL for one in parameters)


def shape_settings(method: str) -> set[str]:
    """Return the names of the settings that a bundle keeps: `shape`, and those that the method's own model adds."""
    row = mil_method(method)
    return set(row.shape) | (set(row.settings.model_fields) - set(MilSettings.model_fields))


def is_builtin_mil(name: str) -> bool:
    """Return whether a MIL method is one of her2batch's own."""
    return _registry.is_builtin(name)
