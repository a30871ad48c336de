"""Gated attention over the instances of a bag, and the dropout that goes with it. Bricks of `clam` and `dtfd`.

Networks keep their weights in float32. Products run in the dtype of the bag: bfloat16 where the processor multiplies
it in hardware (4 × float32 on a core with avx512_bf16), float32 elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Draw = np.random.Generator

BF16_ONE = np.int16(0x3F80)
"""The bits of 1 in bfloat16."""


class MilOutput(NamedTuple):
    """What a network says of one bag of N instances.

    logits: (C,) float32.  attention: (K, N) float32, sums to 1 over N; K is 1, or C where each class has its own.
    loss: the whole training loss, scalar; None without a label.
    """

    logits: torch.Tensor
    attention: torch.Tensor
    loss: torch.Tensor | None = None


class MilModel(Protocol):
    """A network over bags."""

    def __call__(
        self, bag: torch.Tensor, label: int | None = None, draw: Draw | None = None, size: int | None = None
    ) -> MilOutput:
        """bag: (N, D), N ≥ 1.  label: the slide's class, to train.  draw: random choices of training; None: none.

        size: instances that count, the first of the bag; what follows them is padding (see `padded`).
        """


def product_dtype(device: str) -> torch.dtype:
    """In which dtype a device multiplies fastest without float16's narrow range."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _fast_bf16() else torch.float32


def _fast_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; oneDNN supports it without them too, but slower."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def linear_in_dtype(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """A layer in the dtype of x: (…, D) → (…, E)."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def padded_size(n: int) -> int:
    """Rows that a bag of n is filled up to: sixteen sizes between a power of two and the next, 3 % more on average.

    oneDNN keeps compiled products for every shape it meets: 500 bags, each of a size of its own, held 0.9 GB a process.
    """
    step = max(64, 1 << max(0, n.bit_length() - 5))
    return -(-n // step) * step


def mask_padding(scores: torch.Tensor, size: int | None) -> torch.Tensor:
    """(K, N) scores with those of padding at −∞, whose share of a softmax is 0."""
    if size is None or size == scores.shape[1]:
        return scores
    return scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= size, -torch.inf)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float32, for sums and softmax; float64 stays, for checks of gradients."""
    return x if x.dtype == torch.float64 else x.float()


def embed_instances(x: torch.Tensor, layer: nn.Linear, dropout: float, draw: Draw | None) -> torch.Tensor:
    """dropout(relu(layer(x))): (N, D) → (N, E) in the dtype of x."""
    if draw is None or dropout == 0:
        return torch.relu(linear_in_dtype(x, layer))
    cut = round(dropout * 256)
    scale = 256 / (256 - cut)  # on the weights, for relu(s · z) = s · relu(z): a thousandth of the numbers
    bias = torch.zeros(len(layer.weight), device=x.device) if layer.bias is None else layer.bias
    stays = _dropout_mask((len(x), len(layer.weight)), cut, draw, x)
    out: torch.Tensor = _Embed.apply(x, (layer.weight * scale).to(x.dtype), (bias * scale).to(x.dtype), stays)
    return out


class GatedAttention(nn.Module):
    """Scores of instances (Ilse 2018, eq. 9): w · (tanh(V h) ⊙ sigmoid(U h)). V and U are one product.

    dropout: of each of the two factors, which is the same as 1 − (1 − dropout)² of their product: 112/256 for 1/4.
    """

    def __init__(self, dim: int, hidden: int, branches: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.cut = round((1 - (1 - dropout) ** 2) * 256)
        self.gate = nn.Linear(dim, 2 * hidden)  # rows: V, then U
        self.score = nn.Linear(hidden, branches)

    def forward(self, h: torch.Tensor, draw: Draw | None = None) -> torch.Tensor:
        """(N, dim) → (branches, N) float32, before the softmax."""
        shape = (len(h), self.score.in_features)
        dropping = draw is not None and self.cut > 0
        stays = _dropout_mask(shape, self.cut, draw, h) if draw is not None and dropping else None
        gated = _Gate.apply(h, self.gate.weight.to(h.dtype), self.gate.bias.to(h.dtype), stays)
        weight = self.score.weight * (256 / (256 - self.cut)) if dropping else self.score.weight
        return at_least_float32(F.linear(gated, weight.to(h.dtype), self.score.bias.to(h.dtype))).t()


class _Embed(torch.autograd.Function):
    """relu(x W + b) where `stays`, in place; backward one pass where autograd takes three. No gradient for x."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stays: torch.Tensor
    ) -> torch.Tensor:
        h = F.linear(x, weight, bias).relu_().mul_(stays)
        ctx.save_for_backward(x, h)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, h = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(grads[0], h, 0)  # 0 where h is, dropped or not
        return None, g.t() @ x, _column_sums(g), None


class _Gate(torch.autograd.Function):
    """tanh(h V + c) ⊙ sigmoid(h U + d) ⊙ stays, both factors in place in one buffer. weight: V's rows, then U's."""

    @staticmethod
    def forward(
        ctx: Any, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stays: torch.Tensor | None
    ) -> torch.Tensor:
        both = F.linear(h, weight, bias)
        t, s = both.chunk(2, dim=1)
        t.tanh_()
        s.sigmoid_()
        ctx.save_for_backward(h, weight, both, stays)
        return t * s if stays is None else (t * s).mul_(stays)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, weight, both, stays = ctx.saved_tensors
        t, s = both.chunk(2, dim=1)
        g = grads[0] if stays is None else grads[0] * stays
        out = torch.empty_like(both)
        left, right = out.chunk(2, dim=1)
        torch.ops.aten.tanh_backward.grad_input(g * s, t, grad_input=left)
        torch.ops.aten.sigmoid_backward.grad_input(g * t, s, grad_input=right)
        return out @ weight, out.t() @ h, _column_sums(out), None


def _column_sums(x: torch.Tensor) -> torch.Tensor:
    """(N, E) → (E,), as a product: five times as fast as a sum over rows of bfloat16."""
    return (x.new_ones(1, len(x)) @ x)[0]


def _dropout_mask(shape: tuple[int, int], cut: int, draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """1 where an element stays, 0 where dropout takes it, in the dtype of `like`; cut: 256ths that go.

    On the CPU one random byte decides an element and NumPy makes the number from it: 0.6 ms for a million of them,
    against 6.7 ms of torch's bernoulli, which would be a third of a training step.
    """
    if like.is_cuda:
        generator = torch.Generator(like.device).manual_seed(int(draw.integers(2**62)))
        noise = torch.randint(256, shape, generator=generator, device=like.device, dtype=torch.uint8)
        return (noise >= cut).to(like.dtype)
    n = shape[0] * shape[1]
    stays = draw.integers(0, 2**64, -(-n // 8), np.uint64).view(np.uint8)[:n] >= cut  # half the time of bytes()
    if like.dtype == torch.bfloat16:  # torch itself takes 0.9 ms for a million from bool
        return torch.from_numpy(np.multiply(stays, BF16_ONE, dtype=np.int16)).view(torch.bfloat16).view(shape)
    return torch.from_numpy(stays).to(like.dtype).view(shape)


def init_xavier(net: nn.Module) -> None:
    """Xavier normal weights, zero biases, as CLAM and DTFD-MIL start."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
