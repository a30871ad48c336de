"""One fold of a MIL method: a pure function of bags, labels, settings and a seed.

One bag a step, as in the papers. Products in bfloat16 where the processor has it; weights and optimiser in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from her2batch.models.attention import MilModel, RandomGenerator, product_dtype
from her2batch.models.mil_registry import build_mil_network
from her2batch.settings import MilSettings
from her2batch.training.bag_data import Bags
from her2batch.training.fit_loop import (
    FitResult,
    Fold,
    ProgressCallback,
    Stopping,
    Tensors,
    draw_class_balanced,
    pack_optimiser,
    random_stream,
    run_epochs,
    unpack_optimiser,
)

Rows = NDArray[np.int64]

RELEASE = 16
"""Bags after which their pages are let go."""

CLIP = 5.0
"""Largest norm of a gradient (DTFD-MIL)."""

DROP_AT, DROP = 100, 0.2
"""From this epoch on DTFD-MIL's steps are so much smaller."""


def fit_mil_network(
    method: str,
    bags: Bags,
    fold: Fold,
    settings: MilSettings,
    device: str = "cpu",
    checkpoint: Path | None = None,
    report: ProgressCallback = lambda _: None,
) -> FitResult:
    """Train on one fold of the bags. checkpoint, report: see loop.train."""
    learner = _Learner(method, bags, fold, settings, device)
    stopping = Stopping(settings.epochs, settings.patience, settings.least_epochs)
    return run_epochs(learner, stopping, checkpoint, report)


def feed_bags(bags: Bags, rows: Rows, device: str) -> Iterator[tuple[torch.Tensor, int]]:
    """Bags on the device, in the dtype of its products, (≥ N, dim) with zeros below, and N of each.

    On a GPU the next bag travels while the network has this one.
    """
    dtype, kind = product_dtype(device), torch.device(device).type
    ahead: tuple[torch.Tensor, int] | None = None
    for count, row in enumerate(rows, start=1):
        if count % RELEASE == 0:
            bags.release()
        bag, n = bags.of(int(row)), bags.sizes[int(row)]
        if kind != "cuda":
            yield bag.to(dtype), n
            continue
        following = bag.clone().pin_memory().to(device, non_blocking=True)
        if ahead is not None:
            yield ahead[0].to(dtype), ahead[1]
        ahead = following, n
    if ahead is not None:
        yield ahead[0].to(dtype), ahead[1]


class _Learner:
    """A MIL network that learns. See loop.Learner."""

    def __init__(self, method: str, bags: Bags, fold: Fold, settings: MilSettings, device: str) -> None:
        self._bags, self._fold, self._settings, self._device = bags, fold, settings, device
        self._two_tiers = method.startswith("dtfd")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold.seed)
            self._net = build_mil_network(method, bags.dim, fold.n_classes, settings).to(device)
        tiers = self._net.tiers() if self._two_tiers else [list(self._net.parameters())]
        self._optimisers = [
            torch.optim.Adam(tier, settings.lr, weight_decay=settings.weight_decay, fused=True) for tier in tiers
        ]

    def epoch(self, number: int) -> float:
        draw, training, labels = random_stream(self._fold.seed, number), self._fold.train, self._fold.labels
        order = draw.permutation(len(training)) if self._two_tiers else draw_class_balanced(labels[training], draw)
        rows = training[order]
        for optimiser in self._optimisers:
            factor = DROP if self._two_tiers and number > DROP_AT else 1.0
            optimiser.param_groups[0]["lr"] = self._settings.lr * factor
        self._net.train()
        total = torch.zeros((), device=self._device)
        for row, (bag, n) in zip(rows, feed_bags(self._bags, rows, self._device), strict=True):
            total += self._step(bag, n, int(labels[row]), draw)
        return float(total) / len(rows)

    def _step(self, bag: torch.Tensor, size: int, label: int, draw: RandomGenerator) -> torch.Tensor:
        loss = self._net(bag, label, draw, size).loss
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self._two_tiers:
            for optimiser in self._optimisers:
                torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], CLIP)
        for optimiser in self._optimisers:
            optimiser.step()
        return loss.detach()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def validate(self) -> float:
        self._net.eval()
        rows = self._fold.val
        logits = torch.stack([self._net(bag, size=n).logits for bag, n in feed_bags(self._bags, rows, self._device)])
        return float(F.cross_entropy(logits, torch.from_numpy(self._fold.labels[rows]).to(self._device)))

    def state(self) -> Tensors:
        packed = {f"net/{key}": one for key, one in self._net.state_dict().items()}
        for k, optimiser in enumerate(self._optimisers):
            packed |= {f"optimiser{k}/{key}": one for key, one in pack_optimiser(optimiser).items()}
        return packed

    def restore(self, state: Tensors) -> None:
        parts: dict[str, Tensors] = {}
        for key, one in state.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = one
        self._net.load_state_dict(parts["net"])
        for k, optimiser in enumerate(self._optimisers):
            unpack_optimiser(optimiser, parts[f"optimiser{k}"])

    def weights(self) -> Tensors:
        return {key: one.detach().cpu().clone() for key, one in self._net.state_dict().items()}


@torch.inference_mode()
def predict_bags(
    net: MilModel, bags: Bags, rows: Rows, n_classes: int, device: str = "cpu"
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Probabilities (len(rows), C) and, for each bag, the attention (N,) that led to its most likely class."""
    p, attention = [], []
    for bag, n in feed_bags(bags, rows, device):
        out = net(bag, size=n)
        p.append(torch.softmax(out.logits, 0).cpu().numpy())
        branch = int(p[-1].argmax()) if len(out.attention) > 1 else 0
        attention.append(out.attention[branch].cpu().numpy())
    return np.array(p, np.float32).reshape(len(rows), n_classes), attention
