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
from her2batch.models.weights import (
    EFFICIENTNET_LITE0,
    SNAPSHOT,
    PackagedFile,
    WeightsSource,
    find_in_folder,
    locate_weights,
    read_weights,
    rename_in_order,
)
from her2batch.settings import Ordinal
from her2batch.tasks import TIMM_PREFIX

if TYPE_CHECKING:
    import torch

    from her2batch.models.device import Normalization

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Normalisation of ImageNet, RGB in 0–1, of the paper's four networks."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network of timm. name: with the tag of its ImageNet weights.  tiny: arguments that build a toy of its family.

    toy: timm's name of the toy, where it is another than the network's own.  sized: the network is built for one input
    size; the others take any.  mean, std: normalisation of its input, RGB in 0–1.  package: of its ImageNet weights,
    where these need no hub.  decoupled: it is trained with decoupled weight decay (AdamW).  zero_classifier: the
    new classifier starts at 0, that is with equal probabilities.
    """

    name: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    toy: str | None = None
    sized: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    package: PackagedFile | None = None
    decoupled: bool = False
    zero_classifier: bool = False

    @property
    def architecture(self) -> str:
        """Return timm's name without the tag."""
        return self.name.partition(".")[0]

    @property
    def normalization(self) -> Normalization:
        """Return the normalisation of its input, of any size."""
        from her2batch.models.device import Normalization

        return Normalization(self.mean, self.std)


NETWORKS: Final[dict[str, NetworkSpec]] = {
    "convnext-small": NetworkSpec(
        "convnext_small.in12k_ft_in1k",
        {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "ls_init_value": 0.1},
        decoupled=True,
    ),
    "resnet50": NetworkSpec(
        "resnet50.a1_in1k",
        {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_type": "deep", "stem_width": 8},
    ),
    "densenet201": NetworkSpec("densenet201.tv_in1k", {"growth_rate": 8, "block_config": (2, 2, 4, 2)}),
    "vit-base": NetworkSpec(
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        {"embed_dim": 64, "depth": 3, "num_heads": 2},
        sized=True,
        decoupled=True,
    ),
    "efficientnet-lite0": NetworkSpec(
        "tf_efficientnet_lite0.in1k",
        toy="test_efficientnet",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        package=EFFICIENTNET_LITE0,
        decoupled=True,
        zero_classifier=True,
    ),
}
"""Method → its network. The tags are timm's defaults, written out so that a later timm uses the same weights.

ConvNeXt-S normalises layers over channels as in Liu 2022; the paper calls it GroupNorm. The toys have 40,000 to 270,000
parameters. The toy ResNet begins with three narrow 3 × 3 layers, because the full network's 7 × 7 layer of 64 channels
would take 60 % of its time. The toy ConvNeXt scales its branches by 0.1, because the full network's 1e-6 changes
nothing within a few epochs. EfficientNet-Lite0 pads its input with zeros after the normalisation, so that another one
cannot be folded into its weights: it has its own.
"""


def network_spec(method: str) -> NetworkSpec:
    """Return a network's row. The row of `timm:NAME` is made from timm's own data about the model.

    Raises InputError for an unknown method.
    """
    if method in NETWORKS:
        return NETWORKS[method]
    if not method.startswith(TIMM_PREFIX):
        known = f"{', '.join(NETWORKS)} or timm:NAME"
        raise InputError(f"no network is called {method!r}", None, f"choose from {known}")
    import timm
    from timm.models import get_pretrained_cfg

    name = method.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}", None, "see timm.list_models() for its names")
    config = get_pretrained_cfg(name)
    return NetworkSpec(
        name,
        sized=bool(config.fixed_input_size),
        mean=tuple(config.mean),
        std=tuple(config.std),
        decoupled=True,
        zero_classifier=True,
    )


def build_network(
    method: str, n_classes: int, input_px: int, size: str = "full", ordinal: Ordinal = "none"
) -> torch.nn.Module:
    """Return a network with fresh weights for n_classes and squares of input_px, full or tiny.

    ordinal: its outputs are logarithms of probabilities of ordered classes, see `models.ordinal.links`.

    Raises InputError for an unknown method, and for a tiny network of a method that has none.
    """
    import timm

    spec = network_spec(method)
    tiny = size == "tiny"
    if tiny and not (spec.tiny or spec.toy):
        raise InputError(f"{method} has no tiny network", None, "give --option size=full, or omit --quick")
    arguments = {**(spec.tiny if tiny else {}), **({"img_size": input_px} if spec.sized else {})}
    name = spec.toy if tiny and spec.toy else spec.name
    net: torch.nn.Module = timm.create_model(name, pretrained=False, num_classes=n_classes, **arguments)
    return _with_link(net, ordinal, n_classes)


