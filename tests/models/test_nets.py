"""The fine-tuned networks: built by method, run as ImageNet's networks are."""

import numpy as np
import pytest
import timm
import torch

from her2batch.errors import InputError
from her2batch.models.nets import MEAN, NETS, STD, Classifier, build, classify


@pytest.mark.parametrize("method", NETS)
def test_every_method_names_a_network_of_timm_with_pretrained_weights(method: str) -> None:
    assert timm.is_model(NETS[method])
    assert timm.models.get_pretrained_cfg(NETS[method]).hf_hub_id


@pytest.mark.parametrize(("method", "edge"), [("vit-base", 224), ("vit-base", 512), ("convnext-small", 512)])
def test_a_network_takes_its_input_and_answers_for_each_class(method: str, edge: int) -> None:
    with torch.device("meta"):
        net = build(method, 3, edge).eval()
        assert net(torch.empty(2, 3, edge, edge)).shape == (2, 3)


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="densenet201"):
        build("resnet", 2, 224)


def test_probabilities_are_those_of_the_network_on_imagenets_scale() -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", pretrained=False, num_classes=4).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    p = classify(net, pixels)
    assert p.dtype == np.float32
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    with torch.inference_mode():
        assert np.allclose(p, net(x).softmax(1).numpy(), atol=1e-5)


def test_no_pictures_no_probabilities() -> None:
    net = timm.create_model("test_resnet", pretrained=False, num_classes=4).eval()
    assert Classifier(net, 4, "cpu")(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 4)
