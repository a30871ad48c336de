"""A bundle: what a training hands to the next slide. A folder with `bundle.toml` and safetensors, nothing that runs.

Everything that can be wrong with one is said before the first slide is opened. torch is imported where a network is
loaded or saved.
"""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from her2batch.errors import InputError, WeightsError
from her2batch.files.atomic import file_sha256, fsync
from her2batch.models.nets import ImageClassifier, build_network
from her2batch.models.weights import network_with_weights, read_weights
from her2batch.settings import MilSettings, Plan, Settings
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import (
    CLASSES,
    COUNTS_METHODS,
    IMAGE_METHODS,
    MIL_METHODS,
    PATCH_INPUTS,
    PATCH_PX,
    THUMBNAIL_INPUTS,
)

FORMAT: Final = 1
"""Version of bundle.toml that this release writes, and the newest it reads."""

TOML: Final = "bundle.toml"

PICKLES: Final = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin", ".ckpt", ".npy", ".npz")
"""Files that can run code when they are loaded: a bundle with one is refused, whether it is named or only there."""

METHODS_OF: Final[dict[str, tuple[str, ...]]] = {
    "patch": IMAGE_METHODS,
    "thumbnail": IMAGE_METHODS,
    "mil": MIL_METHODS,
    "counts": COUNTS_METHODS,
}
"""Kind of model → its methods."""

INPUTS: Final[dict[str, dict[str, int]]] = {
    "patch": dict.fromkeys(PATCH_INPUTS, PATCH_PX),
    "thumbnail": THUMBNAIL_INPUTS,
    "counts": dict.fromkeys(PATCH_INPUTS, PATCH_PX),
}
"""Kind of model → its inputs and their edge in px. A MIL head's input is an encoder's name."""

AGAIN: Final = "copy the bundle again from the training run, or train it anew"


class ModelEntry(Settings):
    """One model of a bundle. sha256 is filled in by save_bundle; `file` is empty for the majority vote.

    dim, pseudo_bags, splits: of a MIL head.  size: of a network.  temperature: divides the logarithms of p.
    threshold: classes at least this probable can't be ruled out (conformal, 90 %); None: not calibrated.  figures:
    over the folds of the training cohort, which the model itself has seen.
    """

    kind: Literal["patch", "thumbnail", "mil", "counts"]
    task: str
    method: str
    input: str
    classes: tuple[str, ...]
    file: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|skops))?$")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    dim: int | None = Field(None, ge=1)
    pseudo_bags: int = Field(4, ge=1)
    splits: int = Field(5, ge=1)
    size: Literal["full", "tiny"] = "full"
    temperature: float = Field(1.0, gt=0)
    threshold: float | None = Field(None, ge=0, le=1)
    figures: dict[str, float] = Field(default_factory=dict)

    @property
    def edge(self) -> int:
        """Of the square it looks at, px."""
        return INPUTS[self.kind][self.input]

    @property
    def mpp(self) -> float | None:
        """µm/px of its patches; None for a thumbnail, which is as coarse as the tissue is large."""
        return PATCH_INPUTS[self.input] if self.kind == "patch" else None

    @model_validator(mode="after")
    def _known(self) -> ModelEntry:
        if self.task not in CLASSES:
            raise ValueError(f"no task is called {self.task!r}; known: {', '.join(CLASSES)}")
        if self.method not in METHODS_OF[self.kind]:
            known = ", ".join(METHODS_OF[self.kind])
            raise ValueError(f"no method of a {self.kind} model is called {self.method!r}; known: {known}")
        if self.kind != "mil" and self.input not in INPUTS[self.kind]:
            raise ValueError(f"a {self.kind} model has no input {self.input!r}; known: {', '.join(INPUTS[self.kind])}")
        if self.classes != CLASSES[self.task]:
            raise ValueError(f"the classes of {self.task} are {', '.join(CLASSES[self.task])}, in this order")
        if self.kind == "patch" and self.task != "her2-4way":
            raise ValueError("a patch model answers her2-4way")
        if self.kind == "mil" and self.dim is None:
            raise ValueError("a MIL head has a dim, the length of its embeddings")
        if not self.file.endswith({"counts": ".skops"}.get(self.kind, ".safetensors")) and not self.needs_no_file:
            raise ValueError(f"a {self.kind} model has no file of this format: {self.file!r}")
        return self

    @property
    def needs_no_file(self) -> bool:
        """The majority vote has learnt nothing."""
        return self.method == "majority-vote"


