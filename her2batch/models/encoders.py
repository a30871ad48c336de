"""Encoders: one row each, and how to load them. An encoder turns a batch of tiles into one vector a tile."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError, WeightsError
from her2batch.vision.membrane import FEATURES, TileBatch

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]


class Encoder(Protocol):
    """What every encoder is: a name, the length of its vectors, the weights it has, and a call."""

    name: str
    dim: int
    weights_sha256: str | None

    def __call__(self, batch: TileBatch) -> NDArray[np.float16]:
        """Tiles → (n, dim) float16."""


@dataclass(frozen=True)
class Hub:
    """A network on the Hugging Face hub, as its model card describes it.

    pooling: 'token', the network's own output; 'token+mean', class token beside the mean of the patch tokens.
    """

    hub_id: str
    timm_name: str
    dim: int
    licence: str
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    pooling: str = "token"
    registers: int = 0
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """The stain encoder: documented measurements, no weights (docs/stain-vector.md)."""

    dim: int = len(FEATURES)


_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}

ENCODERS: dict[str, Hub | Figures] = {
    "stain": Figures(),
    "uni": Hub(
        "MahmoodLab/uni", "vit_large_patch16_224", 1024, "CC BY-NC-ND 4.0, gated",
        kwargs={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": Hub(
        "MahmoodLab/UNI2-h", "vit_giant_patch14_224", 1536, "CC BY-NC-ND 4.0, gated",
        registers=8,
        kwargs={
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **_SWIGLU,
        },
    ),
    "virchow2": Hub(
        "paige-ai/Virchow2", "vit_huge_patch14_224", 2560, "CC BY-NC-ND 4.0, gated",
        pooling="token+mean", registers=4,
        kwargs={
            "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "dynamic_img_size": True,
            "global_pool": "", **_SWIGLU,
        },
    ),
    "h-optimus-0": Hub(
        "bioptimus/H-optimus-0", "vit_giant_patch14_reg4_dinov2", 1536, "Apache-2.0",
        mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517), registers=4,
        kwargs={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
}  # fmt: skip
"""Name → what it is. `timm:NAME` stands for any timm backbone with its own transform."""


def known(name: str) -> Hub | Figures:
    """The row of an encoder. Raises InputError naming the known ones."""
    if name.startswith("timm:"):
        return _timm_row(name.removeprefix("timm:"))
    if name not in ENCODERS:
        raise InputError(f"there is no encoder {name}", None, f"known: {', '.join(ENCODERS)}, timm:NAME")
    return ENCODERS[name]


def dim_of(name: str) -> int:
    """Length of an encoder's vectors. Raises InputError for an unknown name."""
    return known(name).dim


def load_encoder(name: str, device: str = "cpu", weights: Path | None = None) -> Encoder:
    """An encoder ready to call.

    weights: a file (.safetensors; .bin and .pt are read as tensors only, never unpickled), or a folder that holds
    NAME.safetensors or NAME.bin; None: the hub's cache or the hub.  Raises InputError for an unknown name,
    WeightsError when the weights can't be had or don't fit.
    """
    row = known(name)
    if isinstance(row, Figures):
        return StainEncoder(name)
    path = _weights_file(name, row, weights)
    return TorchEncoder(name, row, path, device)


class StainEncoder:
    """The figures every tile is measured for, as its embedding."""

    def __init__(self, name: str) -> None:
        self.name, self.dim, self.weights_sha256 = name, len(FEATURES), None

    def __call__(self, batch: TileBatch) -> NDArray[np.float16]:
        """(n, dim) float16."""
        return _finite(self.name, batch.figures)


