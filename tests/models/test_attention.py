"""Parts of MIL networks: fused forward and backward against autograd, dropout, gated attention against its formula."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from her2batch.models.attention import GatedAttention, embed_instances, padded_size, product_dtype


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


class Fixed:
    """A stream that always draws these bytes: dropout one can check by hand."""

    def __init__(self, values: bytes) -> None:
        self.values = values

    def integers(self, low: int, high: int, n: int, dtype: type) -> np.ndarray:
        return np.frombuffer((self.values * 8 * n)[: 8 * n], dtype)


def test_attention_equals_the_formula() -> None:
    attention = GatedAttention(dim=1, hidden=1, branches=1)
    with torch.no_grad():
        attention.gate.weight[:] = torch.tensor([[1.0], [2.0]])  # V = 1, U = 2
        attention.gate.bias[:] = torch.tensor([0.0, 1.0])
        attention.score.weight[:] = 3.0
        attention.score.bias[:] = 0.5
    found = attention(torch.tensor([[0.7]]))
    assert found.item() == pytest.approx(3 * np.tanh(0.7) / (1 + np.exp(-(2 * 0.7 + 1))) + 0.5, rel=1e-6)


def test_gradients_of_the_gate_equal_numerical_gradients() -> None:
    torch.manual_seed(0)
    attention = GatedAttention(6, 4, 2, dropout=0.25).double()
    h = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, stream()), (h,))
    assert torch.autograd.gradcheck(lambda x: attention(x), (h,))
    weight = attention.gate.weight

    def of_weight(w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight.copy_(w.detach())
        return torch.func.functional_call(attention, {"gate.weight": w}, (h.detach(), stream()))

    assert torch.autograd.gradcheck(of_weight, (weight.detach().clone().requires_grad_(),))


def test_gradients_of_the_embedding_equal_autograd() -> None:
    torch.manual_seed(1)
    layer, x = nn.Linear(7, 5).double(), torch.randn(9, 7, dtype=torch.float64)
    mine = embed_instances(x, layer, 0.25, stream(3))
    mine.square().sum().backward()
    found = layer.weight.grad.clone(), layer.bias.grad.clone()
    layer.zero_grad()
    drawn = stream(3).integers(0, 2**64, 6, np.uint64).view(np.uint8)[:45]
    stays = torch.from_numpy((drawn >= 64).reshape(9, 5).astype(float))
    plain = torch.relu(layer(x)) * stays / 0.75
    assert torch.allclose(mine, plain)
    plain.square().sum().backward()
    assert torch.allclose(found[0], layer.weight.grad)
    assert torch.allclose(found[1], layer.bias.grad)


def test_dropout_drops_a_quarter_and_keeps_the_mean() -> None:
    layer = nn.Linear(1, 400)
    with torch.no_grad():
        layer.weight[:] = 1.0
        layer.bias[:] = 0.0
    h = embed_instances(torch.ones(500, 1), layer, 0.25, stream()).detach()
    assert float((h == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(h.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.unique(h).tolist() == pytest.approx([0, 4 / 3])


def test_dropout_applies_to_both_factors_of_the_gate() -> None:
    attention = GatedAttention(1, 2, 1, dropout=0.25)
    assert attention.cut == 112  # 1 − 0.75² = 112/256
    with torch.no_grad():
        attention.score.bias[:] = 0.0
    assert attention(torch.ones(1, 1), Fixed(bytes([111]))).item() == 0
    kept = attention(torch.ones(1, 1), Fixed(bytes([112]))).item()
    assert kept == pytest.approx(attention(torch.ones(1, 1)).item() * 256 / 144, rel=1e-6)


def test_bfloat16_gives_nearly_the_same_result() -> None:
    torch.manual_seed(2)
    layer, attention, x = nn.Linear(64, 32), GatedAttention(32, 16, 1, 0.25), torch.randn(40, 64)
    plain = attention(embed_instances(x, layer, 0.25, stream(4)), stream(5))
    small = attention(embed_instances(x.bfloat16(), layer, 0.25, stream(4)), stream(5))
    assert torch.allclose(plain, small, atol=0.05)
    assert small.dtype == torch.float32


def test_product_dtype_of_the_cpu_is_float32_or_bfloat16() -> None:
    assert product_dtype("cpu") in (torch.float32, torch.bfloat16)


@given(st.integers(1, 200_000))
def test_bags_are_padded_by_at_most_a_few_percent(n: int) -> None:
    assert n <= padded_size(n) < max(n + 64, n * 1.07)
    assert padded_size(padded_size(n)) == padded_size(n)


def test_there_are_few_padded_sizes() -> None:
    assert len({padded_size(n) for n in range(1000, 16_000)}) <= 70
