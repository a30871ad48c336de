"""Weights: where they are, how they are read without running anything they hold."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from her2batch.errors import WeightsError
from her2batch.files.atomic import file_sha256

if TYPE_CHECKING:
    import torch

SAFE: Final = (".safetensors",)
PICKLED: Final = (".bin", ".pt", ".pth")
"""Published in this form by their authors; read with torch's weights-only unpickler (torch ≥ 2.10)."""

SNAPSHOT: Final = ("model.safetensors", "pytorch_model.bin")
"""Names in a copy of a hub repository."""


@dataclass(frozen=True)
class WeightsSource:
    """A repository on the Hugging Face hub: id, pinned commit (None: the newest), its weight files, the licence."""

    repo: str | None
    revision: str | None
    files: tuple[str, ...]
    licence: str

    @property
    def page(self) -> str:
        """Where the licence is read and access is asked for."""
        return f"https://huggingface.co/{self.repo}" if self.repo else "its authors' page"


def locate_weights(name: str, source: WeightsSource, weights: Path | None) -> Path:
    """The file with an encoder's weights: given, in the given folder, in the hub's cache, or fetched from the hub.

    Raises WeightsError with the licence's page and both remedies.
    """
    if weights is not None:
        return _given(name, source, weights)
    return find_cached_weights(source) or _fetch(name, source)


def find_cached_weights(source: WeightsSource) -> Path | None:
    """The file in the hub's local cache; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    if source.repo is None:
        return None
    for file in source.files:
        found = try_to_load_from_cache(source.repo, file, revision=source.revision)
        if isinstance(found, str):
            return Path(found)
    return None


def find_in_folder(name: str, folder: Path) -> Path | None:
    """NAME.safetensors, NAME.bin …, NAME/ as a copy of the hub's repository, or the folder itself as one."""
    named = [folder / f"{name}{suffix}" for suffix in (*SAFE, *PICKLED)]
    copies = [place / file for place in (folder / name, folder) for file in SNAPSHOT]
    return next((path for path in (*named, *copies) if path.is_file()), None)


def _given(name: str, source: WeightsSource, weights: Path) -> Path:
    if weights.is_file():
        return weights
    found = find_in_folder(name, weights) if weights.is_dir() else None
    if found is None:
        what = f"holds no weights of {name}: neither {name}.safetensors nor {name}.bin nor {' nor '.join(SNAPSHOT)}"
        raise WeightsError(what, weights, f"put the file from {source.page} there, or leave --weights away for the hub")
    return found


def _fetch(name: str, source: WeightsSource) -> Path:
    """From the hub, with the token of the environment."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if source.repo is None:
        raise _missing(name, source, "nobody publishes weights under this name")
    for file in source.files:
        try:
            return Path(hf_hub_download(source.repo, file, revision=source.revision))
        except LocalEntryNotFoundError:  # an EntryNotFoundError and an OSError too
            raise _missing(name, source, "the hub can't be reached") from None
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            answer = getattr(error.response, "status_code", "no answer")
            raise _missing(name, source, f"the hub refuses ({answer})") from None
        except OSError as error:
            raise _missing(name, source, f"they can't be fetched ({type(error).__name__})") from None
    raise _missing(name, source, f"the hub has no {' or '.join(source.files)}")


def _missing(name: str, source: WeightsSource, why: str) -> WeightsError:
    known = f" ({source.repo})" if source.repo else ""
    what = f"the weights of encoder {name}{known} are not here: {why}"
    remedy = (
        f"accept the licence ({source.licence}) at {source.page} and run `hf auth login`, "
        f"or give --weights FOLDER with {name}.safetensors or {name}.bin in it"
    )
    return WeightsError(what, None, remedy)


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights, hex. Files in the hub's cache are links to blobs that are named by theirs."""
    blob = Path(os.path.realpath(path)).name
    return blob if path.is_symlink() and len(blob) == 64 else file_sha256(path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, float32 on the CPU; nothing in the file is run.

    Raises WeightsError when the file is damaged, holds anything but tensors, or a value that is no number.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = "fetch the file again and compare its checksum with the published one"
    try:
        if path.suffix in SAFE:
            state = load_file(path)
        elif path.suffix in PICKLED:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise WeightsError(f"{path.suffix or 'a file without suffix'} is no format of weights", path, remedy)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"can't be read ({type(error).__name__})", path, remedy) from error
    if not isinstance(state, dict) or not all(isinstance(one, torch.Tensor) for one in state.values()):
        raise WeightsError("holds something else than named tensors", path, remedy)
    for key, one in state.items():
        if one.is_floating_point() and not torch.isfinite(one).all():
            raise WeightsError(f"holds values that are no numbers, in {key}", path, remedy)
    return {key: one.float() if one.is_floating_point() else one for key, one in state.items()}


def network_with_weights(
    build: Callable[[], torch.nn.Module], state: dict[str, torch.Tensor], path: Path
) -> torch.nn.Module:
    """A network with these weights, frozen, in evaluation mode. Raises WeightsError when names or shapes differ.

    It is built without storage first: a random start of a ViT-g alone would take 15 s.
    """
    import torch

    with torch.device("meta"):
        net = build()
    wanted = {key: tuple(one.shape) for key, one in net.state_dict().items()}
    found = {key: tuple(one.shape) for key, one in state.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        what = f"does not fit: {len(wrong)} tensors are missing, in excess or of another shape, {wrong[0]} the first"
        raise WeightsError(what, path, "take the file that belongs to this name")
    if not {name for name, _ in net.named_buffers()} <= wanted.keys():  # tables no file keeps, such as Swin's indices
        net = build()
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).eval()
