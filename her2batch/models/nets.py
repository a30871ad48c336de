"""The networks that are fine-tuned end to end: patches at three resolutions, thumbnails at two sizes.

torch is imported where a network is built or run: the registry is read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError

if TYPE_CHECKING:
    import torch

NETS: Final[dict[str, str]] = {
    "convnext-small": "convnext_small",
    "resnet50": "resnet50",
    "densenet201": "densenet201",
    "vit-base": "vit_base_patch16_224",
}
"""Method → timm's name. ConvNeXt-S normalises layers over channels as in Liu 2022; the paper calls it GroupNorm."""

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Of ImageNet, RGB in 0–1: all four start from weights trained on it."""


def build(method: str, n_classes: int, input_px: int) -> torch.nn.Module:
    """A network with fresh weights for n_classes and squares of input_px. Raises InputError for an unknown method."""
    import timm

    if method not in NETS:
        raise InputError(f"no network is called {method!r}", None, f"choose from {', '.join(NETS)}")
    sized: dict[str, Any] = {"img_size": input_px} if method.startswith("vit") else {}  # the others take any size
    net: torch.nn.Module = timm.create_model(NETS[method], pretrained=False, num_classes=n_classes, **sized)
    return net


def classify(net: torch.nn.Module, pixels: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
    """Probabilities of each class: (n, h, w, 3) uint8 RGB → (n, classes) float32. n ≥ 1.

    net: on `device`, in evaluation mode.
    """
    from her2batch.models.device import Look, forward

    return forward(net, pixels, Look(MEAN, STD), device, lambda scores: scores.float().softmax(-1))


@dataclass(frozen=True)
class Classifier:
    """A trained network on its device, as a function."""

    net: torch.nn.Module
    n_classes: int
    device: str

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of each class: (n, h, w, 3) uint8 RGB → (n, classes) float32."""
        return classify(self.net, pixels, self.device) if len(pixels) else np.empty((0, self.n_classes), np.float32)
