"""Layers in fine-tuning: their order, learning rates, and the epochs in which they are trained."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from her2batch.models.nets import NETWORKS, build_network
from her2batch.settings import ImageSettings
from her2batch.training.fine_tuning.layers import (
    classifier_prefix,
    first_trained_layer,
    fix_batch_norm,
    layer_numbers,
    parameter_groups,
    set_trained_layers,
)

STAGED = ImageSettings(layer_decay=0.5, frozen_epochs=2, unfreeze_epochs=4)


def tiny(method: str) -> torch.nn.Module:
    return build_network(method, 3, 64, "tiny")


@pytest.mark.parametrize("method", NETWORKS)
def test_layers_are_numbered_from_the_input_to_the_classifier(method: str) -> None:
    net = tiny(method)
    layers = layer_numbers(net)
    assert layers.keys() == {name for name, _ in net.named_parameters()}
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    assert max(layers.values()) >= 4
    first = net.pretrained_cfg["first_conv"]
    assert {layer for name, layer in layers.items() if name.startswith(f"{first}.")} == {0}
    of_classifier = {name for name, layer in layers.items() if layer == max(layers.values())}
    assert of_classifier == {name for name in layers if name.startswith(classifier_prefix(net))}


@pytest.mark.parametrize("method", NETWORKS)
def test_every_parameter_is_in_one_group_whose_rate_falls_towards_the_input(method: str) -> None:
    net = tiny(method)
    groups = parameter_groups(net, STAGED, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert [group["scale"] for group in groups] == sorted(group["scale"] for group in groups)
    assert groups[-1]["scale"] == 1
    for group in groups:
        assert {parameter.ndim <= 1 for parameter in group["params"]} == {group["weight_decay"] == 0}


def test_the_defaults_of_the_paper_are_one_group() -> None:
    (group,) = parameter_groups(tiny("resnet50"), ImageSettings(), 0.1)
    assert (group["scale"], group["weight_decay"]) == (1, 0.1)


def test_layers_are_unfrozen_from_above() -> None:
    lowest = [first_trained_layer(epoch, 8, STAGED) for epoch in range(1, 9)]
    assert lowest == [8, 8, 6, 4, 2, 0, 0, 0]
    half = STAGED.model_copy(update={"trained_layers": 0.5})
    assert [first_trained_layer(epoch, 8, half) for epoch in range(1, 9)] == [8, 8, 7, 6, 5, 4, 4, 4]
    assert first_trained_layer(1, 8, ImageSettings()) == 0


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 5), st.integers(0, 9), st.floats(0.05, 1))
def test_more_layers_are_trained_in_later_epochs(epoch: int, top: int, frozen: int, over: int, share: float) -> None:
    settings = ImageSettings(frozen_epochs=frozen, unfreeze_epochs=over, trained_layers=share)
    first, later = (first_trained_layer(number, top, settings) for number in (epoch, epoch + 1))
    assert 0 <= later <= first <= top


def test_frozen_layers_have_no_gradient() -> None:
    net = tiny("efficientnet-lite0").train()
    set_trained_layers(net, 1, STAGED)
    net(torch.rand(2, 3, 64, 64)).sum().backward()
    prefix = classifier_prefix(net)
    assert all((parameter.grad is not None) == name.startswith(prefix) for name, parameter in net.named_parameters())
    set_trained_layers(net, 6, STAGED)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_fixed_batch_normalisation_keeps_its_means() -> None:
    net = tiny("resnet50").train()
    fix_batch_norm(net)
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
