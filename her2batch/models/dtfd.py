"""DTFD-MIL: a first tier over pseudo-bags, a second tier over features distilled from each of them.

Zhang et al., CVPR 2022, arXiv 2203.12081. Symbols as in the paper:

    h_n = relu(W1 x_n)                                           512 wide, no bias
    tier 1, in each of M pseudo-bags: a = gated attention (128 wide), softmax in the pseudo-bag;
            F = Σ a_n h_n,  logits = W2 F,  cross-entropy with the slide's label, mean over pseudo-bags
    distilled, one set a pseudo-bag:
            AFS      F itself
            MaxS     h of the instance whose own class probability, softmax(W2 (a_n h_n)), is highest
            MaxMinS  of the highest and of the lowest
    tier 2  the same over the distilled features: gated attention, sum, linear, cross-entropy

For MaxS and MaxMinS the published code uses the probability of the last class. This module does so with two classes;
with more it uses the class that tier 1 predicts for the pseudo-bag, as the last class is then only one of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
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
)
from her2batch.models.ordinal.links import build_link, target_loss
from her2batch.settings import MilSettings, Ordinal

WIDTH, GATE = 512, 128
"""Widths of instances and of the gates of both tiers."""

Distillation = Literal["afs", "maxs", "maxmins"]


@dataclass(frozen=True)
class DtfdShape:
    """The shape of a DTFD-MIL network.

    splits: random partitions whose probabilities are averaged at test.  ordinal: link of the logits of both tiers.
    """

    dim: int
    n_classes: int
    distil: Distillation = "afs"
    pseudo_bags: int = 4
    splits: int = 5
    ordinal: Ordinal = "none"


class Dtfd(nn.Module):
    """Both tiers of DTFD-MIL. Each tier has its own optimiser, hence its own list of parameters (`tiers`)."""

    def __init__(self, shape: DtfdShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(shape.dim, WIDTH, bias=False)
        self.attention = GatedAttention(WIDTH, GATE, 1)
        self.classify = nn.Linear(WIDTH, shape.n_classes)
        self.attention2 = GatedAttention(WIDTH, GATE, 1)
        self.classify2 = nn.Linear(WIDTH, shape.n_classes)
        init_xavier(self)
        self.link, self.link2 = (build_link(shape.ordinal, shape.n_classes) for _ in range(2))

    def tiers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of tier 1 and of tier 2."""
        second = [p for part in (self.attention2, self.classify2, self.link2) for p in part.parameters()]
        ids = {id(one) for one in second}
        return [[one for one in self.parameters() if id(one) not in ids], second]

    def forward(
        self,
        bag: torch.Tensor,
        label: int | None = None,
        rng: RandomGenerator | None = None,
        size: int | None = None,
        target: torch.Tensor | None = None,
    ) -> MilOutput:
        """Classify one bag, (N, dim). With a label, one random split is trained on; without, fixed splits are averaged.

        Without a label, logits are logarithms of the mean probability. attention, of sum 1: the product of both tiers'
        for AFS; that of tier 1 alone for the others, whose tier 2 reads single instances.  target: distribution over
        the classes, (C,), for the losses in place of the label.  See MilModel.
        """
        h = embed_instances(bag, self.embed, 0.0, None)  # (N, 512)
        scores = self.attention(h)[0]  # (N,)
        n = len(bag) if size is None else size
        if label is not None:
            assert rng is not None
            out = self._train(h, scores, self._part(n, len(bag), rng), label, target)
            return out._replace(attention=out.attention[:, :n])
        # seeded by the bag's size alone, so that a slide has the same splits everywhere
        fixed = np.random.Generator(np.random.SFC64(n))
        splits = self.shape.splits
        part = torch.cat([self._part(n, len(bag), fixed) for _ in range(splits)])  # (S · M, N): h is read once
        logits, attention = self._second(h, *self._first(h, scores, part), splits)
        p = torch.softmax(logits, 1).mean(0)
        return MilOutput(p.clamp_min(1e-30).log(), attention.mean(0)[None, :n])

    def _part(self, n: int, rows: int, rng: RandomGenerator) -> torch.Tensor:
        """Return pseudo-bags of the first n of a bag's rows, (M, rows) bool; padding is in none."""
        return F.pad(split_into_pseudo_bags(n, self.shape.pseudo_bags, rng), (0, rows - n))

    def _train(
        self, h: torch.Tensor, scores: torch.Tensor, part: torch.Tensor, label: int, target: torch.Tensor | None
    ) -> MilOutput:
        first, a = self._first(h, scores, part)
        logits, attention = self._second(h, first, a)
        loss1, loss2 = target_loss(first, label, target), target_loss(logits, label, target)
        return MilOutput(logits[0], attention, loss1 + loss2)  # no gradient of loss2 reaches tier 1: see _second

    def _first(self, h: torch.Tensor, scores: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run tier 1. part: (M, N) bool → logits (M, C), attention (M, N) in each pseudo-bag."""
        a = torch.softmax(scores.masked_fill(~part.to(scores.device), -torch.inf), dim=1)  # (M, N)
        return self.link(linear_in_dtype(at_least_float32(a.to(h.dtype) @ h), self.classify)), a

    def _second(
        self, h: torch.Tensor, first: torch.Tensor, a: torch.Tensor, splits: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run tier 2 on the features that tier 1 distilled, without gradient to tier 1.

        first, a: of the pseudo-bags of all S splits, (S · M, C) and (S · M, N).  Returns logits (S, C) and attention
        (S, N).
        """
        h, a, first = at_least_float32(h.detach()), a.detach(), first.detach()
        distilled, per = (a @ h, 1) if self.shape.distil == "afs" else self._picked(h, first, a)
        b = torch.softmax(self.attention2(distilled).view(splits, -1), dim=1)  # (S, M · per)
        pooled = (b[:, None] @ distilled.view(splits, -1, WIDTH))[:, 0]  # (S, 512)
        shares = b.detach().view(splits, -1, per).sum(2)  # (S, M)
        attention = (shares[:, None] @ a.view(splits, -1, a.shape[1]))[:, 0]
        return self.link2(linear_in_dtype(pooled, self.classify2)), attention

    def _picked(self, h: torch.Tensor, first: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the instances that the class activation of each pseudo-bag selects, (M · per, 512), and `per`."""
        classes = self.classify.weight.shape[0]
        chosen = first.argmax(1) if classes > 2 else torch.full((len(a),), classes - 1, device=h.device)  # (M,)
        rows = []
        with torch.no_grad():
            plain = h @ self.classify.weight.t()  # (N, C); a_n (W2 h_n) is W2 (a_n h_n)
            for weights, c in zip(a, chosen, strict=True):
                inside = weights.nonzero()[:, 0] if bool((weights > 0).any()) else torch.arange(len(h))
                p = torch.softmax(self.link(plain[inside] * weights[inside, None] + self.classify.bias), dim=1)[:, c]
                ends = [p.argmax()] if self.shape.distil == "maxs" else [p.argmax(), p.argmin()]
                rows += [inside[one] for one in ends]
        return h[torch.stack(rows)], len(rows) // len(a)


def build_afs(dim: int, n_classes: int, settings: MilSettings) -> Dtfd:
    """Return DTFD-MIL (AFS) with fresh weights."""
    return _build(dim, n_classes, settings, "afs")


def build_maxs(dim: int, n_classes: int, settings: MilSettings) -> Dtfd:
    """Return DTFD-MIL (MaxS) with fresh weights."""
    return _build(dim, n_classes, settings, "maxs")


def build_maxmins(dim: int, n_classes: int, settings: MilSettings) -> Dtfd:
    """Return DTFD-MIL (MaxMinS) with fresh weights."""
    return _build(dim, n_classes, settings, "maxmins")


def _build(dim: int, n_classes: int, settings: MilSettings, distillation: Distillation) -> Dtfd:
    further = (settings.pseudo_bags, settings.splits_at_test, settings.ordinal)
    return Dtfd(DtfdShape(dim, n_classes, distillation, *further))


def split_into_pseudo_bags(n: int, parts: int, rng: RandomGenerator) -> torch.Tensor:
    """Split n instances into random pseudo-bags of nearly equal size, none empty: (min(parts, n), n) bool."""
    parts = min(parts, n)
    member = np.empty(n, np.int64)
    member[rng.permutation(n)] = np.arange(n) * parts // n
    return torch.from_numpy(member)[None] == torch.arange(parts)[:, None]
