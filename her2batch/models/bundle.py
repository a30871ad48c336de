"""A bundle: the trained nets that score the next slide, in one folder that is checked before it is used.

BUNDLE/bundle.toml          what it holds: models, tasks, encoder, licence, versions
BUNDLE/<name>.safetensors   the weights; never a pickle
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tomli_w
from pydantic import Field, ValidationError

from her2batch.errors import InputError
from her2batch.settings import Settings
from her2batch.tasks import CLASSES

if TYPE_CHECKING:
    import torch

    from her2batch.models.nets import Classifier

FORMAT = 1
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy", ".bin", ".ckpt")
"""Files that can carry code: none may lie in a bundle."""


class Model(Settings):
    """One trained net."""

    kind: Literal["patch", "thumbnail"]
    task: str
    method: str
    input: str = Field(description="patches-low, patches-moderate, patches-high, thumbnail-224 or thumbnail-512")
    classes: tuple[str, ...]
    edge: int = Field(ge=32, le=4096, description="px of the square input")
    file: str
    sha256: str = ""


class BundleInfo(Settings):
    """bundle.toml."""

    format: int = FORMAT
    her2batch: str = Field(default_factory=lambda: version("her2batch"))
    encoder: str = "stain"
    licence: str = ""
    models: tuple[Model, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. id: 12 hex digits of its content."""

    path: Path
    info: BundleInfo
    id: str


def save_bundle(path: Path, info: BundleInfo, nets: dict[str, torch.nn.Module]) -> Bundle:
    """Write a bundle whole: `nets` by the file names in `info`. An older bundle at `path` is replaced."""
    import safetensors.torch

    draft = path.with_name(f".{path.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    models = []
    for model in info.models:
        tensors = {name: tensor.contiguous() for name, tensor in nets[model.file].state_dict().items()}
        safetensors.torch.save_file(tensors, draft / model.file)
        models.append(model.model_copy(update={"sha256": _sha256(draft / model.file)}))
    info = info.model_copy(update={"models": tuple(models)})
    (draft / "bundle.toml").write_text(tomli_w.dumps(info.model_dump(mode="json")))
    for file in draft.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)
    return read_bundle(path)


def read_bundle(path: Path) -> Bundle:
    """Check a bundle without loading a weight. Raises InputError naming the file and the remedy."""
    toml = path / "bundle.toml"
    if not toml.is_file():
        raise InputError("is no bundle: it holds no bundle.toml", path, "give a folder that `her2batch train` wrote")
    try:
        info = BundleInfo.model_validate(tomllib.loads(toml.read_text()))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"can't be understood ({what})", toml, "export the bundle again") from error
    if info.format != FORMAT:
        raise InputError(f"has format {info.format}, this her2batch reads {FORMAT}", toml, "update her2batch")
    for file in path.rglob("*"):
        if file.suffix.lower() in PICKLES:
            raise InputError("can carry code, and a bundle holds none", file, "remove it; weights are .safetensors")
    for model in info.models:
        _check(path, model)
    return Bundle(path, info, hashlib.sha256(toml.read_bytes()).hexdigest()[:12])


def _check(path: Path, model: Model) -> None:
    file = path / model.file
    if file.parent != path or file.suffix != ".safetensors":
        raise InputError("is no .safetensors file of the bundle", file, "export the bundle again")
    if not file.is_file():
        raise InputError("is missing", file, "copy the bundle again")
    if _sha256(file) != model.sha256:
        raise InputError("differs from its checksum in bundle.toml", file, "copy the bundle again")
    if model.task not in CLASSES or model.classes != CLASSES[model.task]:
        known = ", ".join(CLASSES)
        raise InputError(f"is for the task {model.task} with classes {model.classes}", file, f"tasks: {known}")


def load(bundle: Bundle, model: Model, device: str) -> Classifier:
    """A net of a bundle, ready to classify. Raises InputError for weights that don't fit or are no numbers."""
    import safetensors.torch
    import torch

    from her2batch.models.nets import Classifier, build

    file = bundle.path / model.file
    net = build(model.method, len(model.classes), model.edge)
    try:
        tensors = safetensors.torch.load_file(file)
        net.load_state_dict(tensors, strict=True)
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"does not fit {model.method} ({what})", file, "export the bundle again") from error
    if not all(torch.isfinite(one).all() for one in tensors.values() if one.is_floating_point()):
        raise InputError("holds weights that are no numbers", file, "train again")
    return Classifier(net, device)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
