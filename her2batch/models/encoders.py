"""Encoders turn a batch of tiles into one vector per tile. Each is one row of ENCODERS.

An installed package adds an encoder by the entry point group "her2batch.encoders", a program by `register_encoder`.
torch is imported where a network is loaded, so that the driver and the `stain` encoder do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import Her2BatchError, InputError, WeightsError
from her2batch.models.weights import (
    EFFICIENTNET_LITE0,
    WeightsSource,
    locate_weights,
    network_with_weights,
    read_weights,
    rename_in_order,
    weights_digest,
)
from her2batch.plugins import Package, Registry, resolve
from her2batch.settings import Plan
from her2batch.tasks import PATCH_INPUTS, THUMBNAIL_INPUTS, TIMM_PREFIX
from her2batch.vision.membrane import FEATURES, TileBatch

if TYPE_CHECKING:
    import torch

    from her2batch.models.execution.batch_size import BatchSizes

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

NON_COMMERCIAL: Final = "CC-BY-NC-ND 4.0: no commercial use; heads trained on it are derivatives"

GROUP: Final = "her2batch.encoders"
"""Entry point group of encoders that other packages add."""

CLASSIFIER_PREFIXES: Final = ("head.", "fc.", "classifier.")
"""Prefixes of a classifier's tensors in timm; an encoder has no classifier."""

TileFunction = Callable[[TileBatch], NDArray[np.float32]]
"""A batch of n tiles → vectors, (n, dim) float32."""


@dataclass(frozen=True)
class StainEncoder:
    """The encoder without weights: the features of `vision.membrane`, see docs/stain-encoder.md."""

    mpp: tuple[float, ...] = (0.5,)
    licence: str = "none needed"

    @property
    def dim(self) -> int:
        """Return the length of the vector."""
        return len(FEATURES)


@dataclass(frozen=True)
class TimmEncoder:
    """A network: its architecture in timm, the source of its weights, and the input that its model card prescribes.

    mpp: µm/px of its training.  swiglu: packed SwiGLU layers with SiLU.  pooling: 'token' is the network's output,
    'token+mean' the class token ‖ the mean of the patch tokens.  mean, std: of RGB in 0–1.  input_px: edge of the
    input; a tile of another edge is resized (interpolation: resize), never cropped, as every px of it is tissue.
    """

    arch: str
    dim: int
    source: WeightsSource
    mpp: tuple[float, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    pooling: str = "token"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input_px: int = 224
    resize: str = "bilinear"

    @property
    def licence(self) -> str:
        """Return the licence in a few words."""
        return self.source.licence


@dataclass(frozen=True)
class CustomEncoder:
    """An encoder whose code is not her2batch's: what another package or a program adds.

    dim: length of its vectors.  load: a function (device, weights) → TileFunction, or its name as
    "package.module:function", imported only when the encoder is loaded. device is 'cpu' or 'cuda', weights the path
    given by `--weights` or None. The same tiles must give the same vectors; a network calls
    `models.device.set_deterministic(device)` first.  licence: of its weights; a bundle repeats it.  mpp: µm/px it was
    made for, for information.
    """

    dim: int
    load: Callable[[str, Path | None], TileFunction] | str
    licence: str
    mpp: tuple[float, ...] = ()


EncoderSpec = StainEncoder | TimmEncoder | CustomEncoder


ENCODERS: Final[dict[str, EncoderSpec]] = {
    "stain": StainEncoder(),
    "efficientnet-lite0": TimmEncoder(
        "tf_efficientnet_lite0", 1280,
        WeightsSource(None, None, (), "Apache 2.0", EFFICIENTNET_LITE0),
        mpp=(),
        kwargs={"num_classes": 0},
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="bicubic",
    ),
    "uni": TimmEncoder(
        "vit_large_patch16_224", 1024,
        WeightsSource(
            "MahmoodLab/UNI", "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0", ("pytorch_model.bin",), NON_COMMERCIAL,
        ),
        mpp=(0.5,),
        kwargs={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True},
    ),
    "uni2-h": TimmEncoder(
        "vit_giant_patch14_224", 1536,
        WeightsSource(
            "MahmoodLab/UNI2-h", "d517a8dd47902dd7c308b3c36f63bce47e7b9a43", ("pytorch_model.bin",), NON_COMMERCIAL,
        ),
        mpp=(0.5,),
        kwargs={
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2, "init_values": 1e-5, "no_embed_class": True, "reg_tokens": 8,
            "num_classes": 0, "dynamic_img_size": True,
        },
        swiglu=True,
    ),
    "virchow2": TimmEncoder(
        "vit_huge_patch14_224", 2560,
        WeightsSource(
            "paige-ai/Virchow2", "3158645804b69e3f3bc4439d4116edddf0840a72",
            ("model.safetensors", "pytorch_model.bin"), NON_COMMERCIAL,
        ),
        mpp=(0.25, 0.5, 1.0, 2.0),
        kwargs={
            "img_size": 224, "mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4,
            "num_classes": 0, "global_pool": "", "dynamic_img_size": True,
        },
        swiglu=True, pooling="token+mean", resize="bicubic",
    ),
    "h-optimus-0": TimmEncoder(
        "vit_giant_patch14_reg4_dinov2", 1536,
        WeightsSource(
            "bioptimus/H-optimus-0", "b145cc1e6c6b30d3251aa8b1f844e6974188a743",
            ("pytorch_model.bin", "model.safetensors"), "Apache 2.0",
        ),
        mpp=(0.5,),
        kwargs={
            "img_size": 224, "init_values": 1e-5, "num_classes": 0, "global_pool": "token", "dynamic_img_size": False,
        },
        mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517), resize="bicubic",
    ),
}  # fmt: skip
"""Encoder name → its row. EfficientNet-Lite0 (Tan & Le 2019, doi:10.48550/arXiv.1905.11946, without squeeze and swish)
was trained on ImageNet; its weights come with the extra `weights`. The weights of the four foundation encoders need an
account and the acceptance of terms. Parameters × 4 bytes agree with the size of the published file to 0.01 % for UNI,
UNI2-h and H-optimus-0; Virchow2 has its published 632 million.
"""

