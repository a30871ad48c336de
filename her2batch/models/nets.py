"""The image networks of the paper: patch classifier and thumbnail classifiers, over timm."""

from __future__ import annotations

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.models.device import Runner
from her2batch.models.encoders import IMAGENET_MEAN, IMAGENET_STD

NETS: dict[str, str] = {
    "convnext-small": "convnext_small",
    "resnet50": "resnet50",
    "densenet201": "densenet201",
    "vit-base": "vit_base_patch16_224",
}
"""Method → timm's name (paper, 2.3; methods: patches and thumbnails)."""


def build(method: str, n_classes: int, edge: int) -> torch.nn.Module:
    """An untrained network for square images of `edge` px. Raises InputError for an unknown method.

    A name that is no method of the paper is taken as timm's own, so that tests can use small nets.
    """
    name = NETS.get(method, method)
    if not timm.is_model(name):
        raise InputError(f"there is no net {method}", None, f"known: {', '.join(NETS)}, or a timm name")
    if "vit" in name:  # a transformer's position table has the size of its input
        return timm.create_model(name, pretrained=False, num_classes=n_classes, img_size=edge)
    return timm.create_model(name, pretrained=False, num_classes=n_classes)


class Classifier:
    """A trained network, ready on a device: (n, h, w, 3) uint8 → (n, C) float32 probabilities."""

    def __init__(self, net: torch.nn.Module, device: str) -> None:
        self._run = Runner(net, device, IMAGENET_MEAN, IMAGENET_STD, lambda out: torch.softmax(out.float(), dim=1))

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, one row an image."""
        return self._run(pixels)
