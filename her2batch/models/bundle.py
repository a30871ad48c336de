"""A bundle: the trained models of a run, in a folder with `bundle.toml` and files of weights that contain no code.

Reading a bundle checks all of it, so that errors come before the first slide is opened. torch is imported where a
network is loaded or saved.
"""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from her2batch.errors import InputError, WeightsError
from her2batch.files.atomic import file_sha256, fsync
from her2batch.models import mil_registry
from her2batch.models.fusion.stack import StackWeights
from her2batch.models.nets import ImageClassifier, build_network, network_spec
from her2batch.models.weights import network_with_weights, read_weights
from her2batch.settings import MilSettings, Plan, Settings
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import (
    BUILTIN_TASKS,
    COUNTS_METHODS,
    FUSION,
    FUSION_INPUT,
    NETWORK_METHODS,
    PATCH_INPUTS,
    PATCH_PX,
    THUMBNAIL_INPUTS,
    TIMM_PREFIX,
    Task,
)

FORMAT: Final = 3
"""The newest version of bundle.toml that this release reads. 2 adds tasks of the user's own, 3 ordinal
losses, fusions and overlapping patches."""

TOML: Final = "bundle.toml"

PICKLES: Final = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin", ".ckpt", ".npy", ".npz")
"""Files that can run code when they are loaded: a bundle with one is refused, even if bundle.toml does not name it."""

METHODS_OF: Final[dict[str, tuple[str, ...]]] = {
    "patch": NETWORK_METHODS,
    "thumbnail": NETWORK_METHODS,
    "counts": COUNTS_METHODS,
    "fusion": (FUSION,),
}
"""Kind of model → its methods. The methods of MIL heads are in `mil_registry`."""

INPUTS: Final[dict[str, dict[str, int]]] = {
    "patch": dict.fromkeys(PATCH_INPUTS, PATCH_PX),
    "thumbnail": THUMBNAIL_INPUTS,
    "counts": dict.fromkeys(PATCH_INPUTS, PATCH_PX),
    "fusion": {FUSION_INPUT: 0},
}
"""Kind of model → its inputs and their edge in px. A MIL head's input is an encoder's name."""

COPY_AGAIN: Final = "copy the bundle from the training run again, or train a new one"