_registry: Final[Registry[EncoderSpec]] = Registry(
    "encoder",
    GROUP,
    (CustomEncoder, TimmEncoder),
    ENCODERS,
    reserved=(*THUMBNAIL_INPUTS, *PATCH_INPUTS),
)


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder. weights_sha256: SHA-256 of the file of its weights; None where there is no file."""

    name: str
    dim: int
    weights_sha256: str | None
    vectors: TileFunction

    def __call__(self, batch: TileBatch) -> NDArray[np.float16]:
        """Return one vector per tile, (n, dim) float16. Raises WeightsError for another shape or a value not finite."""
        if not len(batch):
            return np.empty((0, self.dim), np.float16)
        with np.errstate(over="ignore"):
            vectors = self.vectors(batch).astype(np.float16)
        if vectors.shape != (len(batch), self.dim):
            what = f"encoder {self.name} returned an array of shape {vectors.shape} for {len(batch)} tiles"
            raise WeightsError(what, None, f"its shape must be ({len(batch)}, {self.dim}): correct the encoder")
        if not np.isfinite(vectors).all():
            what = f"encoder {self.name} returned a value that is not finite, or too large for float16"
            raise WeightsError(what, None, "compare the checksum of its weights with the published one")
        return vectors


def find_encoder(name: str) -> EncoderSpec | None:
    """Return the row of a built-in, registered or installed encoder, or None. Does not look at timm."""
    return None if name.startswith(TIMM_PREFIX) else _registry.find(name)


def encoder_spec(name: str) -> EncoderSpec:
    """Return an encoder's row. The row of `timm:NAME` is made from timm's own data about the model.

    Raises InputError for an unknown name and for a package that cannot be loaded.
    """
    if name.startswith(TIMM_PREFIX):
        return _timm_spec(name.removeprefix(TIMM_PREFIX))
    spec = find_encoder(name)
    if spec is None:
        remedy = f"choose from {', '.join(_registry.names())} or timm:NAME, or install the package that adds it"
        raise InputError(f"no encoder is called {name!r}", None, remedy)
    return spec


def embedding_dim(name: str) -> int:
    """Return the length of an encoder's vector, without its weights. Raises InputError for an unknown name."""
    return encoder_spec(name).dim


def reads_stains(name: str) -> bool:
    """Return whether an encoder may read the stains or features of a batch, and not its pixels alone."""
    return not isinstance(encoder_spec(name), TimmEncoder)


def encoder_package(name: str) -> Package | None:
    """Return the package that adds an encoder; None for other encoders and unknown names."""
    return None if name.startswith(TIMM_PREFIX) else _registry.package_of(name)


def register_encoder(name: str, spec: CustomEncoder | TimmEncoder) -> None:
    """Add an encoder to this program, by name, for `ingest`.

    The Ray workers that this program starts get it too; their machines must be able to import what it refers to. For
    the command line, and for every process on its own, let a package add it: entry point group "her2batch.encoders".
    Give an encoder that computes other values another name: finished slides are not computed again.
    Raises InputError for a name that is taken or not valid, and for another type.
    """
    _registry.register(name, spec)


def load_encoder(
    name: str,
    device: str = "cpu",
    weights: Path | None = None,
    plan: Plan = Plan(),  # noqa: B008  (frozen)
    batches: BatchSizes | None = None,
) -> Encoder:
    """Return an encoder that is ready on a device.

    weights: a file, a folder with NAME.safetensors or the hub's files, or None for the Hugging Face hub.  plan: decides
    how its network runs.  batches: the cohort's record of how many tiles a network gets at once on a GPU.
    Raises InputError for an unknown name, WeightsError when its weights cannot be found or do not fit.
    """
    spec = encoder_spec(name)
    if isinstance(spec, StainEncoder):
        return Encoder(name, spec.dim, None, lambda batch: batch.features)
    if isinstance(spec, CustomEncoder):
        return Encoder(name, spec.dim, None, _load_custom(name, spec, device, weights))
    path = locate_encoder_weights(name, weights)
    assert path is not None
    vectors = load_timm_network(name, spec, path, device, plan, batches)
    return Encoder(name, spec.dim, weights_digest(path), vectors)