class TorchEncoder:
    """A frozen network. Pixels travel to the device as uint8 and are normalised there."""

    def __init__(self, name: str, row: Hub, path: Path, device: str) -> None:
        from her2batch.models.device import Runner

        self.name, self.dim, self.weights_sha256 = name, row.dim, _sha256(path)
        self._row = row
        net = _build(row)
        _fill(net, path, name)
        self._runner = Runner(net, device, row.mean, row.std, self._pool)

    def __call__(self, batch: TileBatch) -> NDArray[np.float16]:
        """(n, dim) float16. Raises WeightsError when the network answers with numbers that are none."""
        return _finite(self.name, self._runner(batch.pixels))

    def _pool(self, out: torch.Tensor) -> torch.Tensor:
        import torch

        if self._row.pooling == "token":
            return out
        patches = out[:, 1 + self._row.registers :]
        return torch.cat([out[:, 0], patches.mean(dim=1)], dim=-1)


def _finite(name: str, vectors: NDArray[Any]) -> NDArray[np.float16]:
    halves = vectors.astype(np.float16)
    if not np.isfinite(halves).all():
        raise WeightsError(
            f"encoder {name} gives numbers that are none", None, "its weights are damaged: fetch them again"
        )
    return halves


def _timm_row(name: str) -> Hub:
    """A timm backbone with its own data config. Raises InputError when timm has none of that name."""
    import timm

    if not timm.is_model(name):
        raise InputError(f"timm knows no model {name}", None, "see timm.list_models()")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    config = timm.data.resolve_data_config(model.pretrained_cfg)
    hub_id = model.pretrained_cfg.get("hf_hub_id") or f"timm/{name}"
    return Hub(hub_id, name, int(model.num_features), "see its model card", tuple(config["mean"]), tuple(config["std"]))


def _build(row: Hub) -> torch.nn.Module:
    import timm
    import torch

    layers = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "SiLU": torch.nn.SiLU}
    kwargs = {key: layers.get(value, value) if isinstance(value, str) else value for key, value in row.kwargs.items()}
    net: torch.nn.Module = timm.create_model(row.timm_name, pretrained=False, num_classes=0, **kwargs)
    return net


def _fill(net: torch.nn.Module, path: Path, name: str) -> None:
    """Load a state dict, strictly: every tensor of the network, none beside. Raises WeightsError."""
    remedy = f"give the file that belongs to {name}"
    try:
        tensors = read_tensors(path)
        tensors = {key: value for key, value in tensors.items() if not key.startswith(("head.", "fc.", "classifier."))}
        net.load_state_dict(tensors, strict=True)
    except (RuntimeError, KeyError) as error:
        what = " ".join(str(error).split())[:200]
        raise WeightsError(f"does not fit the encoder {name} ({what})", path, remedy) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, and nothing but tensors: code in a checkpoint is never run. Raises WeightsError."""
    import pickle

    import safetensors
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        what = " ".join(str(error).split())[:120]
        raise WeightsError(f"holds no plain tensors ({what})", path, "use the .safetensors file") from error
    return dict(loaded.get("state_dict", loaded))


def _weights_file(name: str, row: Hub, weights: Path | None) -> Path:
    """Where an encoder's weights are: as given, in a folder, in the hub's cache, or fetched from the hub."""
    if weights is not None and weights.is_file():
        return weights
    if weights is not None:
        stem = name.replace(":", "-").replace("/", "-")
        for file in (f"{stem}.safetensors", f"{stem}.bin", f"{stem}.pt"):
            if (weights / file).is_file():
                return weights / file
        remedy = f"put {stem}.safetensors there, or leave --weights away to use the hub"
        raise WeightsError(f"holds no weights of the encoder {name}", weights, remedy)
    return _from_hub(name, row)


def _from_hub(name: str, row: Hub) -> Path:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(row.hub_id, file))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, httpx.HTTPError):
            continue
    remedy = (
        f"accept its licence ({row.licence}) at https://huggingface.co/{row.hub_id} and run `hf auth login`, "
        f"or give --weights FOLDER with {name.replace(':', '-')}.safetensors"
    )
    raise WeightsError(f"the weights of {name} ({row.hub_id}) can't be had from the hub", None, remedy)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
