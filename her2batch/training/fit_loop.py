"""Epochs, early stopping, checkpoints: what every fit by gradient shares. No Ray, no files but the checkpoint.

Random choices of an epoch come from (seed, epoch) alone, so a fit that goes on from a checkpoint ends in the same bytes
as one that was never disturbed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from her2batch.files.atomic import atomic_write

Tensors = dict[str, torch.Tensor]

SAVE_EVERY_S = 30.0
"""A checkpoint is written no more often: a kill costs a unit half a minute."""


@dataclass(frozen=True)
class Progress:
    """Where a fit stands after an epoch. Epochs count from 1; losses are means over bags or pictures."""

    epoch: int = 0
    train_loss: float = math.inf
    val_loss: float = math.inf
    best_epoch: int = 0
    best_loss: float = math.inf


@dataclass(frozen=True)
class Stopping:
    """When a fit ends: at `epochs`, or after `patience` ones without a smaller validation loss, not before `least`."""

    epochs: int
    patience: int
    least: int = 0

    def ended(self, at: Progress) -> bool:
        """Whether there is no further epoch."""
        idle = at.epoch - at.best_epoch >= self.patience and at.epoch >= self.least
        return at.epoch >= self.epochs or (idle and at.epoch > 0)


class Learner(Protocol):
    """A network that learns. Everything random in `epoch(n)` comes from the learner's seed and n."""

    def epoch(self, number: int) -> float:
        """One pass over the training part; its mean loss."""

    def validate(self) -> float:
        """Mean loss over the validation part."""

    def state(self) -> Tensors:
        """All that is needed to go on: weights and optimiser, as tensors on any device."""

    def restore(self, state: Tensors) -> None:
        """Go on from such a state."""

    def weights(self) -> Tensors:
        """The network's weights, copied to the CPU."""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Fold:
    """What a fit learns from: labels (n,) of all examples, positions of those that train and that validate, a seed."""

    labels: NDArray[np.int64]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    n_classes: int
    seed: int


@dataclass(frozen=True)
class FitResult:
    """A trained network: weights of its best epoch (CPU), and how it got there."""

    weights: Tensors
    progress: Progress


def run_epochs(
    learner: Learner,
    stopping: Stopping,
    checkpoint: Path | None = None,
    report: ProgressCallback = lambda _: None,
    writes: bool = True,
) -> FitResult:
    """Epochs until `stopping` ends them; the weights with the smallest validation loss.

    checkpoint: a file to go on from and to keep up to date.  report: called after each epoch; what it raises ends the
    fit.  writes: False in a process that only helps another: it goes on from the checkpoint and leaves it alone.
    Raises FloatingPointError when a loss is no number.
    """
    at, best = Progress(), learner.weights()
    found = _load(checkpoint) if checkpoint is not None else None
    if found is not None:
        at, best, state = found
        learner.restore(state)
    saved = time.monotonic()
    while not stopping.ended(at):
        number = at.epoch + 1
        train_loss, val_loss = learner.epoch(number), learner.validate()
        if not math.isfinite(train_loss) or not math.isfinite(val_loss):
            raise FloatingPointError(f"epoch {number} has a loss of {train_loss}, in validation {val_loss}")
        better = val_loss < at.best_loss
        if better:
            best = learner.weights()
        best_epoch, best_loss = (number, val_loss) if better else (at.best_epoch, at.best_loss)
        at = Progress(number, train_loss, val_loss, best_epoch, best_loss)
        if checkpoint is not None and writes and time.monotonic() - saved > SAVE_EVERY_S:
            _save(checkpoint, at, best, learner.state())
            saved = time.monotonic()
        report(at)
    return FitResult(best, at)


def random_stream(seed: int, *keys: int) -> np.random.Generator:
    """A stream of its own for every (seed, keys): SFC64, seeded through SeedSequence."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *keys])))


def draw_class_balanced(labels: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """Positions of one epoch of class-balanced sampling, with replacement, as many as there are labels (CLAM)."""
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return draw.choice(len(labels), len(labels), replace=True, p=weights / weights.sum())


def _save(path: Path, at: Progress, best: Tensors, state: Tensors) -> None:
    tensors = {f"best/{key}": one for key, one in best.items()} | {f"state/{key}": one for key, one in state.items()}
    flat = {key: one.detach().cpu().contiguous() for key, one in tensors.items()}
    with atomic_write(path) as part:
        part.write_bytes(save(flat, {"progress": json.dumps(asdict(at))}))


def _load(path: Path) -> tuple[Progress, Tensors, Tensors] | None:
    """None when there is no checkpoint, or one that can't be read: the fit then begins anew."""
    try:
        with safe_open(path, "pt") as file:
            at = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    parts: dict[str, Tensors] = {"best": {}, "state": {}}
    for key, one in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = one
    return at, parts["best"], parts["state"]


def pack_optimiser(optimiser: torch.optim.Optimizer) -> Tensors:
    """An optimiser's state as flat tensors: PARAMETER.NAME → tensor."""
    state = optimiser.state_dict()["state"]
    return {f"{k}.{name}": torch.as_tensor(one) for k, row in state.items() for name, one in row.items()}


def unpack_optimiser(optimiser: torch.optim.Optimizer, packed: Tensors) -> None:
    """Give an optimiser back what pack_optimiser took."""
    state: dict[int, Tensors] = {}
    for key, one in packed.items():
        k, _, name = key.partition(".")
        state.setdefault(int(k), {})[name] = one
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