class BundleInfo(Settings):
    """What bundle.toml says. encoder: of the embeddings its heads read, None without such heads.  licence: of all.

    mpp, tile: of the cohort it was trained on, and so of those it scores; None: heads of no embeddings.
    """

    format: int = FORMAT
    her2batch: str
    tasks: tuple[str, ...]
    encoder: str | None = None
    mpp: float | None = None
    tile: int | None = None
    licence: str
    models: tuple[ModelEntry, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> BundleInfo:
        if unknown := [task for task in self.tasks if task not in CLASSES]:
            raise ValueError(f"no task is called {unknown[0]!r}; known: {', '.join(CLASSES)}")
        if strange := [one.task for one in self.models if one.task not in self.tasks]:
            raise ValueError(f"a model answers {strange[0]!r}, which is none of the bundle's tasks")
        files = [one.file for one in self.models if one.file]
        if len(set(files)) < len(files):
            raise ValueError("two models share a file")
        if len({(one.kind, one.task, one.method, one.input) for one in self.models}) < len(self.models):
            raise ValueError("two models share a task, a method and an input")
        nets = [one.input for one in self.models if one.kind == "patch"]
        if len(set(nets)) < len(nets):
            raise ValueError("two patch models share an input")
        lone = {one.input for one in self.models if one.kind == "counts"} - set(nets)
        if lone:
            raise ValueError(f"counts of {sorted(lone)[0]} have no patch model")
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
        if entry.needs_no_file:
            continue
        if not path.is_file():
            raise InputError(f"is missing; {TOML} names it", path, AGAIN)
        if file_sha256(path) != entry.sha256:
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is no TOML: {error}", path, AGAIN) from error


def save_bundle(folder: Path, info: BundleInfo, files: Mapping[str, Path]) -> Bundle:
    """Write a bundle that appears whole or not at all. files: file name of each entry → the file it is a copy of.

    Raises InputError when the folder exists already, and KeyError when an entry has no file.
    """
    if folder.exists():
        raise InputError("exists already", folder, "choose another folder, or remove it")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        entries = []
        for entry in info.models:
            path = part / entry.file
            if entry.needs_no_file:
                entries.append(entry)
                continue
            shutil.copyfile(files[entry.file], path)
            fsync(path)
            entries.append(entry.model_copy(update={"sha256": file_sha256(path)}))
        info = info.model_copy(update={"models": tuple(entries)})
        (part / TOML).write_text(tomli_w.dumps(info.model_dump(mode="json", exclude_none=True)))
        fsync(part / TOML)
        fsync(part)
        part.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return read_bundle(folder)


def check_bundle_fits(bundle: Bundle, plan: Plan, imported: Collection[str] = ()) -> None:
    """Refuse a bundle whose heads read other embeddings than the cohort has. Raises InputError with the remedy.

    imported: encoders whose embeddings came from outside, by the names of their tables.
    """
    info = bundle.info
    for entry in info.models:
        if entry.kind != "mil":
            continue
        if entry.input not in plan.encoders and encoder_folder(entry.input) not in imported:
            what = f"its {entry.method} reads embeddings of {entry.input}, the cohort has {', '.join(plan.encoders)}"
            remedy = f"ingest the slides with --encoder {entry.input}, or import its embeddings"
            raise InputError(what, bundle.path, remedy)
        if (info.mpp, info.tile) != (plan.mpp, plan.tile):
            what = f"reads tiles of {info.tile} px at {info.mpp} µm/px, the cohort's are {plan.tile} px at {plan.mpp}"
            raise InputError(what, bundle.path, f"ingest the slides with --mpp {info.mpp} --tile {info.tile}")


def load_mil_head(bundle: Bundle, entry: ModelEntry) -> Any:
    """A bundle's MIL head on the CPU, in evaluation mode. Raises InputError when the file does not fit."""
    from her2batch.models import mil_registry

    path = bundle.path / entry.file
    assert entry.dim is not None
    settings = MilSettings(pseudo_bags=entry.pseudo_bags, splits_at_test=entry.splits)
    dim, classes = entry.dim, len(entry.classes)
    try:
        return network_with_weights(lambda: mil_registry.build_mil_network(entry.method, dim, classes, settings), read_weights(path), path)
    except WeightsError as error:
        raise InputError(error.what, path, AGAIN) from error


def load_network(bundle: Bundle, entry: ModelEntry, device: str = "cpu") -> ImageClassifier:
    """A bundle's network on a device, ready to classify.

    Raises InputError when the file does not fit the method: other tensors, other shapes, values that are no numbers.
    """
    import torch

    from her2batch.models.device import set_deterministic

    set_deterministic(device)
    path = bundle.path / entry.file
    try:
        net = network_with_weights(lambda: build_network(entry.method, len(entry.classes), entry.edge, entry.size), read_weights(path), path)
    except WeightsError as error:
        raise InputError(error.what, path, AGAIN) from error
    return ImageClassifier(net.to(device).to(memory_format=torch.channels_last), len(entry.classes), device)
