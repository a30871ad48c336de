"""Gated attention over the instances of a bag and its dropout, shared by CLAM and DTFD-MIL; the interface of networks.

Networks keep their weights in float32. Matrix products run in the dtype of the bag: bfloat16 where the processor
multiplies it in hardware (4 × float32 on a core with avx512_bf16), float32 elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from her2batch.errors import InputError
from her2batch.models.ordinal.links import LINK_MODULE, build_link, target_loss
from her2batch.settings import Ordinal

RandomGenerator = np.random.Generator

BF16_ONE = np.int16(0x3F80)
"""The bits of 1 in bfloat16."""


class MilOutput(NamedTuple):
    """The result of a network for one bag of N instances.

    logits: (C,) float32.  attention: (K, N) float32, sums to 1 over N; K is 1, or C where each class has its own.
    loss: the training loss, scalar; None without a label.
    """

    logits: torch.Tensor
    attention: torch.Tensor
    loss: torch.Tensor | None = None


class MilModel(Protocol):
    """A network over bags: what a MIL method must build."""

    def __call__(
        self, bag: torch.Tensor, label: int | None = None, rng: RandomGenerator | None = None, size: int | None = None
    ) -> MilOutput:
        """Classify one bag.

        bag: (N, D), N ≥ 1.  label: the slide's class, in training only.  rng: for random choices in training; None: no
        randomness.  size: number of instances; rows of the bag after them are padding (see `padded_size`).
        """


class BagClassifier(nn.Module):
    """A network of another package that knows bags only, as a MilModel.

    Its forward takes a bag, (N, D) float32, and returns logits, (C,), or logits and attention, (N,) or (K, N), of sum 1
    over N; K is 1, or C. Its loss is the cross-entropy, after the ordinal link where there is one. Its tensors keep
    their names in files. Random choices, such as dropout, depend on the seed of the training alone.
    """

    def __init__(self, network: nn.Module, method: str, n_classes: int, ordinal: Ordinal = "none") -> None:
        super().__init__()
        if ordinal != "none":
            network.add_module(
                LINK_MODULE, build_link(ordinal, n_classes)
            )  # its tensors are in the network's own files
        self.network, self._method, self._n_classes = network, method, n_classes

    def forward(
        self,
        bag: torch.Tensor,
        label: int | None = None,
        rng: RandomGenerator | None = None,
        size: int | None = None,
        target: torch.Tensor | None = None,
    ) -> MilOutput:
        """Classify one bag. See MilModel. target: distribution over the classes, (C,), for the loss.

        Raises InputError where the network gives something of another shape.
        """
        bag = bag[: len(bag) if size is None else size].float()
        if rng is None:
            found = self.network(bag)
        else:
            with torch.random.fork_rng(devices=[bag.device] if bag.is_cuda else []):
                torch.manual_seed(int(rng.integers(2**62)))
                found = self.network(bag)
        logits, attention = self._checked(found, len(bag))
        if hasattr(self.network, LINK_MODULE):
            logits = getattr(self.network, LINK_MODULE)(logits)
        if label is None:
            return MilOutput(logits, attention)
        return MilOutput(logits, attention, target_loss(logits[None], label, target))

    def _checked(self, found: Any, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits, (C,), and attention, (K, n), of what the network gave. Raises InputError."""
        logits, attention = found if isinstance(found, tuple) else (found, None)
        if not isinstance(logits, torch.Tensor) or logits.numel() != self._n_classes:
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            self._refuse(f"logits {shape}", f"({self._n_classes},), one for each class, and 1 for a number")
        if attention is None:
            return logits.reshape(-1).float(), torch.full((1, n), 1 / n, device=logits.device)
        if attention.numel() not in (n, n * self._n_classes):
            self._refuse(f"attention {tuple(attention.shape)} for {n} tiles", f"({n},), of sum 1")
        attention = attention.float().reshape(-1, n)
        if not self.training and not bool(torch.isclose(attention.sum(1), attention.new_ones(()), atol=1e-3).all()):
            self._refuse("attention whose sum is not 1", "a softmax over the tiles")
        return logits.reshape(-1).float(), attention

    def _refuse(self, found: str, expected: str) -> NoReturn:
        what = f"the network of MIL method {self._method!r} gives {found}"
        raise InputError(what, None, f"its forward must return {expected}")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's own tensors, by its own names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the network's own tensors."""
        return self.network.load_state_dict(*args, **kwargs)


def product_dtype(device: str) -> torch.dtype:
    """Return the dtype in which a device multiplies fastest without the narrow range of float16."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _fast_bf16() else torch.float32


