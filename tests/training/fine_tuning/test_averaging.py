"""The moving average of weights."""

import pytest
import torch
from torch import nn

from her2batch.training.fine_tuning.averaging import WeightAverage


def network(value: float) -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    for tensor in net.state_dict().values():
        tensor.fill_(value)
    return net


def test_the_average_equals_the_formula() -> None:
    net, expected = network(1.0), 1.0
    average = WeightAverage(net, 0.5)
    for step, value in enumerate((3.0, 5.0, -1.0, 2.0), start=1):
        net.load_state_dict(network(value).state_dict())
        average.update(net)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.tensors["0.weight"].tolist() == [[pytest.approx(expected)] * 2]
    assert average.tensors["1.running_mean"].tolist() == [pytest.approx(expected)]
    assert int(average.tensors["1.num_batches_tracked"]) == 2  # a count is the newest


def test_the_network_has_the_average_for_a_block_only() -> None:
    net = network(1.0)
    average = WeightAverage(net, 0.9)
    net.load_state_dict(network(4.0).state_dict())
    with average.in_place_of_weights(net):
        assert net[0].weight.tolist() == [[1, 1]]
    assert net[0].weight.tolist() == [[4, 4]]


def test_an_average_continues_from_its_state() -> None:
    net = network(1.0)
    first = WeightAverage(net, 0.9)
    net.load_state_dict(network(2.0).state_dict())
    first.update(net)
    second = WeightAverage(network(7.0), 0.9)
    second.restore(first.state())
    for average in (first, second):
        average.update(net)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