class ModelEntry(Settings):
    """One model of a bundle. sha256 is filled in by save_bundle; `file` is empty for the majority vote.

    dim, pseudo_bags, splits: of a MIL head.  settings: further settings that decide what a MIL head computes.
    size: of an image network.  ordinal: loss of ordered classes that it was trained with; None: another.
    per_edge: of overlapping patches, how many begin within the edge of one.
    stack: of a fusion.  temperature: divisor of the logarithms of p.  threshold: classes of at least this
    probability cannot be ruled out (conformal, 90 %); None: not calibrated.  scale: mean and standard deviation of the
    training numbers, of a model that predicts a number.  interval: half the width of the interval in which nine of ten
    true numbers lie (conformal); None: not calibrated.  figures: means and deviations over the
    folds of the training cohort, whose slides the final model itself was trained on.
    """

    kind: Literal["patch", "thumbnail", "mil", "counts", "fusion"]
    task: str
    method: str
    input: str
    classes: tuple[str, ...]
    file: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|skops))?$")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    dim: int | None = Field(None, ge=1)
    pseudo_bags: int = Field(4, ge=1)
    splits: int = Field(5, ge=1)
    settings: dict[str, Any] | None = None
    size: Literal["full", "tiny"] = "full"
    ordinal: Literal["corn", "cumulative-link"] | None = None
    per_edge: int | None = Field(None, ge=2, le=4)
    stack: StackWeights | None = None
    temperature: float = Field(1.0, gt=0)
    threshold: float | None = Field(None, ge=0, le=1)
    scale: tuple[float, float] | None = None
    interval: float | None = Field(None, ge=0)
    figures: dict[str, float] = Field(default_factory=dict)

    @property
    def edge(self) -> int:
        """Return the edge of the square that the model reads, px."""
        return INPUTS[self.kind][self.input]

    @property
    def mpp(self) -> float | None:
        """Return µm/px of its patches; None for a thumbnail, whose resolution depends on the size of the tissue."""
        return PATCH_INPUTS[self.input] if self.kind == "patch" else None

    @model_validator(mode="after")
    def _known(self) -> ModelEntry:
        any_of_timm = self.kind == "thumbnail" and self.method.startswith(TIMM_PREFIX)
        if self.kind != "mil" and not any_of_timm and self.method not in METHODS_OF[self.kind]:
            known = ", ".join(METHODS_OF[self.kind])
            raise ValueError(f"no method of a {self.kind} model is called {self.method!r}; known: {known}")
        if self.kind != "mil" and self.input not in INPUTS[self.kind]:
            raise ValueError(f"a {self.kind} model has no input {self.input!r}; known: {', '.join(INPUTS[self.kind])}")
        if self.kind == "patch" and self.task != "her2-4way":
            raise ValueError("the task of a patch model is her2-4way")
        if (self.kind == "fusion") != (self.stack is not None):
            raise ValueError("a fusion, and no other model, has a stack")
        if self.kind == "mil" and self.dim is None:
            raise ValueError("a MIL head needs dim, the length of its embeddings")
        if not self.file.endswith({"counts": ".skops"}.get(self.kind, ".safetensors")) and not self.needs_no_file:
            raise ValueError(f"the file of a {self.kind} model has another format: {self.file!r}")
        return self

    def contradiction(self, task: Task) -> str | None:
        """Return why the model does not fit its task; None when it does."""
        if self.classes != task.classes:
            return f"the classes of {task.name} are {', '.join(task.classes) or 'none'}, in this order"
        if task.is_number != (self.scale is not None):
            return "a model has a scale if, and only if, its task predicts a number"
        return None

    @property
    def needs_no_file(self) -> bool:
        """Return whether the model has no file of weights: the majority vote, and a fusion."""
        return self.kind == "fusion" or self.method == "majority-vote"


class PackageEntry(Settings):
    """An encoder or MIL method of a bundle that an installed package adds, with the version used in training."""

    adds: Literal["encoder", "mil"]
    name: str
    package: str
    version: str

    @property
    def install(self) -> str:
        """Return the command that installs the package."""
        return f"pip install {self.package}=={self.version}"


