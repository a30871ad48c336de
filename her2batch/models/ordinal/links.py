"""Ordinal outputs of a network: C values of its last layer become logarithms of the probabilities of C ordered classes.

A softmax of logarithms of probabilities gives the probabilities themselves. So everything that reads the logits of a
network (temperature, losses, sets of plausible classes, bundles, ONNX) stays as it is, and the cross-entropy is the
likelihood of the ordinal model.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from her2batch.settings import Ordinal

LINK_MODULE: Final = "ordinal_link"
"""Name of the module in a network, and the start of the names of its tensors in files."""


class CornLink(nn.Module):
    """Conditional probabilities of CORN (Shi, Cao, Raschka, Pattern Analysis and Applications 26, 941, 2023).

    P(y > k | y ≥ k) = σ(f_k) with f_k = r_k+1 − r_k for the network's outputs r, (…, C). For two classes this is the
    softmax.  The paper averages the losses of the C − 1 tasks over their own examples; here each example has the sum
    of its tasks' losses, which is −log P(y), because training takes one slide at a time.
    """

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return log P(y = k), (…, C), in float32 at least."""
        raw = raw if raw.dtype == torch.float64 else raw.float()
        logits = raw[..., 1:] - raw[..., :-1]
        nothing = torch.zeros_like(logits[..., :1])
        reached = torch.cat([nothing, F.logsigmoid(logits).cumsum(-1)], -1)  # log P(y ≥ k)
        return reached + torch.cat([F.logsigmoid(-logits), nothing], -1)


class CumulativeLink(nn.Module):
    """Proportional odds (McCullagh, Journal of the Royal Statistical Society B 42, 109, 1980).

    P(y ≤ k) = σ(θ_k − g), with one score g = Σ c_k r_k / Σ c_k² of the network's outputs r, (…, C), for centred ranks
    c_k = k − (C − 1) / 2, and increasing thresholds θ, which are learned and start at equal shares of the classes.
    """

    ranks: torch.Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        k = torch.arange(1, n_classes) / n_classes
        start = torch.log(k / (1 - k))
        gaps = torch.log(torch.expm1(start[1:] - start[:-1]))  # the inverse of softplus
        self.thresholds = nn.Parameter(torch.cat([start[:1], gaps]))
        ranks = torch.arange(n_classes) - (n_classes - 1) / 2
        self.register_buffer("ranks", ranks / (ranks**2).sum(), persistent=False)

    def ordered_thresholds(self) -> torch.Tensor:
        """Return θ, (C − 1,), increasing."""
        return torch.cat([self.thresholds[:1], F.softplus(self.thresholds[1:])]).cumsum(0)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return log P(y = k), (…, C), in float32 at least.

        σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)), whose logarithm loses no digits far from the thresholds.
        """
        raw = raw if raw.dtype == torch.float64 else raw.float()
        theta = self.ordered_thresholds().to(raw.dtype)
        below = theta - (raw * self.ranks.to(raw.dtype)).sum(-1, keepdim=True)  # logit of P(y ≤ k)
        nothing = torch.zeros_like(below[..., :1])
        between = torch.log(-torch.expm1(theta[:-1] - theta[1:])).expand(*below.shape[:-1], len(theta) - 1)
        inside = torch.cat([nothing, between, nothing], -1)
        return torch.cat([F.logsigmoid(below), nothing], -1) + torch.cat([nothing, F.logsigmoid(-below)], -1) + inside


def build_link(ordinal: Ordinal, n_classes: int) -> nn.Module:
    """Return the module that turns outputs into logits: nothing happens for "none" and for a single output."""
    if ordinal == "none" or n_classes < 2:
        return nn.Identity()
    return CornLink() if ordinal == "corn" else CumulativeLink(n_classes)


def add_link(network: nn.Module, ordinal: Ordinal, n_classes: int) -> nn.Module:
    """Let a network of images return logarithms of probabilities; unchanged for "none". Returns the network."""
    if ordinal != "none":
        network.add_module(LINK_MODULE, build_link(ordinal, n_classes))
        network.register_forward_hook(_apply_link)
    return network


def _apply_link(network: Any, _: Any, raw: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = getattr(network, LINK_MODULE)(raw)
    return out


def target_loss(logits: torch.Tensor, label: int, target: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean cross-entropy of logits, (n, C), with a class, or with a distribution over the classes, (C,)."""
    if target is None:
        return F.cross_entropy(logits, torch.tensor([label], device=logits.device).expand(len(logits)))
    return F.cross_entropy(logits, target.to(logits).expand(len(logits), -1))
