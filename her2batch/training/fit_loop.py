"""Epochs, early stopping and checkpoints, shared by all training by gradient. No Ray, no files but the checkpoint.

The random choices of an epoch depend on (seed, epoch) alone, so that training that is resumed from a checkpoint gives
the same bytes as training without interruption.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from her2batch.files.atomic import atomic_write

Tensors = dict[str, torch.Tensor]

SAVE_EVERY_S = 30.0
"""Seconds between two checkpoints: a killed unit loses at most half a minute of work."""


@dataclass(frozen=True)
class Progress:
    """The state of training after an epoch. Epochs count from 1; losses are means over bags or images."""

    epoch: int = 0
    train_loss: float = math.inf
    val_loss: float = math.inf
    best_epoch: int = 0
    best_loss: float = math.inf


@dataclass(frozen=True)
class Stopping:
    """The end of training: `epochs`, or `patience` epochs without a smaller validation loss, from `least` on."""

    epochs: int
    patience: int
    least: int = 0

    def ended(self, at: Progress) -> bool:
        """Return whether no further epoch follows."""
        idle = at.epoch - at.best_epoch >= self.patience and at.epoch >= self.least
        return at.epoch >= self.epochs or (idle and at.epoch > 0)


class Learner(Protocol):
    """A network in training. The random choices of `epoch(n)` depend on the learner's seed and n alone."""

    def epoch(self, number: int) -> float:
        """Train on the training part once; returns the mean loss."""

    def validate(self) -> float:
        """Return the mean loss over the validation part."""

    def state(self) -> Tensors:
        """Return all that is needed to resume, weights and optimiser, as tensors on any device."""

    def restore(self, state: Tensors) -> None:
        """Continue from a state that `state` returned."""

    def weights(self) -> Tensors:
        """Return the network's weights, copied to the CPU."""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Fold:
    """The data of one training: labels (n,) of all examples, positions of the training and validation parts, a seed.

    labels: int64 classes, or float64 numbers where `number` is set; then n_classes, the outputs of a network, is 1.
    targets: (n, C), a distribution over the classes for each example that the losses use in place of its label.
    """

    labels: NDArray[Any]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    n_classes: int
    seed: int
    number: bool = False
    targets: NDArray[np.float32] | None = None

    @property
    def scale(self) -> tuple[float, float] | None:
        """Return mean and standard deviation of the training numbers; a network predicts (number − mean) / deviation.

        None for classes.
        """
        return target_scale(self.labels[self.train]) if self.number else None


def target_scale(numbers: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation of numbers, (n,); 1 where all of them are equal."""
    deviation = float(numbers.std())
    return float(numbers.mean()), deviation if deviation > 0 else 1.0


@dataclass(frozen=True)
class FitResult:
    """A trained network: the weights of its best epoch, on the CPU, the progress at the end, and the losses of epochs.

    history: the mean losses over the training and validation parts, one pair for each epoch.
    """

    weights: Tensors
    progress: Progress
    history: list[tuple[float, float]]


def run_epochs(
    learner: Learner,
    stopping: Stopping,
    checkpoint: Path | None = None,
    report: ProgressCallback = lambda _: None,
    writes: bool = True,
) -> FitResult:
    """Run epochs until `stopping` ends them; returns the weights of the smallest validation loss.

    checkpoint: a file to resume from and to keep up to date.  report: called after each epoch; an exception that it
    raises ends the training.  writes: False in a process that only helps another one: it reads the checkpoint and does
    not write it.  Raises FloatingPointError when a loss is not finite.
    """
    at, best = Progress(), learner.weights()
    history: list[tuple[float, float]] = []
    found = _load(checkpoint) if checkpoint is not None else None
    if found is not None:
        at, history, best, state = found
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
        history.append((train_loss, val_loss))
        if checkpoint is not None and writes and time.monotonic() - saved > SAVE_EVERY_S:
            _save(checkpoint, at, history, best, learner.state())
            saved = time.monotonic()
        report(at)
    return FitResult(best, at, history)


def draw_class_balanced(labels: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """Return the positions of one epoch of class-balanced sampling with replacement, as many as labels (CLAM)."""
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return draw.choice(len(labels), len(labels), replace=True, p=weights / weights.sum())


def _save(path: Path, at: Progress, history: list[tuple[float, float]], best: Tensors, state: Tensors) -> None:
    parts = {"best": best, "state": state}
    tensors = {f"{part}/{key}": tensor for part, named in parts.items() for key, tensor in named.items()}
    flat = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_write(path) as part:
        part.write_bytes(save(flat, {"progress": json.dumps(asdict(at)), "history": json.dumps(history)}))


def _load(path: Path) -> tuple[Progress, list[tuple[float, float]], Tensors, Tensors] | None:
    """Return progress, losses, best weights and state of a checkpoint.

    None: there is no checkpoint that can be read; training starts again.
    """
    try:
        with safe_open(path, "pt") as file:
            at = Progress(**json.loads(file.metadata()["progress"]))
            history = [(train, val) for train, val in json.loads(file.metadata()["history"])]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    parts: dict[str, Tensors] = {"best": {}, "state": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return at, history, parts["best"], parts["state"]


def pack_optimiser(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return an optimiser's state as flat tensors: PARAMETER.NAME → tensor."""
    state = optimiser.state_dict()["state"]
    return {f"{k}.{name}": torch.as_tensor(value) for k, row in state.items() for name, value in row.items()}


def unpack_optimiser(optimiser: torch.optim.Optimizer, packed: Tensors) -> None:
    """Load a state that `pack_optimiser` returned into an optimiser."""
    state: dict[int, Tensors] = {}
    for key, tensor in packed.items():
        k, _, name = key.partition(".")
        state.setdefault(int(k), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
