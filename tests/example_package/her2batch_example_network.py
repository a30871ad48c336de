"""Mean pooling of a bag with two linear layers, as a network that her2batch trains."""

from __future__ import annotations

import numpy as np
import torch
from her2batch_example import MeanPoolSettings
from torch import nn
from torch.nn import functional as F

from her2batch.models.attention import MilOutput


class MeanPool(nn.Module):
    """Classify the mean of a bag's embeddings; every tile has the same attention."""

    def __init__(self, dim: int, n_classes: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.scores = nn.Linear(hidden, n_classes)

    def forward(
        self,
        bag: torch.Tensor,
        label: int | None = None,
        rng: np.random.Generator | None = None,
        size: int | None = None,
    ) -> MilOutput:
        """bag: (N, dim), of which the first `size` rows count. label: the class in training. See attention.MilModel."""
        n = len(bag) if size is None else size
        mean = bag[:n].float().mean(dim=0)
        logits = self.scores(torch.tanh(self.hidden(mean)))
        attention = torch.full((1, n), 1 / n, device=bag.device)
        if label is None:
            return MilOutput(logits, attention)
        return MilOutput(logits, attention, F.cross_entropy(logits[None], torch.tensor([label], device=bag.device)))


def build_mean_pool(dim: int, n_classes: int, settings: MeanPoolSettings) -> MeanPool:
    """Return the network with fresh weights."""
    return MeanPool(dim, n_classes, settings.hidden)
