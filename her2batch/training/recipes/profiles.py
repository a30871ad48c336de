"""Profiles of a run: settings of its methods other than the paper's, and what `tune` searches for them.

`small-cohort` is for image networks on some hundred slides, from ImageNet weights. `laptop` trains every row of the
paper's tables on a cohort of its size within hours on two cores: the paper's four networks as the smallest of their
families with random weights, EfficientNet-Lite0 from ImageNet beside them, and fewer epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from her2batch.models.mil_registry import Choice, LogUniform, SearchSpace
from her2batch.settings import Training
from her2batch.tasks import FURTHER_NETWORKS

SMALL_COHORT: Final[Mapping[str, Any]] = {
    "epochs": 20, "warmup": 1, "patience": 8, "batch": 8, "lr": 1e-3, "weight_decay": 1e-2, "layer_decay": 0.8,
    "frozen_epochs": 2, "unfreeze_epochs": 4, "fixed_norm": True, "ema": 0.9, "stain_jitter": 0.05,
    "right_angles": 0.5,
}  # fmt: skip
"""The paper's options are the defaults; docs/training.md compares both."""

LAPTOP_IMAGENET: Final[Mapping[str, Any]] = {
    **SMALL_COHORT, "epochs": 4, "patience": 4, "batch": 16, "frozen_epochs": 1, "unfreeze_epochs": 1,
    "trained_layers": 0.4,
}  # fmt: skip
"""Of the networks with ImageNet weights: the lower six tenths of the layers keep them, which doubles the rate."""

LAPTOP_SMALL: Final[Mapping[str, Any]] = {
    "epochs": 8, "warmup": 1, "patience": 8, "size": "tiny", "pretrained": "none", "lr": 2e-3,
}  # fmt: skip
"""Of the paper's networks on thumbnails."""

LAPTOP_PATCHES: Final[Mapping[str, Any]] = {**LAPTOP_SMALL, "epochs": 3, "patience": 3}

LAPTOP_MIL: Final[Mapping[str, Any]] = {"epochs": 8, "least_epochs": 0, "patience": 8, "lr": 3e-4}
"""The networks are the full ones. Of up to 200 epochs, 32 CPU hours for all rows, there are 8."""

RUN_DEFAULTS: Final[Mapping[str, Mapping[str, int]]] = {
    "quick": {"patches_per_slide": 24},
    "laptop": {"patches_per_slide": 12, "low_overlap": 4},
}
"""Profile, or the option --quick, → settings of the whole run where the user gives no others."""

PROFILE_SPACES: Final[Mapping[str, SearchSpace]] = {
    "small-cohort": {
        "lr": LogUniform(1e-4, 3e-3),
        "layer_decay": Choice((0.65, 0.8, 0.9)),
        "frozen_epochs": Choice((1, 2, 4)),
        "ema": Choice((0.8, 0.9, 0.98)),
        "stain_jitter": Choice((0.0, 0.05, 0.1)),
        "loss": Choice(("cross-entropy", "weighted", "focal")),
    },
}
"""Profile of a run → what `tune` searches for its image networks, in place of that of the paper's settings."""


def profile_settings(
    profile: str | None, method: str, kind: Literal["mil", "image", "patch", "counts"]
) -> Mapping[str, Any]:
    """Return the settings that a profile gives a method of a kind; nothing without a profile."""
    if profile == "small-cohort":
        return SMALL_COHORT if kind in ("image", "patch") else {}
    if profile != "laptop" or kind == "counts":
        return {}
    if kind == "mil":
        return LAPTOP_MIL
    if method in FURTHER_NETWORKS:
        return LAPTOP_IMAGENET
    return LAPTOP_SMALL if kind == "image" else LAPTOP_PATCHES


def with_run_defaults(training: Training) -> Training:
    """Return the settings of a run with the defaults of its profile, or of --quick, where they are the usual ones."""
    values = dict(RUN_DEFAULTS.get(training.profile or "", {})) | dict(RUN_DEFAULTS["quick"] if training.quick else {})
    values = {
        name: value for name, value in values.items() if getattr(training, name) == Training.model_fields[name].default
    }
    return training.model_copy(update=values) if values else training
