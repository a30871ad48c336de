"""Train one fold of a MIL method: a pure function of bags, labels, settings and a seed.

One bag per step, as in the papers. Products in bfloat16 where the processor has it; weights and optimiser in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from her2batch.errors import InputError
from her2batch.models.attention import MilModel, RandomGenerator, product_dtype
from her2batch.models.mil_registry import build_mil_network, mil_method
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
    run_epochs,
    unpack_optimiser,
)
from her2batch.training.recipes.random_streams import random_stream

Rows = NDArray[np.int64]

RELEASE_EVERY = 16
"""Bags after which the pages of the mapped file are released."""


def fit_mil_network(
    method: str,
    bags: Bags,
    fold: Fold,
    settings: MilSettings,
    device: str = "cpu",
    checkpoint: Path | None = None,
    report: ProgressCallback = lambda _: None,
) -> FitResult:
    """Train on one fold of the bags. checkpoint, report: see `run_epochs`."""
    learner = _Learner(method, bags, fold, settings, device)
    stopping = Stopping(settings.epochs, settings.patience, settings.least_epochs)
    return run_epochs(learner, stopping, checkpoint, report)


def feed_bags(bags: Bags, rows: Rows, device: str) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield bags on the device in the dtype of its products, (≥ N, dim) padded with zeros, and the N of each.

    On a GPU the next bag is copied while the network works on this one.
    """
    dtype, kind = product_dtype(device), torch.device(device).type
    ahead: tuple[torch.Tensor, int] | None = None
    for count, row in enumerate(rows, start=1):
        if count % RELEASE_EVERY == 0:
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
    """A MIL network in training. See `fit_loop.Learner`."""

    def __init__(self, method: str, bags: Bags, fold: Fold, settings: MilSettings, device: str) -> None:
        self._bags, self._fold, self._settings, self._device = bags, fold, settings, device
        self._method, self._scale = mil_method(method), fold.scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold.seed)
            self._net = build_mil_network(method, bags.dim, fold.n_classes, settings).to(device)
        if fold.targets is not None and "target" not in inspect.signature(self._net.forward).parameters:
            what = f"the network of MIL method {method!r} computes its own loss, which takes no smoothed labels"
            raise InputError(what, None, "omit --disagreement and --readers, or let the network return logits alone")
        tiers = self._net.tiers() if hasattr(self._net, "tiers") else [list(self._net.parameters())]
        self._optimisers = [
            torch.optim.Adam(tier, settings.lr, weight_decay=settings.weight_decay, fused=True) for tier in tiers
        ]

    def epoch(self, number: int) -> float:
        rng, training, labels = random_stream(self._fold.seed, number), self._fold.train, self._fold.labels
        shuffled = self._method.sampling == "shuffled"
        shuffled = shuffled or self._fold.number  # numbers have no classes to balance
        order = rng.permutation(len(training)) if shuffled else draw_class_balanced(labels[training], rng)
        rows = training[order]
        for optimiser in self._optimisers:
            optimiser.param_groups[0]["lr"] = self._settings.lr * self._lr_factor(number)
        self._net.train()
        total = torch.zeros((), device=self._device)
        for row, (bag, n) in zip(rows, feed_bags(self._bags, rows, self._device), strict=True):
            total += self._step(bag, n, row, rng)
        return float(total) / len(rows)

    def _lr_factor(self, epoch: int) -> float:
        drop = self._method.lr_drop
        return drop[1] if drop is not None and epoch > drop[0] else 1.0

    def _step(self, bag: torch.Tensor, size: int, row: Any, rng: RandomGenerator) -> torch.Tensor:
        label, targets = self._fold.labels[row], self._fold.targets
        if self._fold.number:
            loss: Any = self._number_loss(self._net(bag, None, rng, size).logits, label)
        elif targets is None:
            loss = self._net(bag, int(label), rng, size).loss
        else:
            loss = self._net(bag, int(label), rng, size, torch.from_numpy(targets[row]).to(self._device)).loss
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self._method.clip_norm is not None:
            for optimiser in self._optimisers:
                clip_gradients(optimiser.param_groups[0]["params"], self._method.clip_norm)
        for optimiser in self._optimisers:
            optimiser.step()
        return loss.detach()  # type: ignore[no-any-return]

    def _number_loss(self, logits: torch.Tensor, numbers: Any) -> torch.Tensor:
        """Return the mean squared error of scaled numbers. logits: (…, 1).  numbers: (…)."""
        assert self._scale is not None
        mean, deviation = self._scale
        target = torch.as_tensor((numbers - mean) / deviation, dtype=torch.float32, device=logits.device)
        return F.mse_loss(logits[..., 0].float(), target)

    @torch.inference_mode()
    def validate(self) -> float:
        self._net.eval()
        rows = self._fold.val
        logits = torch.stack([self._net(bag, size=n).logits for bag, n in feed_bags(self._bags, rows, self._device)])
        if self._fold.number:
            return float(self._number_loss(logits, self._fold.labels[rows]))
        wanted = self._fold.labels if self._fold.targets is None else self._fold.targets
        return float(F.cross_entropy(logits, torch.from_numpy(wanted[rows]).to(self._device)))

    def state(self) -> Tensors:
        packed = {f"net/{key}": tensor for key, tensor in self._net.state_dict().items()}
        for k, optimiser in enumerate(self._optimisers):
            packed |= {f"optimiser{k}/{key}": tensor for key, tensor in pack_optimiser(optimiser).items()}
        return packed

    def restore(self, state: Tensors) -> None:
        parts: dict[str, Tensors] = {}
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        self._net.load_state_dict(parts["net"])
        for k, optimiser in enumerate(self._optimisers):
            unpack_optimiser(optimiser, parts[f"optimiser{k}"])

    def weights(self) -> Tensors:
        return {key: tensor.detach().cpu().clone() for key, tensor in self._net.state_dict().items()}


def clip_gradients(parameters: list[torch.nn.Parameter], largest: float) -> None:
    """Clip gradients as `clip_grad_norm_` does, without the pass over gradients on the CPU that are within the limit.

    There torch multiplies them by 1: 1 ms of a step of DTFD-MIL. On a GPU, asking for the norm would cost more.
    """
    if parameters[0].is_cuda:
        torch.nn.utils.clip_grad_norm_(parameters, largest)
        return
    norm = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    if bool(largest / (norm + 1e-6) < 1):
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)


@torch.inference_mode()
def predict_bags(
    net: MilModel,
    bags: Bags,
    rows: Rows,
    n_classes: int,
    device: str = "cpu",
    scale: tuple[float, float] | None = None,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Return probabilities, (len(rows), C), and for each bag the attention (N,) of its most likely class.

    scale: of a network whose target is a number, see `Fold.scale`; the first are then numbers, (len(rows), 1).
    """
    p, attention = [], []
    for bag, n in feed_bags(bags, rows, device):
        out = net(bag, size=n)
        if scale is not None:
            p.append(scale[0] + scale[1] * out.logits.float().cpu().numpy())
        else:
            p.append(torch.softmax(out.logits, 0).cpu().numpy())
        branch = int(p[-1].argmax()) if len(out.attention) > 1 else 0
        attention.append(out.attention[branch].cpu().numpy())
    return np.array(p, np.float32).reshape(len(rows), n_classes), attention
