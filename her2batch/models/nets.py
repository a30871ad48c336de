"""Networks that are fine-tuned end to end, on patches at three resolutions and thumbnails at two sizes.

torch is imported where a network is built or run, so that the registry is read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError, WeightsError
from her2batch.models.weights import SNAPSHOT, WeightsSource, find_in_folder, locate_weights, read_weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NetworkSpec:
    """A network of timm. name: with the tag of its ImageNet weights.  tiny: arguments that build a toy of its family.

    sized: the network is built for one input size; the others take any.
    """

    name: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    sized: bool = False

    @property
    def architecture(self) -> str:
        """Return timm's name without the tag."""
        return self.name.partition(".")[0]


NETWORKS: Final[dict[str, NetworkSpec]] = {
    "convnext-small": NetworkSpec(
        "convnext_small.in12k_ft_in1k", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "ls_init_value": 0.1}
    ),
    "resnet50": NetworkSpec(
        "resnet50.a1_in1k",
        {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_type": "deep", "stem_width": 8},
    ),
    "densenet201": NetworkSpec("densenet201.tv_in1k", {"growth_rate": 8, "block_config": (2, 2, 4, 2)}),
    "vit-base": NetworkSpec(
        "vit_base_patch16_224.augreg2_in21k_ft_in1k", {"embed_dim": 64, "depth": 3, "num_heads": 2}, sized=True
    ),
}
"""Method → its network. The tags are timm's defaults, written out so that a later timm uses the same weights.

ConvNeXt-S normalises layers over channels as in Liu 2022; the paper calls it GroupNorm. The toys have 40,000 to 270,000
parameters. The toy ResNet begins with three narrow 3 × 3 layers, because the full network's 7 × 7 layer of 64 channels
would take 60 % of its time. The toy ConvNeXt scales its branches by 0.1, because the full network's 1e-6 changes
nothing within a few epochs.
"""

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Normalisation of ImageNet, RGB in 0–1, of all four networks; weights with another one are adapted to it."""


def build_network(method: str, n_classes: int, input_px: int, size: str = "full") -> torch.nn.Module:
    """Return a network with fresh weights for n_classes and squares of input_px, full or tiny.

    Raises InputError for an unknown method.
    """
    import timm

    if method not in NETWORKS:
        raise InputError(f"no network is called {method!r}", None, f"choose from {', '.join(NETWORKS)}")
    spec = NETWORKS[method]
    arguments = {**(spec.tiny if size == "tiny" else {}), **({"img_size": input_px} if spec.sized else {})}
    net: torch.nn.Module = timm.create_model(spec.name, pretrained=False, num_classes=n_classes, **arguments)
    return net


def initial_network(
    method: str, n_classes: int, input_px: int, size: str, pretrained: str, seed: int
) -> torch.nn.Module:
    """Return a network to train, in float32 on the CPU. Its random values depend on the seed alone.

    pretrained: "imagenet" for timm's weights on the hub, "none" for random ones, else a file of such weights or a
    folder with NAME.safetensors, where NAME is the method or timm's name. Their classifier is ignored, and position
    embeddings of a ViT are resampled to input_px. Tiny networks have no published weights: with "imagenet" they are
    random too.  Raises InputError for an unknown method, WeightsError when weights cannot be found or do not fit.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(method, n_classes, input_px, size)
    path = locate_initial_weights(method, size, pretrained)
    if path is not None:
        _load_pretrained(net, _adapt_weights(net, read_weights(path)), path)
    return net


def locate_initial_weights(method: str, size: str, pretrained: str) -> Path | None:
    """Return the file of the weights that a network starts from, downloaded if need be; None for random weights.

    size, pretrained: as of `initial_network`.  Raises WeightsError when they cannot be found.
    """
    if pretrained == "none" or (pretrained == "imagenet" and size == "tiny"):
        return None
    return _hub_file(method) if pretrained == "imagenet" else _local_file(method, Path(pretrained))