class BundleInfo(Settings):
    """The content of bundle.toml.

    encoder: of the embeddings that its heads read; None without such heads.  mpp, tile: of the cohort it was trained on
    and of the cohorts it can score; None without such heads.  licence: of all models.  packages: those that add its
    encoders and MIL methods; None: all are built in.  definitions: of its tasks that are not built in; None: all are.
    """

    format: int = 1
    her2batch: str
    tasks: tuple[str, ...]
    encoder: str | None = None
    mpp: float | None = None
    tile: int | None = None
    licence: str
    packages: tuple[PackageEntry, ...] | None = None
    definitions: tuple[Task, ...] | None = None
    models: tuple[ModelEntry, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> BundleInfo:
        if unknown := [task for task in self.tasks if task not in self.known_tasks]:
            raise ValueError(f"no task is called {unknown[0]!r}; known: {', '.join(self.known_tasks)}")
        if self.definitions and self.format < 2:
            raise ValueError("tasks of the user's own need format 2")
        if any(entry.ordinal or entry.stack or entry.per_edge for entry in self.models) and self.format < 3:
            raise ValueError("ordinal losses, fusions and overlapping patches need format 3")
        if others := [entry.task for entry in self.models if entry.task not in self.tasks]:
            raise ValueError(f"a model has the task {others[0]!r}, which is none of the bundle's tasks")
        for entry in self.models:
            if reason := entry.contradiction(self.task(entry.task)):
                raise ValueError(reason)
        files = [entry.file for entry in self.models if entry.file]
        if len(set(files)) < len(files):
            raise ValueError("two models share a file")
        if len({(entry.kind, entry.task, entry.method, entry.input) for entry in self.models}) < len(self.models):
            raise ValueError("two models share a task, a method and an input")
        patch_inputs = [entry.input for entry in self.models if entry.kind == "patch"]
        if len(set(patch_inputs)) < len(patch_inputs):
            raise ValueError("two patch models share an input")
        missing = {entry.input for entry in self.models if entry.kind == "counts"} - set(patch_inputs)
        if missing:
            raise ValueError(f"counts of {sorted(missing)[0]} have no patch model")
        return self

    @property
    def known_tasks(self) -> dict[str, Task]:
        """Return the built-in tasks and those that the bundle defines, by name."""
        return {**BUILTIN_TASKS, **{task.name: task for task in self.definitions or ()}}

    def task(self, name: str) -> Task:
        """Return one of the bundle's tasks by its name."""
        return self.known_tasks[name]

    def package_of(self, adds: Literal["encoder", "mil"], name: str) -> PackageEntry | None:
        """Return the package that adds an encoder or MIL method; None for a built-in one."""
        return next((entry for entry in self.packages or () if (entry.adds, entry.name) == (adds, name)), None)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked. id: twelve hexadecimal digits that identify its content."""

    info: BundleInfo
    id: str
    path: Path


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle, including the checksums of its files; no weights are loaded.

    Raises InputError naming the file and the remedy: no bundle, unreadable or of a newer format, an unknown task or
    method, a package that is not installed, a file that is missing or was changed, or a pickled file.
    """
    text = _text(folder)
    info = _parse(text, folder / TOML)
    _check_methods(info, folder / TOML)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            what = "is of a format that can run code when it is loaded, which a bundle must not contain"
            raise InputError(what, path, "remove it from the bundle; weights are .safetensors files")
    for entry in info.models:
        path = folder / entry.file
        if entry.needs_no_file:
            continue
        if not path.is_file():
            raise InputError(f"is missing; {TOML} names it", path, COPY_AGAIN)
        if file_sha256(path) != entry.sha256:
            raise InputError("is not the file that was saved: it has another checksum", path, COPY_AGAIN)
    return Bundle(info, hashlib.sha256(text).hexdigest()[:12], folder)


def _check_methods(info: BundleInfo, path: Path) -> None:
    """Refuse a bundle with a MIL method that is not built in, installed or registered. Raises InputError."""
    for entry in info.models:
        if entry.kind != "mil" or mil_registry.is_mil_method(entry.method):
            continue
        package = info.package_of("mil", entry.method)
        if package is not None:
            what = f"its MIL method {entry.method!r} comes from the package {package.package} {package.version}"
            raise InputError(f"{what}, which is not installed", path, f"run `{package.install}`")
        known = ", ".join(mil_registry.mil_method_names())
        what = f"no method of a mil model is called {entry.method!r}; known: {known}"
        raise InputError(what, path, "install the package that adds it, or register it with her2batch.register_mil")


def _text(folder: Path) -> bytes:
    try:
        return (folder / TOML).read_bytes()
    except OSError as error:
        remedy = f"name the folder with {TOML} that her2batch train wrote, as --bundle RUN/bundle"
        raise InputError(f"is no bundle: {TOML} cannot be read ({type(error).__name__})", folder, remedy) from error


def _parse(text: bytes, path: Path) -> BundleInfo:
    try:
        data = tomllib.loads(text.decode())
        version = data.get("format")
        if isinstance(version, int) and version > FORMAT:
            what = f"has format {version}; this version of her2batch reads formats up to {FORMAT}"
            raise InputError(what, path, "install a newer version of her2batch")
        return BundleInfo.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"is not valid: {where + ': ' if where else ''}{first['msg']}", path, COPY_AGAIN) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is not valid TOML: {error}", path, COPY_AGAIN) from error


