"""The networks that are fine-tuned end to end: patches at three resolutions, thumbnails at two sizes.

torch is imported where a network is built or run: the registry is read without it.
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
    """A network of timm's. name: with the tag of its ImageNet weights.  tiny: what makes it a toy of its family.

    sized: it is built for one size of picture; the others take any.
    """

    name: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    sized: bool = False

    @property
    def architecture(self) -> str:
        """timm's name without the tag."""
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
"""Method → its network. The tags are timm's own defaults, written out so that a later timm starts from the same ones.

ConvNeXt-S normalises layers over channels as in Liu 2022; the paper calls it GroupNorm. The toys have 40 to 270
thousand parameters. ResNet's begins with three narrow 3 × 3 layers: the full one's 7 × 7 to 64 channels would
take 60 % of its time. ConvNeXt's begins with branches worth 0.1: at the full one's 1e-6 a few epochs
move nothing.
"""

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Of ImageNet, RGB in 0–1: what all four look through, also where the published weights look otherwise (`start`)."""


def build_network(method: str, n_classes: int, input_px: int, size: str = "full") -> torch.nn.Module:
    """A network with fresh weights for n_classes and squares of input_px, full or tiny.

    Raises InputError for an unknown method.
    """
    import timm

    if method not in NETWORKS:
        raise InputError(f"no network is called {method!r}", None, f"choose from {', '.join(NETWORKS)}")
    row = NETWORKS[method]
    chosen = {**(row.tiny if size == "tiny" else {}), **({"img_size": input_px} if row.sized else {})}
    net: torch.nn.Module = timm.create_model(row.name, pretrained=False, num_classes=n_classes, **chosen)
    return net


def initial_network(
    method: str, n_classes: int, input_px: int, size: str, pretrained: str, seed: int
) -> torch.nn.Module:
    """A network to train, in float32 on the CPU. What is random in it comes from the seed alone.

    pretrained: "imagenet" for timm's weights of the hub, "none" for random ones, else a file of such weights or a
    folder with NAME.safetensors, NAME the method or timm's name. Their classifier is left aside, a ViT's position
    embeddings are resampled to input_px. Nobody has trained the tiny networks: with "imagenet" they are random too.
    Raises InputError for an unknown method, WeightsError when weights can't be had or do not fit.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(method, n_classes, input_px, size)
    if pretrained == "none" or (pretrained == "imagenet" and size == "tiny"):
        return net
    path = _hub(method) if pretrained == "imagenet" else _found(method, Path(pretrained))
    _load(net, _adapted(net, read_weights(path)), path)
    return net


def _hub(method: str) -> Path:
    from timm.models import get_pretrained_cfg

    about = get_pretrained_cfg(NETWORKS[method].name)
    source = WeightsSource(about.hf_hub_id, None, SNAPSHOT, about.license or "see its page")
    try:
        return locate_weights(method, source, None)
    except WeightsError as error:
        what = f"the ImageNet weights of {method} ({source.repo}) can't be fetched: {error.what.rpartition(': ')[2]}"
        raise WeightsError(what, None, _remedy(method)) from error


def _found(method: str, place: Path) -> Path:
    if place.is_file():
        return place
    row = NETWORKS[method]
    names = (method, row.name, row.architecture)
    found = next((path for name in names if (path := find_in_folder(name, place))), None)
    if found is None:
        what = f"holds no weights of {method}: neither {' nor '.join(f'{name}.safetensors' for name in names)}"
        raise WeightsError(what, place, _remedy(method))
    return found


def _remedy(method: str) -> str:
    page = f"https://huggingface.co/timm/{NETWORKS[method].name}"
    return (
        f"put model.safetensors of {page} as {method}.safetensors into a folder and give --weights FOLDER, "
        "or train from random weights with --option pretrained=none"
    )


def _adapted(net: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published weights as this network needs them: no classifier, its own grid of positions, ImageNet's scale.

    A network that was trained on (p − m) / s sees (p − M) / S here. W (p − m) / s + b = W S/s (p − M) / S + b +
    ΣW (M − m) / s, exactly, as its first layer pads nothing; only ViT's m and s are others than M and S.
    """
    import torch
    from timm.layers import resample_abs_pos_embed

    about: Mapping[str, Any] = net.pretrained_cfg
    state = {key: one for key, one in state.items() if not key.startswith(f"{about['classifier']}.")}
    positions = state.get("pos_embed")
    if positions is not None and positions.shape != net.pos_embed.shape:
        prefix = net.num_prefix_tokens
        state["pos_embed"] = resample_abs_pos_embed(positions, net.patch_embed.grid_size, num_prefix_tokens=prefix)
    first = about["first_conv"]
    weight, bias = state.get(f"{first}.weight"), state.get(f"{first}.bias")
    if tuple(about["mean"]) != MEAN and weight is not None and bias is not None:
        mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        ours, scale = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        state[f"{first}.weight"] = weight * (scale / std)
        state[f"{first}.bias"] = bias + (weight * ((ours - mean) / std)).sum((1, 2, 3))
    return state


def _load(net: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Give a network all its weights but the classifier's. Raises WeightsError when names or shapes differ."""
    about: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    own = {key: tuple(one.shape) for key, one in net.state_dict().items()}
    spared = {key for key in own if key.startswith(f"{about['classifier']}.") or key.endswith("num_batches_tracked")}
    wanted = {key: shape for key, shape in own.items() if key not in spared}
    found = {key: tuple(one.shape) for key, one in state.items() if key not in spared}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        what = f"does not fit: {len(wrong)} tensors are missing, in excess or of another shape, {wrong[0]} the first"
        raise WeightsError(what, path, "take the file that belongs to this name")
    net.load_state_dict(state, strict=False)


def classify_images(net: torch.nn.Module, pixels: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
    """Probabilities of each class: (n, h, w, 3) uint8 RGB → (n, classes) float32. n ≥ 1.

    net: on `device`, in evaluation mode.
    """
    from her2batch.models.device import Normalization, run_network

    return run_network(net, pixels, Normalization(MEAN, STD), device, lambda scores: scores.float().softmax(-1))


@dataclass(frozen=True)
class ImageClassifier:
    """A trained network on its device, as a function."""

    net: torch.nn.Module
    n_classes: int
    device: str

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of each class: (n, h, w, 3) uint8 RGB → (n, classes) float32."""
        return (
            classify_images(self.net, pixels, self.device) if len(pixels) else np.empty((0, self.n_classes), np.float32)
        )