def initial_network(
    method: str, n_classes: int, input_px: int, size: str, pretrained: str, seed: int, ordinal: Ordinal = "none"
) -> torch.nn.Module:
    """Return a network to train, in float32 on the CPU. Its random values depend on the seed alone.

    pretrained: "imagenet" for timm's weights on the hub, or in a package of the extra `weights`, "none" for random
    ones, else a file of such weights or a folder with NAME.safetensors, where NAME is the method or timm's name. Their
    classifier is ignored, and position embeddings of a ViT are resampled to input_px. Tiny networks have no published
    weights: with "imagenet" they are random too.  Raises InputError for an unknown method, WeightsError when weights
    cannot be found or do not fit.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(method, n_classes, input_px, size)
    if network_spec(method).zero_classifier:
        _zero_classifier(net)
    path = locate_initial_weights(method, size, pretrained)
    if path is not None:
        _load_pretrained(net, _adapt_weights(net, _read_named(method, path), network_spec(method)), path)
    return _with_link(net, ordinal, n_classes)


def _with_link(net: torch.nn.Module, ordinal: Ordinal, n_classes: int) -> torch.nn.Module:
    """Return a network that gives logarithms of probabilities of ordered classes; as it is for "none"."""
    if ordinal == "none":
        return net
    from her2batch.models.ordinal.links import add_link

    return add_link(net, ordinal, n_classes)


def _zero_classifier(net: Any) -> None:
    """Set a network's classifier to 0.

    timm draws that of EfficientNets from ±1/√classes, which for three classes gives logits of some 10 at the start: the
    loss of 7 falls to that of equal probabilities only after as many steps as a small cohort has.
    """
    import torch

    prefix = f"{net.pretrained_cfg['classifier']}."
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(prefix):
                parameter.zero_()


def locate_initial_weights(method: str, size: str, pretrained: str) -> Path | None:
    """Return the file of the weights that a network starts from, downloaded if need be; None for random weights.

    size, pretrained: as of `initial_network`.  Raises WeightsError when they cannot be found.
    """
    if pretrained == "none" or (pretrained == "imagenet" and size == "tiny"):
        return None
    return _published_file(method) if pretrained == "imagenet" else _local_file(method, Path(pretrained))


def _read_named(method: str, path: Path) -> dict[str, torch.Tensor]:
    """Read weights; those of a package get the names of timm, by their order."""
    import timm
    import torch

    state, spec = read_weights(path), network_spec(method)
    if spec.package is None:
        return state
    with torch.device("meta"):
        names = list(timm.create_model(spec.name, pretrained=False).state_dict())
    return rename_in_order(state, names)


def _published_file(method: str) -> Path:
    from timm.models import get_pretrained_cfg

    spec = network_spec(method)
    config = get_pretrained_cfg(spec.name)
    source = WeightsSource(config.hf_hub_id, None, SNAPSHOT, config.license or "see its page", spec.package)
    if spec.package is not None:
        return locate_weights(method, source, None)
    try:
        return locate_weights(method, source, None)
    except WeightsError as error:
        reason = error.message.rpartition(": ")[2]
        what = f"the ImageNet weights of {method} ({source.repo}) cannot be downloaded: {reason}"
        raise WeightsError(what, None, _remedy(method)) from error


def _local_file(method: str, location: Path) -> Path:
    if location.is_file():
        return location
    spec = network_spec(method)
    names = (method.replace(":", "-"), spec.name, spec.architecture)
    file = next((path for name in names if (path := find_in_folder(name, location))), None)
    if file is None:
        what = f"has no weights of {method}: neither {' nor '.join(f'{name}.safetensors' for name in names)}"
        raise WeightsError(what, location, _remedy(method))
    return file


def _remedy(method: str) -> str:
    page, file = f"https://huggingface.co/timm/{network_spec(method).name}", f"{method.replace(':', '-')}.safetensors"
    return (
        f"put model.safetensors of {page} as {file} into a folder and give --option pretrained=FOLDER, "
        "or train from random weights with --option pretrained=none"
    )


def _adapt_weights(net: Any, state: dict[str, torch.Tensor], spec: NetworkSpec) -> dict[str, torch.Tensor]:
    """Adapt published weights to this network: no classifier, its own grid of positions, the row's normalisation.

    A network that was trained on (p − m) / s and gets (p − M) / S here: W (p − m) / s + b = W S/s (p − M) / S + b +
    ΣW (M − m) / s, exactly where its first layer has no padding. Only the m and s of ViT differ from its row's.
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
    if tuple(config["mean"]) != spec.mean and weight is not None and bias is not None:
        mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        ours, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
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


def classify_images(
    net: torch.nn.Module,
    pixels: NDArray[np.uint8],
    device: str = "cpu",
    normalization: Normalization | None = None,
    batch: int | None = None,
) -> NDArray[np.float32]:
    """Return class probabilities: (n, h, w, 3) uint8 RGB → (n, classes) float32. n ≥ 1.

    net: on `device`, in evaluation mode.  normalization: of its row; None: that of ImageNet.  batch: see `run_network`.
    """
    from her2batch.models.device import Normalization, run_network

    of_input = normalization or Normalization(MEAN, STD)
    return run_network(net, pixels, of_input, device, lambda scores: scores.float().softmax(-1), batch=batch)


@dataclass(frozen=True)
class ImageClassifier:
    """A trained image network on its device, as a function. normalization, batch: as of `classify_images`."""

    net: torch.nn.Module
    n_classes: int
    device: str
    normalization: Normalization | None = None
    batch: int | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return class probabilities: (n, h, w, 3) uint8 RGB → (n, classes) float32."""
        if not len(pixels):
            return np.empty((0, self.n_classes), np.float32)
        return classify_images(self.net, pixels, self.device, self.normalization, self.batch)
