"""Saliency of image networks: the square that alone decides the class is where the map is largest."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from her2batch.models.explanation.class_activation import class_activation_map
from her2batch.models.nets import NETWORKS, ImageClassifier, build_network, network_spec

EDGE = 224
SQUARE = 64
"""Edge of the planted square, px: two cells of the coarsest map."""


def image(at: tuple[int, int] | None, seed: int) -> NDArray[np.uint8]:
    """Grey noise, with a brown square at (x, y) or without."""
    pixels = np.random.default_rng(seed).integers(200, 240, (EDGE, EDGE, 3)).astype(np.uint8)
    if at is not None:
        pixels[at[1] : at[1] + SQUARE, at[0] : at[0] + SQUARE] = (120, 60, 20)
    return pixels


def detector(method: str) -> ImageClassifier:
    """A tiny network whose classifier separates images with a square from those without, in closed form.

    Class 1 lies in the direction from the mean features of images without the square to those with it.
    """
    torch.manual_seed(0)
    net = build_network(method, 2, EDGE, "tiny").eval()
    draw = np.random.default_rng(1)
    places = [tuple(int(k) for k in draw.integers(0, EDGE - SQUARE, 2)) for _ in range(6)]
    own = network_spec(method).normalization
    with torch.no_grad():
        x = torch.from_numpy(np.stack([image(at, k) for k, at in enumerate([*places, None, None, None])]))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (own.mean, own.std))
        x = (x.permute(0, 3, 1, 2) / 255 - mean) / std
        features = net.forward_head(net.forward_features(x), pre_logits=True)
        present, absent = features[: len(places)].mean(0), features[len(places) :].mean(0)
        direction = present - absent
        if method == "resnet50":  # its features are large everywhere: without a square they shall score 0
            direction -= (direction @ absent) / (absent @ absent) * absent
        direction /= direction.norm()
        classifier = net.get_classifier()
        classifier.weight.copy_(torch.stack([-direction, direction]))
        classifier.bias.copy_(torch.tensor([1.0, -1.0]) * (direction @ (present + absent) / 2))
    return ImageClassifier(net, 2, "cpu", own)


@pytest.mark.parametrize("method", NETWORKS)
def test_the_map_is_largest_in_the_square_that_decides_the_class(method: str) -> None:
    classifier = detector(method)
    for k, at in enumerate([(0, 0), (128, 32), (64, 144)]):
        pixels = image(at, 100 + k)
        assert classifier(pixels[None]).argmax() == 1
        found = class_activation_map(classifier, pixels)
        assert found is not None
        cell = EDGE / len(found)
        row, column = np.unravel_index(found.argmax(), found.shape)
        for start, place in zip(at, (column, row), strict=True):  # untrained strides look half a place up and left
            assert start - cell / 2 <= (place + 0.5) * cell <= start + SQUARE + cell / 2
        assert (found.min() >= 0, found.max()) == (True, 1)


def test_tokens_without_a_known_grid_give_no_map() -> None:
    import timm

    net = timm.create_model("test_vit3", pretrained=False, num_classes=2).eval()
    net.blocks = torch.nn.Sequential(torch.nn.Identity())
    side = net.pretrained_cfg["input_size"][-1]
    assert class_activation_map(ImageClassifier(net, 2, "cpu"), np.zeros((side, side, 3), np.uint8)) is None