def save_bundle(
    folder: Path, info: BundleInfo, files: Mapping[str, Path], texts: Mapping[str, str] = MappingProxyType({})
) -> Bundle:
    """Write a bundle atomically: it appears whole or not at all. files: file name of each entry → the file to copy.

    texts: further files, for people: file name → text.  Raises InputError when the folder exists already, and KeyError
    when an entry has no file.
    """
    if folder.exists():
        raise InputError("exists already", folder, "choose another folder, or remove this one")
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
        for name, text in texts.items():
            (part / name).write_text(text, "utf-8")
            fsync(part / name)
        (part / TOML).write_text(tomli_w.dumps(info.model_dump(mode="json", exclude_none=True)), "utf-8")
        fsync(part / TOML)
        fsync(part)
        part.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return read_bundle(folder)


def check_bundle_fits(bundle: Bundle, plan: Plan, imported: Collection[str] = ()) -> None:
    """Refuse a bundle whose heads read embeddings that the cohort does not have. Raises InputError with the remedy.

    imported: encoders whose embeddings were imported, by the names of their tables.
    """
    info = bundle.info
    for entry in info.models:
        if entry.kind != "mil":
            continue
        if entry.input not in plan.encoders and encoder_folder(entry.input) not in imported:
            what = f"its {entry.method} reads embeddings of {entry.input}; the cohort has {', '.join(plan.encoders)}"
            remedy = f"ingest the slides with --encoder {entry.input}, or import its embeddings"
            if (package := info.package_of("encoder", entry.input)) is not None:
                remedy = f"run `{package.install}` if that package is not installed; then {remedy}"
            raise InputError(what, bundle.path, remedy)
        if (info.mpp, info.tile) != (plan.mpp, plan.tile):
            what = f"reads tiles of {info.tile} px at {info.mpp} µm/px; the cohort has {plan.tile} px at {plan.mpp}"
            raise InputError(what, bundle.path, f"ingest the slides with --mpp {info.mpp} --tile {info.tile}")


def load_mil_head(bundle: Bundle, entry: ModelEntry) -> Any:
    """Return a bundle's MIL head on the CPU, in evaluation mode. Raises InputError when the file does not fit."""
    path = bundle.path / entry.file
    settings = _mil_settings(entry, path)
    dim, outputs = entry.dim, bundle.info.task(entry.task).outputs
    assert dim is not None
    try:
        return network_with_weights(
            lambda: mil_registry.build_mil_network(entry.method, dim, outputs, settings),
            read_weights(path),
            path,
            without_storage=mil_registry.is_builtin_mil(entry.method),
        )
    except WeightsError as error:
        raise InputError(error.message, path, COPY_AGAIN) from error


def _mil_settings(entry: ModelEntry, path: Path) -> MilSettings:
    model = mil_registry.mil_method(entry.method).settings
    values = {"pseudo_bags": entry.pseudo_bags, "splits_at_test": entry.splits, **(entry.settings or {})}
    values["ordinal"] = entry.ordinal or "none"
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"its settings do not fit the method {entry.method}: {first['loc'][0]}: {first['msg']}"
        raise InputError(what, path, "install the version of the package that the bundle names") from error


def load_network(bundle: Bundle, entry: ModelEntry, device: str = "cpu") -> ImageClassifier:
    """Return a bundle's image network on a device, ready to classify.

    Raises InputError when the file does not fit the method: other tensors, other shapes, values that are not finite.
    """

    from her2batch.models.device import set_deterministic, to_channels_last

    set_deterministic(device)
    path = bundle.path / entry.file
    try:
        net = network_with_weights(
            lambda: build_network(entry.method, len(entry.classes), entry.edge, entry.size, entry.ordinal or "none"),
            read_weights(path),
            path,
        )
    except WeightsError as error:
        raise InputError(error.message, path, COPY_AGAIN) from error
    return ImageClassifier(
        to_channels_last(net, device), len(entry.classes), device, network_spec(entry.method).normalization
    )
