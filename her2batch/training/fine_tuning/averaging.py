"""Exponential moving average of a network's weights, which generalises better and validates more smoothly.

Source: Polyak and Juditsky, SIAM J. Control Optim. 1992; the rising decay of the first steps is that of TensorFlow's
ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

Tensors = dict[str, torch.Tensor]

STEPS = "steps"
"""Name of the number of steps in the state of an average."""


class WeightAverage:
    """The average of a network's tensors over its steps. decay: weight of the average in each step."""

    def __init__(self, net: torch.nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        self.tensors: Tensors = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: torch.nn.Module) -> None:
        """Add the present weights: average ← d · average + (1 − d) · weights, d = min(decay, (1 + n) / (10 + n))."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def in_place_of_weights(self, net: torch.nn.Module) -> Iterator[None]:
        """Give the network the averaged weights for the time of a block, and then its own again."""
        own = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        net.load_state_dict(self.tensors)
        try:
            yield
        finally:
            net.load_state_dict(own)

    def state(self) -> Tensors:
        """Return all that is needed to resume."""
        return {**self.tensors, STEPS: torch.tensor(self._steps)}

    def restore(self, state: Tensors) -> None:
        """Continue from a state that `state` returned."""
        self._steps = int(state[STEPS])
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
