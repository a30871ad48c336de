"""A bundle: what a training hands to the next slide. A folder with `bundle.toml` and safetensors, nothing that runs.

Everything that can be wrong with one is said before the first slide is opened. torch is imported where a network is
loaded or saved.
"""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from her2batch.errors import InputError, WeightsError
from her2batch.models.nets import NETS, Classifier, build
from her2batch.models.weights import fit, read
from her2batch.settings import Settings
from her2batch.tables.files import fsync, sha256
from her2batch.tasks import CLASSES, RESOLUTIONS

if TYPE_CHECKING:
    import torch

FORMAT: Final = 1
"""Version of bundle.toml that this release writes, and the newest it reads."""

TOML: Final = "bundle.toml"

PICKLES: Final = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin", ".ckpt", ".npy", ".npz")
"""Files that can run code when they are loaded: a bundle with one is refused, whether it is named or only there."""

PATCH_PX: Final = 224
"""Edge of a patch (paper, 2.3)."""

INPUTS: Final[dict[str, dict[str, int]]] = {
    "patch": {f"patches-{name}": PATCH_PX for name in RESOLUTIONS},
    "thumbnail": {"thumbnail-224": 224, "thumbnail-512": 512},
}
"""Kind of model → its inputs and their edge in px."""

AGAIN: Final = "copy the bundle again from the training run, or train it anew"


class ModelEntry(Settings):
    """One network of a bundle. sha256 is filled in by save_bundle."""

    kind: Literal["patch", "thumbnail"]
    task: str
    method: str
    input: str
    classes: tuple[str, ...]
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")

    @property
    def edge(self) -> int:
        """Of the square it looks at, px."""
        return INPUTS[self.kind][self.input]

    @property
    def mpp(self) -> float | None:
        """µm/px of its patches; None for a thumbnail, which is as coarse as the tissue is large."""
        return RESOLUTIONS[self.input.removeprefix("patches-")] if self.kind == "patch" else None

    @model_validator(mode="after")
    def _known(self) -> ModelEntry:
        if self.task not in CLASSES:
            raise ValueError(f"no task is called {self.task!r}; known: {', '.join(CLASSES)}")
        if self.method not in NETS:
            raise ValueError(f"no method is called {self.method!r}; known: {', '.join(NETS)}")
        if self.input not in INPUTS[self.kind]:
            raise ValueError(f"a {self.kind} model has no input {self.input!r}; known: {', '.join(INPUTS[self.kind])}")
        if self.classes != CLASSES[self.task]:
            raise ValueError(f"the classes of {self.task} are {', '.join(CLASSES[self.task])}, in this order")
        if self.kind == "patch" and self.task != "her2-4way":
            raise ValueError("a patch model answers her2-4way")
        return self


class BundleInfo(Settings):
    """What bundle.toml says. encoder: of the embeddings its heads read, None without such heads.  licence: of all."""

    format: int = FORMAT
    her2batch: str
    tasks: tuple[str, ...]
    encoder: str | None = None
    licence: str
    models: tuple[ModelEntry, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> BundleInfo:
        if unknown := [task for task in self.tasks if task not in CLASSES]:
            raise ValueError(f"no task is called {unknown[0]!r}; known: {', '.join(CLASSES)}")
        if strange := [one.task for one in self.models if one.task not in self.tasks]:
            raise ValueError(f"a model answers {strange[0]!r}, which is none of the bundle's tasks")
        if len({one.file for one in self.models}) < len(self.models):
            raise ValueError("two models share a file")
        if len({(one.task, one.input) for one in self.models}) < len(self.models):
            raise ValueError("two models share a task and an input")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked. id: twelve hex digits of its content."""

    info: BundleInfo
    id: str
    path: Path


def read_bundle(folder: Path) -> Bundle:
    """A bundle, checked down to the checksums of its files; no weight is loaded.

    Raises InputError naming the file and the remedy: no bundle, unreadable or of a newer format, an unknown task or
    method, a file that is missing or not the one that was saved, or anything pickled.
    """
    text = _text(folder)
    info = _parse(text, folder / TOML)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            what = "is a format that can run code when it is loaded; a bundle holds none"
            raise InputError(what, path, "take it out of the bundle; weights are .safetensors")
    for entry in info.models:
        path = folder / entry.file
        if not path.is_file():
            raise InputError(f"is missing; {TOML} names it", path, AGAIN)
        if sha256(path) != entry.sha256:
            raise InputError("is not the file that was saved: another checksum", path, AGAIN)
    return Bundle(info, hashlib.sha256(text).hexdigest()[:12], folder)


def _text(folder: Path) -> bytes:
    try:
        return (folder / TOML).read_bytes()
    except OSError as error:
        remedy = f"give --bundle the folder that holds {TOML}, as her2batch train writes it"
        raise InputError(f"is no bundle: {TOML} can't be read ({type(error).__name__})", folder, remedy) from error


def _parse(text: bytes, path: Path) -> BundleInfo:
    try:
        data = tomllib.loads(text.decode())
        version = data.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise InputError(f"has format {version}; this her2batch reads up to {FORMAT}", path, "install a newer one")
        return BundleInfo.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"])
        raise InputError(f"is not valid: {where + ': ' if where else ''}{first['msg']}", path, AGAIN) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is no TOML: {error}", path, AGAIN) from error


def save_bundle(folder: Path, info: BundleInfo, nets: Mapping[str, torch.nn.Module]) -> Bundle:
    """Write a bundle that appears whole or not at all. nets: file name of each entry → its network.

    Raises InputError when the folder exists already, and KeyError when an entry has no network.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise InputError("exists already", folder, "choose another folder, or remove it")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        entries = []
        for entry in info.models:
            path = part / entry.file
            save_file({key: one.cpu().contiguous() for key, one in nets[entry.file].state_dict().items()}, path)
            fsync(path)
            entries.append(entry.model_copy(update={"sha256": sha256(path)}))
        info = info.model_copy(update={"models": tuple(entries)})
        (part / TOML).write_text(tomli_w.dumps(info.model_dump(mode="json", exclude_none=True)))
        fsync(part / TOML)
        fsync(part)
        part.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return read_bundle(folder)


def load(bundle: Bundle, entry: ModelEntry, device: str = "cpu") -> Classifier:
    """A bundle's network on a device, ready to classify.

    Raises InputError when the file does not fit the method: other tensors, other shapes, values that are no numbers.
    """
    import torch

    from her2batch.models.device import prepare

    prepare(device)
    path = bundle.path / entry.file
    try:
        net = fit(lambda: build(entry.method, len(entry.classes), entry.edge), read(path), path)
    except WeightsError as error:
        raise InputError(error.what, path, AGAIN) from error
    return Classifier(net.to(device).to(memory_format=torch.channels_last), len(entry.classes), device)