def locate_encoder_weights(name: str, weights: Path | None) -> Path | None:
    """Return the file of an encoder's weights, downloaded if need be; None for an encoder of another kind than timm's.

    weights: as of `load_encoder`.  Raises InputError for an unknown name, WeightsError when they cannot be found.
    """
    spec = encoder_spec(name)
    if not isinstance(spec, TimmEncoder):
        return None
    return locate_weights(name.removeprefix(TIMM_PREFIX), spec.source, weights)


def _load_custom(name: str, spec: CustomEncoder, device: str, weights: Path | None) -> TileFunction:
    try:
        function: TileFunction = resolve(spec.load)(device, weights)
    except Her2BatchError:
        raise
    except Exception as error:  # the code of another package may raise anything
        package = encoder_package(name)
        owner = f" of package {package.name} {package.version}" if package is not None else ""
        remedy = f"run `pip install --upgrade {package.name}`, or report it to its authors" if package else ""
        what = f"encoder {name}{owner} cannot be loaded ({type(error).__name__}: {error})"
        raise WeightsError(what, None, remedy) from error
    return function


def load_timm_network(
    name: str, spec: TimmEncoder, path: Path, device: str, plan: Plan, batches: BatchSizes | None
) -> TileFunction:
    """Return a row's network with the weights of a file.

    A classifier in the file is ignored.  plan, batches: as of `load_encoder`.  Raises WeightsError when the file cannot
    be read or does not fit, InputError when the device lacks the precision of the plan.
    """
    import torch

    from her2batch.models import device as networks
    from her2batch.models.device_measurements.tile_batch import tiles_for_network

    networks.check_precision(plan.precision, device)
    networks.set_deterministic(device)
    tensors = rename_in_order(read_weights(path), _tensor_names(spec.arch) if spec.source.package is not None else ())
    state = {key: tensor for key, tensor in tensors.items() if not key.startswith(CLASSIFIER_PREFIXES)}
    net = networks.to_channels_last(network_with_weights(lambda: _build_timm_network(spec), state, path), device)
    normalization = networks.Normalization(spec.mean, spec.std, spec.input_px, spec.resize)
    first_patch = 1 + spec.kwargs.get("reg_tokens", 0)  # after the class token and the registers

    def pool(out: torch.Tensor) -> torch.Tensor:  # (n, dim), or (n, tokens, dim / 2) where tokens are pooled here
        return out if spec.pooling == "token" else torch.cat([out[:, 0], out[:, first_patch:].mean(1)], dim=-1)

    size = networks.settle_batch(name, net, plan.tile, normalization, device, plan.precision, batches)

    def run(network: torch.nn.Module, tiles: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
        return networks.run_network(network, tiles, normalization, device, pool, plan.precision, size)

    if plan.compile:
        from her2batch.models.execution.compiled import compile_once

        net = compile_once(net, size or networks.SUB_BATCH[torch.device(device).type], device, plan.tile, run)
    return lambda batch: run(net, tiles_for_network(batch))


def _tensor_names(arch: str) -> list[str]:
    """Return the names of a network's tensors with its classifier, in timm's order."""
    import timm
    import torch

    with torch.device("meta"):
        return list(timm.create_model(arch, pretrained=False).state_dict())


def _build_timm_network(spec: TimmEncoder) -> torch.nn.Module:
    import timm
    import torch
    from timm.layers.mlp import SwiGLUPacked

    extra: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if spec.swiglu else {}
    net: torch.nn.Module = timm.create_model(spec.arch, pretrained=False, **spec.kwargs, **extra)
    return net


def _timm_spec(model: str) -> TimmEncoder:
    """Return the row of a timm backbone from its own configuration, without its classifier."""
    import timm
    import torch
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(model):
        raise InputError(f"timm has no model {model!r}", None, "see timm.list_models() for its names")
    with torch.device("meta"):
        net: Any = timm.create_model(model, pretrained=False, num_classes=0)
    data_config: dict[str, Any] = resolve_model_data_config(net)
    model_card: dict[str, Any] = net.pretrained_cfg
    licence = model_card.get("license") or "see its page"
    return TimmEncoder(
        arch=model,
        dim=int(getattr(net, "head_hidden_size", None) or net.num_features),
        source=WeightsSource(model_card.get("hf_hub_id"), None, ("model.safetensors", "pytorch_model.bin"), licence),
        mpp=(),
        kwargs={"num_classes": 0},
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        input_px=int(data_config["input_size"][-1]),
        resize=data_config["interpolation"],
    )


def encoder_licence(name: str) -> str:
    """Return the licence of an encoder's weights, which also applies to heads trained on its embeddings.

    The licence of an unknown encoder, whose embeddings were imported, is that of its source.
    """
    if not name.startswith(TIMM_PREFIX) and find_encoder(name) is None:
        return f"{name}: not known here; embeddings that were imported, under the licence of what made them"
    return f"{name}: {encoder_spec(name).licence}"
