"""MIL methods by name."""

import pytest
import torch

from her2batch.errors import InputError
from her2batch.models.mil_registry import MODELS, build_mil_network
from her2batch.settings import MilSettings
from her2batch.tasks import MIL_METHODS


def test_every_method_has_a_network() -> None:
    assert tuple(MODELS) == MIL_METHODS


@pytest.mark.parametrize("method", MODELS)
def test_a_network_takes_bags_of_any_size(method: str) -> None:
    net = build_mil_network(method, 12, 4, MilSettings()).eval()
    for n in (1, 7, 40):
        out = net(torch.randn(n, 12))
        assert out.logits.shape == (4,)
        assert out.attention.shape == (4 if method == "clam-mb" else 1, n)


def test_settings_reach_the_network() -> None:
    assert build_mil_network("clam-sb", 12, 3, MilSettings(dropout=0.5, k=3, bag_weight=0.9)).shape.k == 3
    assert build_mil_network("dtfd-maxs", 12, 3, MilSettings(pseudo_bags=2, splits_at_test=1)).shape.splits == 1


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="clam-sb"):
        build_mil_network("abmil", 12, 3, MilSettings())
