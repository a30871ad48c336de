"""MIL methods by name. A new one is one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import nn

from her2batch.errors import InputError
from her2batch.models.clam import Clam, ClamShape
from her2batch.models.dtfd import Distillation, Dtfd, DtfdShape
from her2batch.settings import MilSettings

Build = Callable[[int, int, MilSettings], nn.Module]


def _clam(branches: bool) -> Build:
    def make(dim: int, n_classes: int, settings: MilSettings) -> nn.Module:
        return Clam(ClamShape(dim, n_classes, branches, settings.dropout, settings.k, settings.bag_weight))

    return make


def _dtfd(distil: Distillation) -> Build:
    def make(dim: int, n_classes: int, settings: MilSettings) -> nn.Module:
        return Dtfd(DtfdShape(dim, n_classes, distil, settings.pseudo_bags, settings.splits_at_test))

    return make


MODELS: Final[dict[str, Build]] = {
    "clam-sb": _clam(False),
    "clam-mb": _clam(True),
    "dtfd-afs": _dtfd("afs"),
    "dtfd-maxs": _dtfd("maxs"),
    "dtfd-maxmins": _dtfd("maxmins"),
}


def build_mil_network(method: str, dim: int, n_classes: int, settings: MilSettings) -> Any:
    """A network with fresh weights, from torch's generator. Raises InputError for an unknown method."""
    if method not in MODELS:
        raise InputError(f"no MIL method is called {method!r}", None, f"choose from {', '.join(MODELS)}")
    return MODELS[method](dim, n_classes, settings)