def _fast_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16 products; without them oneDNN supports it, but slower."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def linear_in_dtype(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Apply a layer in the dtype of x: (…, D) → (…, E)."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def padded_size(n: int) -> int:
    """Return the number of rows that a bag of n is padded to: 16 sizes between two powers of two, 3 % more on average.

    oneDNN caches compiled products for every shape: with 500 bags of 500 sizes a process held 0.9 GB.
    """
    step = max(64, 1 << max(0, n.bit_length() - 5))
    return -(-n // step) * step


def mask_padding(scores: torch.Tensor, size: int | None) -> torch.Tensor:
    """Set the scores of padding to −∞, so that their share of a softmax is 0: (K, N) → (K, N)."""
    if size is None or size == scores.shape[1]:
        return scores
    return scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= size, -torch.inf)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Convert to float32 for sums and softmax; float64 is kept, for checks of gradients."""
    return x if x.dtype == torch.float64 else x.float()


def embed_instances(x: torch.Tensor, layer: nn.Linear, dropout: float, rng: RandomGenerator | None) -> torch.Tensor:
    """Return dropout(relu(layer(x))): (N, D) → (N, E) in the dtype of x."""
    if rng is None or dropout == 0:
        return torch.relu_(linear_in_dtype(x, layer))
    cut = round(dropout * 256)
    scale = 256 / (256 - cut)  # applied to the weights, as relu(s · z) = s · relu(z): a thousandth of the numbers
    bias = torch.zeros(len(layer.weight), device=x.device) if layer.bias is None else layer.bias
    mask = _dropout_mask((len(x), len(layer.weight)), cut, rng, x)
    embed: Any = _Embed.apply  # some versions of torch do not declare its type
    out: torch.Tensor = embed(x, (layer.weight * scale).to(x.dtype), (bias * scale).to(x.dtype), mask)
    return out


class GatedAttention(nn.Module):
    """Attention scores of instances (Ilse 2018, eq. 9): w · (tanh(V h) ⊙ sigmoid(U h)). V and U are one product.

    dropout: of each of the two factors, which is the same as 1 − (1 − dropout)² of their product: 112/256 for 1/4.
    """

    def __init__(self, dim: int, hidden: int, branches: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.cut = round((1 - (1 - dropout) ** 2) * 256)
        self.gate = nn.Linear(dim, 2 * hidden)  # rows: V, then U
        self.score = nn.Linear(hidden, branches)

    def forward(self, h: torch.Tensor, rng: RandomGenerator | None = None) -> torch.Tensor:
        """(N, dim) → (branches, N) float32, before the softmax."""
        shape = (len(h), self.score.in_features)
        dropping = rng is not None and self.cut > 0
        mask = _dropout_mask(shape, self.cut, rng, h) if rng is not None and dropping else None
        gate: Any = _Gate.apply
        gated = gate(h, self.gate.weight.to(h.dtype), self.gate.bias.to(h.dtype), mask)
        weight = self.score.weight * (256 / (256 - self.cut)) if dropping else self.score.weight
        return at_least_float32(F.linear(gated, weight.to(h.dtype), self.score.bias.to(h.dtype))).t()


class _Embed(torch.autograd.Function):
    """relu(x W + b) ⊙ mask, in place; backward in one pass where autograd needs three. No gradient for x."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        h = F.linear(x, weight, bias).relu_().mul_(mask)
        ctx.save_for_backward(x, h)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, h = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(grads[0], h, 0)  # 0 where h is, dropped or not
        return None, g.t() @ x, _column_sums(g), None


class _Gate(torch.autograd.Function):
    """tanh(h V + c) ⊙ sigmoid(h U + d) ⊙ mask, both factors in place in one buffer. weight: rows of V, then of U."""

    @staticmethod
    def forward(
        ctx: Any, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        both = F.linear(h, weight, bias)
        t, s = both.chunk(2, dim=1)
        t.tanh_()
        s.sigmoid_()
        ctx.save_for_backward(h, weight, both, mask)
        return t * s if mask is None else (t * s).mul_(mask)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, weight, both, mask = ctx.saved_tensors
        t, s = both.chunk(2, dim=1)
        g = grads[0] if mask is None else grads[0] * mask
        out = torch.empty_like(both)
        left, right = out.chunk(2, dim=1)
        torch.ops.aten.tanh_backward.grad_input(g * s, t, grad_input=left)
        torch.ops.aten.sigmoid_backward.grad_input(g * t, s, grad_input=right)
        return out @ weight, out.t() @ h, _column_sums(out), None


def _column_sums(x: torch.Tensor) -> torch.Tensor:
    """Sum over rows, (N, E) → (E,), as a product: five times as fast as the sum of bfloat16 rows."""
    return (x.new_ones(1, len(x)) @ x)[0]


def _dropout_mask(shape: tuple[int, int], cut: int, rng: RandomGenerator, like: torch.Tensor) -> torch.Tensor:
    """Return the mask of dropout in the dtype of `like`: 1 keeps an element.  cut: share dropped, in 256ths.

    On the CPU one random byte decides about each element and NumPy computes the mask: 0.6 ms for a million elements,
    against 6.7 ms with torch's bernoulli, which would be a third of a training step.
    """
    if like.is_cuda:
        generator = torch.Generator(like.device).manual_seed(int(rng.integers(2**62)))
        noise = torch.randint(256, shape, generator=generator, device=like.device, dtype=torch.uint8)
        return (noise >= cut).to(like.dtype)
    n = shape[0] * shape[1]
    mask = rng.integers(0, 2**64, -(-n // 8), np.uint64).view(np.uint8)[:n] >= cut  # half the time of bytes()
    if like.dtype == torch.bfloat16:  # torch itself takes 0.9 ms for a million from bool
        return torch.from_numpy(np.multiply(mask, BF16_ONE, dtype=np.int16)).view(torch.bfloat16).view(shape)
    return torch.from_numpy(mask).to(like.dtype).view(shape)


def init_xavier(net: nn.Module) -> None:
    """Initialise linear layers with Xavier normal weights and zero biases, as CLAM and DTFD-MIL do."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