def _hub_file(method: str) -> Path:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(NETWORKS[method].name)
    source = WeightsSource(config.hf_hub_id, None, SNAPSHOT, config.license or "see its page")
    try:
        return locate_weights(method, source, None)
    except WeightsError as error:
        reason = error.message.rpartition(": ")[2]
        what = f"the ImageNet weights of {method} ({source.repo}) cannot be downloaded: {reason}"
        raise WeightsError(what, None, _remedy(method)) from error


def _local_file(method: str, location: Path) -> Path:
    if location.is_file():
        return location
    spec = NETWORKS[method]
    names = (method, spec.name, spec.architecture)
    file = next((path for name in names if (path := find_in_folder(name, location))), None)
    if file is None:
        what = f"has no weights of {method}: neither {' nor '.join(f'{name}.safetensors' for name in names)}"
        raise WeightsError(what, location, _remedy(method))
    return file


def _remedy(method: str) -> str:
    page = f"https://huggingface.co/timm/{NETWORKS[method].name}"
    return (
        f"put model.safetensors of {page} as {method}.safetensors into a folder and give --weights FOLDER, "
        "or train from random weights with --option pretrained=none"
    )


def _adapt_weights(net: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adapt published weights to this network: no classifier, its own grid of positions, ImageNet's normalisation.

    A network that was trained on (p − m) / s gets (p − M) / S here. W (p − m) / s + b = W S/s (p − M) / S + b +
    ΣW (M − m) / s, exactly, as its first layer has no padding; only the m and s of ViT differ from M and S.
    """
    import torch
    from timm.layers import resample_abs_pos_embed

    config: Mapping[str, Any] = net.pretrained_cfg
    classifier = f"{config['classifier']}."
    state = {key: tensor for key, tensor in state.items() if not key.startswith(classifier)}
    positions = state.get("pos_embed")
    if positions is not None and positions.shape != net.pos_embed.shape:
        prefix = net.num_prefix_tokens
        state["pos_embed"] = resample_abs_pos_embed(positions, net.patch_embed.grid_size, num_prefix_tokens=prefix)
    first = config["first_conv"]
    weight, bias = state.get(f"{first}.weight"), state.get(f"{first}.bias")
    if tuple(config["mean"]) != MEAN and weight is not None and bias is not None:
        mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        ours, scale = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        state[f"{first}.weight"] = weight * (scale / std)
        state[f"{first}.bias"] = bias + (weight * ((ours - mean) / std)).sum((1, 2, 3))
    return state


def _load_pretrained(net: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load all weights but the classifier's into a network. Raises WeightsError when names or shapes differ."""
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    own = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    ignored = {key for key in own if key.startswith(f"{config['classifier']}.") or key.endswith("num_batches_tracked")}
    expected = {key: shape for key, shape in own.items() if key not in ignored}
    actual = {key: tuple(tensor.shape) for key, tensor in state.items() if key not in ignored}
    different = sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key))
    if different:
        what = f"does not fit: {len(different)} tensors are missing, extra or of another shape, first {different[0]}"
        raise WeightsError(what, path, "use the file that belongs to this name")
    net.load_state_dict(state, strict=False)


def classify_images(net: torch.nn.Module, pixels: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
    """Return class probabilities: (n, h, w, 3) uint8 RGB → (n, classes) float32. n ≥ 1.

    net: on `device`, in evaluation mode.
    """
    from her2batch.models.device import Normalization, run_network

    return run_network(net, pixels, Normalization(MEAN, STD), device, lambda scores: scores.float().softmax(-1))


@dataclass(frozen=True)
class ImageClassifier:
    """A trained image network on its device, as a function."""

    net: torch.nn.Module
    n_classes: int
    device: str

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return class probabilities: (n, h, w, 3) uint8 RGB → (n, classes) float32."""
        return (
            classify_images(self.net, pixels, self.device) if len(pixels) else np.empty((0, self.n_classes), np.float32)
        )
