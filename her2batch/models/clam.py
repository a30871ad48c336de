"""CLAM: clustering-constrained attention over the instances of a bag, with one branch or one a class.

Lu et al., Nature Biomedical Engineering 5, 555 (2021), doi 10.1038/s41551-020-00682-w; smooth top-1 SVM loss: Berrada,
Zisserman, Kumar, ICLR 2018, eq. 9 for k = 1.

    h_n = dropout(relu(W1 x_n))                                  512 wide
    a_n = softmax_n(w · (tanh(V h_n) ⊙ sigmoid(U h_n)))          256 wide
    z   = Σ a_n h_n,   logits = W2 z                             one branch
    z_c = Σ a_nc h_n,  logit_c = w_c · z_c                       one a class
    loss = 0.7 · cross-entropy(logits) + 0.3 · mean over classes of the instances' loss

Instance loss: for the bag's own class, the k instances of highest attention are separated from the k of lowest; for
every other class, where classes exclude each other, its k highest are trained as negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from her2batch.models.attention import (
    GatedAttention,
    MilOutput,
    RandomGenerator,
    at_least_float32,
    embed_instances,
    init_xavier,
    linear_in_dtype,
    mask_padding,
)
from her2batch.models.ordinal.links import build_link, target_loss
from her2batch.settings import MilSettings, Ordinal

WIDTH, GATE = 512, 256
"""Widths of instances and of their gate (methods.md §4; CLAM's size `small`)."""


@dataclass(frozen=True)
class ClamShape:
    """The shape of a CLAM network and its training constants.

    dim: length of an embedding.  branches: an attention branch for each class, or one for all.  k: instances of highest
    and of lowest attention in the instance loss.  bag_weight: weight of the bag's loss.
    ordinal: link of the bag's logits.
    """

    dim: int
    n_classes: int
    branches: bool
    dropout: float = 0.25
    k: int = 8
    bag_weight: float = 0.7
    ordinal: Ordinal = "none"


class Clam(nn.Module):
    """CLAM-SB and CLAM-MB."""

    def __init__(self, shape: ClamShape) -> None:
        super().__init__()
        self.shape = shape
        n = shape.n_classes
        self.embed = nn.Linear(shape.dim, WIDTH)
        self.attention = GatedAttention(WIDTH, GATE, n if shape.branches else 1, shape.dropout)
        self.classify = nn.Linear(WIDTH, n)  # one branch: all rows read z; a branch per class: row c reads z_c
        self.instances = nn.Linear(WIDTH, 2 * n)  # class c: columns 2c (out) and 2c + 1 (in)
        init_xavier(self)
        self.link = build_link(shape.ordinal, n)

    def forward(
        self,
        bag: torch.Tensor,
        label: int | None = None,
        rng: RandomGenerator | None = None,
        size: int | None = None,
        target: torch.Tensor | None = None,
    ) -> MilOutput:
        """Classify one bag, (N, dim) float32 or bfloat16. rng: for dropout.  See MilModel.

        target: distribution over the classes, (C,), that the bag's loss uses in place of the label.
        """
        h = embed_instances(bag, self.embed, self.shape.dropout, rng)  # (N, 512)
        attention = torch.softmax(mask_padding(self.attention(h, rng), size), dim=1)  # (K, N)
        z = at_least_float32(attention.to(h.dtype) @ h)  # (K, 512)
        logits = linear_in_dtype(z, self.classify)[0]
        if self.shape.branches:
            logits = (z * self.classify.weight).sum(1) + self.classify.bias
        logits = self.link(logits)
        if label is None:
            return MilOutput(logits, attention[:, :size])
        bag_loss = target_loss(logits[None], label, target)
        instance_loss = self._instance_loss(h, attention[:, :size], label)
        weight = self.shape.bag_weight
        return MilOutput(logits, attention[:, :size], weight * bag_loss + (1 - weight) * instance_loss)

    def _instance_loss(self, h: torch.Tensor, attention: torch.Tensor, label: int) -> torch.Tensor:
        """Return the mean clustering loss over classes, in one product. h: (≥ N, 512).  attention: (K, N)."""
        n, k = self.shape.n_classes, max(1, min(self.shape.k, attention.shape[1] // 2))
        rows = attention if self.shape.branches else attention.expand(n, -1)  # (C, N)
        high = rows.topk(k, dim=1).indices  # (C, k)
        own_low = rows[label].topk(k, largest=False).indices
        others = [c for c in range(n) if c != label and n > 2]  # of two, the negative has no look of its own
        picked = torch.cat([high[label], own_low, *(high[c] for c in others)])
        weight, bias = self.instances.weight.view(n, 2, WIDTH), self.instances.bias.view(n, 2)
        of = torch.tensor([label] * (2 * k) + [c for c in others for _ in range(k)], device=h.device)
        scores = torch.einsum("id,ijd->ij", at_least_float32(h[picked]), weight[of]) + bias[of]  # (I, 2)
        wanted = torch.zeros(len(of), dtype=torch.long, device=h.device)
        wanted[:k] = 1
        each = smooth_top1(scores, wanted)  # (I,)
        own, rest = each[: 2 * k].mean(), each[2 * k :].view(len(others), k).mean(1).sum()
        return (own + rest) / (1 + len(others))


def build_single_branch(dim: int, n_classes: int, settings: MilSettings) -> Clam:
    """Return CLAM-SB with fresh weights: one attention branch for all classes."""
    return _build(dim, n_classes, settings, False)


def build_multi_branch(dim: int, n_classes: int, settings: MilSettings) -> Clam:
    """Return CLAM-MB with fresh weights: an attention branch for each class."""
    return _build(dim, n_classes, settings, True)


def _build(dim: int, n_classes: int, settings: MilSettings, branches: bool) -> Clam:
    weights = (settings.dropout, settings.k, settings.bag_weight)
    return Clam(ClamShape(dim, n_classes, branches, *weights, settings.ordinal))


def smooth_top1(scores: torch.Tensor, wanted: torch.Tensor, tau: float = 1.0, alpha: float = 1.0) -> torch.Tensor:
    """Smooth top-1 SVM loss: τ log Σ_j exp((s_j + α [j ≠ y]) / τ) − s_y. scores: (n, classes).  wanted: (n,) → (n,)."""
    right = scores.gather(1, wanted[:, None])[:, 0]
    margin = alpha * (1 - F.one_hot(wanted, scores.shape[1]))
    return tau * torch.logsumexp((scores + margin) / tau, dim=1) - right
