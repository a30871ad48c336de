"""DTFD-MIL: both tiers against their formulas, the distilled features, and no gradient from tier 2 to tier 1."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from her2batch.models.dtfd import Dtfd, DtfdShape, split_into_pseudo_bags


def dtfd(**other: object) -> Dtfd:
    torch.manual_seed(0)
    return Dtfd(DtfdShape(**{"dim": 6, "n_classes": 3, "pseudo_bags": 4, "splits": 3, **other}))


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


@given(n=st.integers(1, 60), parts=st.integers(1, 8), seed=st.integers(0, 99))
def test_every_instance_is_in_one_pseudo_bag(n: int, parts: int, seed: int) -> None:
    found = split_into_pseudo_bags(n, parts, stream(seed))
    sizes = found.sum(1).tolist()
    assert found.sum(0).tolist() == [1] * n
    assert len(sizes) == min(n, parts)
    assert max(sizes) - min(sizes) <= 1


def by_hand(net: Dtfd, bag: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AFS with loops: tier 1's logits (M, C), tier 2's (C,), the attention (N,)."""
    h = torch.relu(bag @ net.embed.weight.t())
    features, logits, shares = [], [], torch.zeros(len(part), len(bag))
    for k, member in enumerate(part):
        own = h[member]
        a = torch.softmax(net.attention(own)[0], 0)
        shares[k, member] = a
        features.append(a @ own)
        logits.append(net.classify(features[-1]))
    distilled = torch.stack(features)
    b = torch.softmax(net.attention2(distilled)[0], 0)
    return torch.stack(logits), net.classify2(b @ distilled), b @ shares


def test_the_training_loss_is_the_sum_of_both_tiers() -> None:
    net, bag = dtfd(), torch.randn(13, 6)
    first, second, attention = by_hand(net, bag, split_into_pseudo_bags(13, 4, stream(5)))
    out = net(bag, 2, stream(5))
    target = torch.tensor([2])
    loss = F.cross_entropy(first, target.expand(4)) + F.cross_entropy(second[None], target)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(out.attention[0], attention, atol=1e-6)


def test_a_prediction_is_the_mean_over_fixed_splits() -> None:
    net, bag = dtfd(), torch.randn(13, 6)
    fixed = stream(13)
    p = [torch.softmax(by_hand(net, bag, split_into_pseudo_bags(13, 4, fixed))[1], 0) for _ in range(3)]
    out = net(bag)
    assert torch.allclose(torch.softmax(out.logits, 0), torch.stack(p).mean(0), atol=1e-6)
    assert torch.equal(out.logits, net(bag).logits)
    assert out.attention.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("distil", ["afs", "maxs", "maxmins"])
def test_tier_2_has_no_gradient_to_tier_1(distil: str) -> None:
    net, bag = dtfd(distil=distil), torch.randn(13, 6)
    net(bag, 1, stream()).loss.backward()
    with_both = net.embed.weight.grad.clone()
    net.zero_grad()
    with torch.no_grad():
        for one in net.tiers()[1]:
            one.mul_(3.0)
    net(bag, 1, stream()).loss.backward()
    assert torch.equal(with_both, net.embed.weight.grad)
    assert all(one.grad is not None for one in net.parameters())


def test_every_parameter_is_in_one_tier() -> None:
    net = dtfd()
    first, second = ({id(one) for one in tier} for tier in net.tiers())
    assert not first & second
    assert first | second == {id(one) for one in net.parameters()}


def test_the_instance_with_the_highest_class_activation_is_distilled() -> None:
    net = dtfd(distil="maxs", n_classes=2, pseudo_bags=1, splits=1)
    bag = torch.randn(7, 6)
    h = torch.relu(bag @ net.embed.weight.t())
    a = torch.softmax(net.attention(h)[0], 0)
    p = torch.softmax((a[:, None] * h) @ net.classify.weight.t() + net.classify.bias, 1)[:, 1]  # the last class
    expected = net.classify2(h[p.argmax()])  # one instance: tier 2's attention is 1
    assert torch.allclose(torch.softmax(net(bag).logits, 0), torch.softmax(expected, 0), atol=1e-6)


def test_with_three_classes_the_predicted_class_selects_instances() -> None:
    net = dtfd(distil="maxmins", pseudo_bags=1, splits=1)
    bag = torch.randn(7, 6)
    h = torch.relu(bag @ net.embed.weight.t())
    a = torch.softmax(net.attention(h)[0], 0)
    c = net.classify(a @ h).argmax()
    p = torch.softmax((a[:, None] * h) @ net.classify.weight.t() + net.classify.bias, 1)[:, c]
    both = h[torch.stack([p.argmax(), p.argmin()])]
    b = torch.softmax(net.attention2(both)[0], 0)
    assert torch.allclose(torch.softmax(net(bag).logits, 0), torch.softmax(net.classify2(b @ both), 0), atol=1e-6)


@pytest.mark.parametrize("distil", ["afs", "maxs", "maxmins"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_small_bags_are_accepted(distil: str, n: int) -> None:
    net, bag = dtfd(distil=distil), torch.randn(n, 6)
    assert torch.isfinite(net(bag, 0, stream()).loss)
    assert net(bag).attention.shape == (1, n)


def test_gradients_equal_numerical_gradients() -> None:
    net, bag = dtfd().double(), torch.randn(9, 6, dtype=torch.float64)
    for name in ("attention.gate.weight", "classify.weight"):
        value, rest = (
            net.get_parameter(name).detach()[:2].clone().requires_grad_(),
            net.get_parameter(name).detach()[2:],
        )

        def loss(part: torch.Tensor, name: str = name, rest: torch.Tensor = rest) -> torch.Tensor:
            out = torch.func.functional_call(net, {name: torch.cat([part, rest])}, (bag, 1, stream(2)))
            return out.loss - F.cross_entropy(out.logits[None], torch.tensor([1]))  # tier 1's part

        assert torch.autograd.gradcheck(loss, (value,), fast_mode=True), name


def test_padding_does_not_change_the_result() -> None:
    net, bag = dtfd(), torch.randn(11, 6)
    filled = torch.cat([bag, torch.zeros(5, 6)])
    plain, out = net(bag), net(filled, size=11)
    assert torch.allclose(plain.logits, out.logits, atol=1e-6)
    assert torch.allclose(plain.attention, out.attention, atol=1e-6)
    assert out.attention.shape[1] == 11
