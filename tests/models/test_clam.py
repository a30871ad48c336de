"""CLAM against its formulas, numerical gradients and an independent implementation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from her2batch.models.clam import Clam, ClamShape, smooth_top1


def clam(**other: object) -> Clam:
    torch.manual_seed(0)
    usual = {"dim": 6, "n_classes": 3, "branches": False, "dropout": 0.0, "k": 2}
    return Clam(ClamShape(**{**usual, **other}))


def test_smooth_svm_loss_equals_the_formula() -> None:
    # scores (2, 0), class 0: log(e^2 + e^(0 + 1)) − 2
    loss = smooth_top1(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    assert loss[0].item() == pytest.approx(np.log(np.exp(2) + np.exp(1)) - 2, rel=1e-6)
    assert loss[1].item() == pytest.approx(np.log(np.exp(3) + np.exp(0)) - 0, rel=1e-6)


def test_smooth_svm_loss_tends_to_the_hinge_loss() -> None:
    scores, wanted = torch.tensor([[0.3, 0.8], [2.0, -1.0]], dtype=torch.float64), torch.tensor([0, 0])
    hinge = torch.clamp(1 + scores[:, 1] - scores[:, 0], min=0)
    assert torch.allclose(smooth_top1(scores, wanted, tau=1e-3), hinge, atol=1e-3)


@pytest.mark.parametrize("branches", [False, True])
def test_attention_and_logits_follow_the_formula(branches: bool) -> None:
    net = clam(branches=branches)
    bag = torch.randn(11, 6)
    out = net(bag)
    h = torch.relu(bag @ net.embed.weight.t() + net.embed.bias)
    v, u = (h @ net.attention.gate.weight.t() + net.attention.gate.bias).chunk(2, 1)
    scores = (torch.tanh(v) * torch.sigmoid(u)) @ net.attention.score.weight.t() + net.attention.score.bias
    a = torch.softmax(scores, 0).t()
    z = a @ h
    one = z @ net.classify.weight.t() + net.classify.bias
    expected = torch.diagonal(one) if branches else one[0]
    assert torch.allclose(out.attention, a, atol=1e-6)
    assert torch.allclose(out.logits, expected, atol=1e-5)
    assert out.attention.shape == ((3 if branches else 1), 11)
    assert torch.allclose(out.attention.sum(1), torch.ones(len(out.attention)))


@pytest.mark.parametrize(
    ("branches", "n_classes", "size"), [(False, 3, 11), (True, 3, 11), (False, 2, 11), (True, 2, 3)]
)
def test_the_loss_equals_the_formulas_of_the_paper(branches: bool, n_classes: int, size: int) -> None:
    net, label = clam(branches=branches, n_classes=n_classes), 1
    bag = torch.randn(size, 6)
    out = net(bag, label)
    h = torch.relu(bag @ net.embed.weight.t() + net.embed.bias)
    k = max(1, min(2, size // 2))
    losses = []
    for c in range(n_classes):
        a = out.attention[c if branches else 0]
        order = torch.argsort(a, descending=True)
        weight, bias = net.instances.weight[2 * c : 2 * c + 2], net.instances.bias[2 * c : 2 * c + 2]
        if c == label:
            rows, wanted = torch.cat([order[:k], order.flip(0)[:k]]), [1] * k + [0] * k
        elif n_classes > 2:
            rows, wanted = order[:k], [0] * k
        else:
            continue
        losses.append(smooth_top1(h[rows] @ weight.t() + bias, torch.tensor(wanted)).mean())
    expected = 0.7 * F.cross_entropy(out.logits[None], torch.tensor([label])) + 0.3 * torch.stack(losses).mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("branches", [False, True])
def test_gradients_equal_numerical_gradients(branches: bool) -> None:
    net = clam(branches=branches, dropout=0.25).double()
    bag = torch.randn(9, 6, dtype=torch.float64)
    names = ["attention.gate.weight", "classify.weight", "instances.weight", "attention.score.weight"]
    for name in names:
        value = net.get_parameter(name).detach().clone()[:2].requires_grad_()
        rest = net.get_parameter(name).detach()[2:]

        def loss(part: torch.Tensor, name: str = name, rest: torch.Tensor = rest) -> torch.Tensor:
            draw = np.random.Generator(np.random.SFC64(0))
            return torch.func.functional_call(net, {name: torch.cat([part, rest])}, (bag, 2, draw)).loss

        assert torch.autograd.gradcheck(loss, (value,), fast_mode=True), name


def test_a_bag_may_have_one_instance() -> None:
    out = clam()(torch.randn(1, 6), 0)
    assert out.attention.tolist() == [[1.0]]
    assert torch.isfinite(out.loss)


def test_the_result_does_not_depend_on_the_order_of_instances() -> None:
    net, bag = clam(branches=True), torch.randn(13, 6)
    assert torch.allclose(net(bag).logits, net(bag.flip(0)).logits, atol=1e-5)


def test_padding_does_not_change_the_result() -> None:
    net, bag = clam(), torch.randn(11, 6)
    filled = torch.cat([bag, torch.zeros(5, 6)])
    plain, out = net(bag), net(filled, size=11)
    assert torch.allclose(plain.logits, out.logits, atol=1e-6)
    assert torch.allclose(plain.attention, out.attention, atol=1e-6)
    assert out.attention.shape[1] == 11
