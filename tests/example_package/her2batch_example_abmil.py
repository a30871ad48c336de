"""Attention-based MIL (Ilse et al., ICML 2018) for her2batch: a class of networks is all that a method needs."""

import torch
from torch import nn


class Abmil(nn.Module):
    """Classify the mean of a bag that is weighted by attention."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(dim, 64), nn.Tanh(), nn.Linear(64, 1))
        self.head = nn.Linear(dim, n_classes)

    def forward(self, bag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """bag: (tiles, dim). Returns logits, (n_classes,), and attention, (tiles,)."""
        attention = torch.softmax(self.attention(bag)[:, 0], dim=0)
        return self.head(attention @ bag), attention
