"""Encoders: from a batch of tiles to one vector a tile. One row each in a literal registry.

torch is imported where a network is loaded, so that the driver and the `stain` encoder do without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError, WeightsError
from her2batch.models.weights import WeightsSource, locate_weights, network_with_weights, read_weights, weights_digest
from her2batch.vision.membrane import FEATURES, TileBatch

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

NON_COMMERCIAL: Final = "CC-BY-NC-ND 4.0: no commercial use; heads trained on it are derivatives"

CLASSIFIERS: Final = ("head.", "fc.", "classifier.")
"""Beginnings of the names that timm gives a classifier's tensors; an encoder has none."""

TIMM: Final = "timm:"
"""Prefix of an encoder that is any timm backbone."""


@dataclass(frozen=True)
class StainEncoder:
    """The encoder without weights: the figures of vision.membrane, see docs/stain-encoder.md."""

    mpp: tuple[float, ...] = (0.5,)
    licence: str = "none needed"

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return len(FEATURES)


@dataclass(frozen=True)
class TimmEncoder:
    """A network: its architecture as timm builds it, where its weights are, and how its card feeds it.

    mpp: µm/px it was trained at.  swiglu: packed SwiGLU layers with SiLU.  pooling: 'token' is what the net hands out,
    'token+mean' the class token ‖ the mean of the patch tokens.  mean, std: of RGB in 0–1.  input_px: edge of the net's
    input; a tile of another edge is resized (how: resize), never cropped: every px of it is tissue, not a photo's rim.
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
        """In a few words; the page says the rest."""
        return self.source.licence


ENCODERS: Final[dict[str, StainEncoder | TimmEncoder]] = {
    "stain": StainEncoder(),
    "uni": TimmEncoder(
        "vit_large_patch16_224", 1024,
        WeightsSource("MahmoodLab/UNI", "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0", ("pytorch_model.bin",), NON_COMMERCIAL),
        mpp=(0.5,),
        kwargs={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True},
    ),
    "uni2-h": TimmEncoder(
        "vit_giant_patch14_224", 1536,
        WeightsSource("MahmoodLab/UNI2-h", "d517a8dd47902dd7c308b3c36f63bce47e7b9a43", ("pytorch_model.bin",), NON_COMMERCIAL),
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
"""Encoder name → its row. All four ask for an account and the acceptance of terms. Parameters × 4 bytes agree with the
size of the published file to 0.01 % for UNI, UNI2-h and H-optimus-0; Virchow2 has its published 632 million.
"""


@dataclass(frozen=True)
class Encoder:
    """Something that turns tiles into vectors. weights_sha256: of the file of its weights; None where it has none."""

    name: str
    dim: int
    weights_sha256: str | None
    vectors: Callable[[TileBatch], NDArray[np.float32]]

    def __call__(self, batch: TileBatch) -> NDArray[np.float16]:
        """One vector a tile: (n, dim) float16. Raises WeightsError when a value is not finite."""
        if not len(batch.pixels):
            return np.empty((0, self.dim), np.float16)
        with np.errstate(over="ignore"):
            small = self.vectors(batch).astype(np.float16)
        if not np.isfinite(small).all():
            what = f"encoder {self.name} gave a value that is no number, or too large for float16"
            raise WeightsError(what, None, "compare the checksum of its weights with the published one")
        return small


def encoder_spec(name: str) -> StainEncoder | TimmEncoder:
    """An encoder's row. `timm:NAME` is built from timm's own data about the model.

    Raises InputError for a name that nobody knows.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(TIMM):
        return _timm_spec(name.removeprefix(TIMM))
    raise InputError(f"no encoder is called {name!r}", None, f"choose from {', '.join(ENCODERS)} or timm:NAME")


def embedding_dim(name: str) -> int:
    """Length of an encoder's vector, without its weights. Raises InputError for an unknown name."""
    return encoder_spec(name).dim


def load_encoder(name: str, device: str = "cpu", weights: Path | None = None) -> Encoder:
    """An encoder, ready on a device.

    weights: a file, a folder with NAME.safetensors or the hub's files, or None for the Hugging Face hub.
    Raises InputError for an unknown name, WeightsError when its weights can't be had or do not fit.
    """
    spec = encoder_spec(name)
    if isinstance(spec, StainEncoder):
        return Encoder(name, spec.dim, None, lambda batch: batch.features)
    path = locate_weights(name.removeprefix(TIMM), spec.source, weights)
    return Encoder(name, spec.dim, weights_digest(path), load_timm_network(spec, path, device))


def load_timm_network(spec: TimmEncoder, path: Path, device: str) -> Callable[[TileBatch], NDArray[np.float32]]:
    """A row's network with the weights of a file, as a function of a batch: (n, dim) float32.

    A classifier in the file is left aside. Raises WeightsError when the file can't be read or does not fit.
    """
    import torch

    from her2batch.models.device import Normalization, run_network, set_deterministic

    set_deterministic(device)
    state = {key: one for key, one in read_weights(path).items() if not key.startswith(CLASSIFIERS)}
    net = network_with_weights(lambda: _build_timm_network(spec), state, path).to(device).to(memory_format=torch.channels_last)
    look = Normalization(spec.mean, spec.std, spec.input_px, spec.resize)
    first_patch = 1 + spec.kwargs.get("reg_tokens", 0)  # after the class token and the registers

    def pool(out: torch.Tensor) -> torch.Tensor:  # (n, dim), or (n, tokens, dim / 2) where tokens are pooled here
        return out if spec.pooling == "token" else torch.cat([out[:, 0], out[:, first_patch:].mean(1)], dim=-1)

    return lambda batch: run_network(net, batch.pixels, look, device, pool)


def _build_timm_network(spec: TimmEncoder) -> torch.nn.Module:
    import timm
    import torch
    from timm.layers.mlp import SwiGLUPacked

    extra: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if spec.swiglu else {}
    net: torch.nn.Module = timm.create_model(spec.arch, pretrained=False, **spec.kwargs, **extra)
    return net


def _timm_spec(model: str) -> TimmEncoder:
    """The row of a timm backbone, from its own configuration; its classifier is left out."""
    import timm
    import torch
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(model):
        raise InputError(f"timm knows no model {model!r}", None, "see timm.list_models() for its names")
    with torch.device("meta"):
        net: Any = timm.create_model(model, pretrained=False, num_classes=0)
    look: dict[str, Any] = resolve_model_data_config(net)
    about: dict[str, Any] = net.pretrained_cfg
    licence = about.get("license") or "see its page"
    return TimmEncoder(
        arch=model,
        dim=int(getattr(net, "head_hidden_size", None) or net.num_features),
        source=WeightsSource(about.get("hf_hub_id"), None, ("model.safetensors", "pytorch_model.bin"), licence),
        mpp=(),
        kwargs={"num_classes": 0},
        mean=tuple(look["mean"]),
        std=tuple(look["std"]),
        input_px=int(look["input_size"][-1]),
        resize=look["interpolation"],
    )


def encoder_licence(name: str) -> str:
    """Under which an encoder's weights are given out, and so heads trained on its embeddings.

    Of an encoder that nobody here knows, whose embeddings were imported, it has to be asked where it comes from.
    """
    if name not in ENCODERS and not name.startswith(TIMM):
        return f"{name}: not known here; embeddings that were imported, under the licence of what made them"
    return f"{name}: {encoder_spec(name).licence}"
