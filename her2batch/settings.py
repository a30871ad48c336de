"""Settings of every command, each declared once. A plan decides the results; resources decide the speed."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from her2batch.control_settings import Controls
from her2batch.errors import InputError
from her2batch.frozen_settings import Settings as Settings
from her2batch.tasks import BUILTIN_TASKS, Task

ALGORITHMS: Final = 2
"""Version of the computations of an ingest; part of every plan's id, so that slides of another version are not current.

Raise it by one, with a line here, in a release in which any slide gets other values in a table of the plan: tissue,
tiles, stains, quality, embeddings, patches, the membrane rule. A release that only adds tables or columns, or is only
faster, keeps it. tests/test_algorithms.py fails where a value changes without a new version.

1: the first version. Plan ids of this version are those of cohorts that were written before ids had a version.
2: quality flags are reasons of every prediction and ask for a review, of the membrane rule too; dark brown is not pen;
dark background is not tissue; where the two segmentations disagree, their union is used; the streams of a slide decide
its colour space; the largest brightfield image of a TIFF and the image of its OME-XML with its size are the slide's;
levels that are padded to whole tiles keep their scale; parts without image are no background; dark brown and dark
nuclei of contrasty scanners are not pen, black pen over brown is; nuclei are also those that DAB alone shows;
predictions of the rules claim less without a calibration; brown without haematoxylin is no nucleus of ER, PR or Ki-67;
moderate and strong nuclei of these depend on the slide's contrast, and their rims are left out; where area and cells
differ, the sets of both rules hold both classes; the stain vectors of pale slides are fitted to their darkest pixels;
the membrane of a cell is as high as its cytoplasm is dense; its nuclei are not those of the haematoxylin left in brown.
"""


SAME_MPP: Final = 1e-3
"""Relative difference of two resolutions below which they are one."""


def is_same_mpp(first: float, second: float) -> bool:
    """Return whether two resolutions, µm/px, are one."""
    return abs(first - second) <= SAME_MPP * second


REGION_SETTINGS: Final = ("include_regions", "exclude_regions")
"""Settings of a plan that are part of its id only where they are used, so that plans without keep their ids."""


WITHOUT_NETWORK: Final = ("stain",)
"""Encoders of a plan that runs no network: its precision and compilation decide nothing."""

BEFORE: Final = {"cells": "off"}
"""Values that were in effect before there was such a setting. A plan with these values has the id that it had then."""


class Plan(Settings):
    """Settings that decide the results. Cohorts with the same plan id and the same slides contain the same bytes."""

    encoders: tuple[str, ...] = Field(
        ("stain",),
        description="encoder of the tiles: stain, efficientnet-lite0 (the deep encoder that needs no hub: extra "
        "weights), uni, uni2-h, virchow2, h-optimus-0, timm:NAME or the name of an encoder that an installed package "
        "adds; repeatable",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="number format of the encoders' networks: float32, or bfloat16, which takes a processor that has "
        "it about half the time; default: float32 on processors, bfloat16 on GPUs",
    )
    compile: bool = Field(
        False,
        description="compile the encoders' networks for the machine, once; takes a C++ compiler; results have other "
        "last bits than without",
    )
    mpp: float = Field(0.5, ge=0.1, le=10, description="tile resolution, µm/px")
    tile: int = Field(224, ge=32, le=4096, description="tile edge, px at --mpp")
    min_tissue: float = Field(0.25, ge=0, le=1, description="smallest share of tissue in a tile")
    mpp_override: float | None = Field(
        None, ge=0.05, le=20, description="µm/px of slides whose file gives no resolution"
    )
    mpp_force: float | None = Field(
        None, ge=0.05, le=20, description="µm/px of all slides, whatever their files state, where these are wrong"
    )
    reader: Literal["auto", "tiff", "cucim", "nvimgcodec", "openslide"] = Field(
        "auto", description="reader of the slide files: auto, tiff, cucim, nvimgcodec or openslide"
    )
    jpeg_quality: int = Field(
        90, ge=50, le=100, description="JPEG quality of pyramids that can't be copied from the slide without decoding"
    )
    lossless: bool = Field(
        False,
        description="lossless zstd, six times larger than JPEG, for pyramids that can't be copied from the slide",
    )
    include_regions: tuple[str, ...] = Field(
        (),
        description="class of QuPath regions to which --regions restricts the tiles; repeatable; default: Tumor, "
        "Invasive",
    )
    exclude_regions: tuple[str, ...] = Field(
        (),
        description="class of QuPath regions that --regions leaves out; repeatable; default: Exclude, DCIS, Control, "
        "Ignore",
    )
    controls: Controls | None = Field(None, description="where control tissue is; see --controls")
    cells: Literal["all", "off"] = Field(
        "all", description="cells that are measured, counted and scored: all of the tissue, or off"
    )
    bundle: str | None = Field(None, description="id of the bundle whose networks classify patches and thumbnails")

    @property
    def has_regions(self) -> bool:
        """Whether the tiles are restricted to regions."""
        return bool(self.include_regions or self.exclude_regions)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that identify this plan and the version of the algorithms."""
        return self.id_of_version(ALGORITHMS)

    def id_of_version(self, algorithms: int) -> str:
        """The id of this plan in a release with another version of the algorithms."""
        values = self.model_dump(mode="json", exclude=None if self.has_regions else {*REGION_SETTINGS})
        for name in ("mpp_force", "controls"):  # ids of cohorts that were written before these settings
            if values[name] is None:
                del values[name]
        for name in ("precision", "compile"):  # decide no value of cohorts without them, or without a network
            if not values[name] or self.encoders == WITHOUT_NETWORK:
                del values[name]
        if self.cells == BEFORE["cells"]:
            del values["cells"]
        if algorithms > 1:
            values["algorithms"] = algorithms
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def for_slide(self, mpp_source: str | None, mpp: float | None = None) -> Plan:
        """The plan of one slide, without the resolutions that it does not use.

        `mpp_override` counts for slides whose file gives no resolution, and `mpp_force` for those whose file gives
        another one: given later, they change only the slides that need them.  mpp_source, mpp: as in the slides table.
        """
        has_own = mpp_source in ("file", "objective")
        unused = {"mpp_override": None} if has_own or self.mpp_force is not None else {}
        if has_own and mpp is not None and self.mpp_force is not None and is_same_mpp(mpp, self.mpp_force):
            unused["mpp_force"] = None
        return self.model_copy(update=unused)


class Resources(Settings):
    """Settings that decide the speed. They do not change a byte of the tables."""

    address: str = Field("local", description="Ray cluster: local, auto or HOST:PORT")
    workers: int | None = Field(
        None, ge=0, description="number of worker processes; 0: one process without Ray; default: one per core"
    )
    gpus: float | None = Field(None, ge=0, description="number of GPUs to use; default: all")
    worker_memory: int = Field(4_000_000_000, ge=500_000_000, description="memory of a worker in bytes")
    patience: float = Field(
        1800.0, ge=1, description="seconds that a step of a slide may take, not counting models, before the slide fails"
    )


def _time_of_day(text: str) -> str:
    if re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?", text) is None:
        raise PydanticCustomError("time_of_day", "give a local time of day such as 06:00")
    return text


TimeOfDay = Annotated[str, AfterValidator(_time_of_day)]
"""Local time of day, HH:MM or HH:MM:SS."""


class RunWindow(Settings):
    """Settings that decide when slides are processed, and in which order. They do not change a byte of the tables."""

    watch: bool = Field(False, description="wait for further slides of the scanner, until --until or a signal")
    until: TimeOfDay | None = Field(
        None, description="local time HH:MM after which no slide is started; the rest is deferred to the next run"
    )
    settle: float = Field(
        60.0, ge=0.1, le=86_400, description="seconds that a file must not change before --watch processes it"
    )
    linger: bool = Field(True, description="wait for further slides; false: end when all slides are processed")
    urgent: str | None = Field(
        None, description="slides to process first: a folder under SCANS, or a text file with one name per line"
    )


Ordinal = Literal["none", "corn", "cumulative-link"]
ORDINAL_HELP: Final = "loss of ordered classes (her2-3way, 4way, 5way): none, corn or cumulative-link"


class MilSettings(Settings):
    """Settings of CLAM and DTFD-MIL (methods.md §4; Lu 2021, Zhang 2022)."""

    lr: float = Field(1e-4, gt=0, le=1, description="learning rate of Adam")
    weight_decay: float = Field(1e-5, ge=0, le=1, description="L2 penalty (DTFD: 1e-4)")
    epochs: int = Field(200, ge=1, description="maximum number of epochs")
    least_epochs: int = Field(50, ge=0, description="first epoch at which training may stop early (CLAM)")
    patience: int = Field(20, ge=1, description="epochs without a smaller validation loss after which training stops")
    dropout: float = Field(0.25, ge=0, lt=1, description="dropout rate, a multiple of 1/256 (CLAM)")
    k: int = Field(
        8, ge=1, description="number of instances with the highest and the lowest attention that are clustered (CLAM)"
    )
    bag_weight: float = Field(
        0.7, ge=0, le=1, description="weight of the bag loss; the rest is the weight of the instance loss (CLAM)"
    )
    pseudo_bags: int = Field(4, ge=1, description="number of pseudo-bags (DTFD)")
    splits_at_test: int = Field(
        5, ge=1, description="number of random splits whose predictions are averaged; 1 in the paper (DTFD)"
    )
    ordinal: Ordinal = Field("none", description=ORDINAL_HELP)


class ImageSettings(Settings):
    """Settings of the networks that are fine-tuned on thumbnails or patches (methods.md §5)."""

    lr: float = Field(1e-4, gt=0, le=1, description="learning rate of Adam (AdamW for all but ResNet and DenseNet)")
    weight_decay: float | None = Field(None, ge=0, le=1, description="L2 penalty; default: 1e-4, with AdamW 1e-2")
    epochs: int = Field(50, ge=1, description="maximum number of epochs (paper: 25 to 100)")
    warmup: int = Field(3, ge=0, description="epochs of linear warm-up before the cosine")
    patience: int = Field(10, ge=1, description="epochs without a smaller validation loss after which training stops")
    batch: int = Field(16, ge=2, description="images per step (paper: 16–32)")
    loss: Literal["cross-entropy", "weighted", "focal"] = Field(
        "cross-entropy", description="loss; weighted: by inverse class frequency; focal: γ = 2"
    )
    ordinal: Ordinal = Field("none", description=ORDINAL_HELP)
    jitter: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="brightness and contrast jitter; off by default, because colour carries the HER2 score",
    )
    stain_jitter: float = Field(
        0.0, ge=0, le=0.5, description="jitter of the stains' optical density, which leaves the background as it is"
    )
    right_angles: float = Field(
        0.0, ge=0, le=1, description="share of images that are turned by right angles only, which keeps their pixels"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a layer, as a factor of that of the layer above it"
    )
    frozen_epochs: int = Field(0, ge=0, description="epochs at the start in which the classifier alone is trained")
    unfreeze_epochs: int = Field(
        0, ge=0, description="epochs after these over which the layers are unfrozen, the uppermost first"
    )
    trained_layers: float = Field(1.0, gt=0, le=1, description="share of the layers, from above, that is trained")
    fixed_norm: bool = Field(
        False, description="batch normalisation keeps the means of the initial weights, where there are any"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, which is validated and kept; 0: none"
    )
    size: Literal["full", "tiny"] = Field(
        "full", description="size of the network; tiny: a small one of the same family, for tests"
    )
    pretrained: str = Field(
        "imagenet",
        description="initial weights: imagenet (from the hub; of efficientnet-lite0 from the extra weights), none "
        "(random), a file, or a folder with NAME.safetensors",
    )


class CountsSettings(Settings):
    """Settings of classifiers on counts of patch classes (methods.md §6). The search uses training slides only."""

    search: bool = Field(True, description="search the grid of settings by cross-validation on the training slides")
    inner_folds: int = Field(3, ge=2, le=10, description="number of folds of the search")


Matrix = tuple[tuple[float, ...], ...]
"""Rows of shares that sum to 1, one a reference class, in the order of a task's classes."""


class Training(Settings):
    """Settings that decide the results of a training run."""

    tasks: tuple[str, ...] = Field(
        ("her2-3way",),
        description="task: her2-binary, her2-3way, her2-4way, her2-5way, er, pr, or a task of --tasks; repeatable; "
        "default: all tasks of --tasks, without them her2-3way",
    )
    definitions: tuple[Task, ...] | None = Field(None, description="tasks of the user's own, see `task_files`")
    methods: tuple[str, ...] = Field(
        ("clam-sb",),
        description="method to train, or a MIL method that an installed package adds; repeatable",
    )
    inputs: tuple[str, ...] = Field(
        (),
        description="input of the methods: the name of an encoder, thumbnail-224, thumbnail-512, patches-low, "
        "patches-moderate or patches-high; repeatable; default: the cohort's encoders, thumbnail-224, patches-low",
    )
    folds_by: Literal["site"] | None = Field(
        None, description="site: each site of the labels is tested by models that were trained at the other sites"
    )
    fold_names: tuple[str, ...] | None = Field(None, description="names of given folds, in order; see `given_folds`")
    folds: int = Field(10, le=100, description="number of folds of the cross-validation")
    seed: int = Field(0, ge=0, description="seed of the folds and of all random numbers in training")
    options: tuple[str, ...] = Field((), description="setting of the methods, such as lr=0.0002; repeatable")
    profile: Literal["small-cohort", "laptop"] | None = Field(
        None,
        description="settings other than the paper's; small-cohort: of image networks, for some hundred slides, from "
        "ImageNet weights; laptop: of all methods, for all tables on two cores",
    )
    readers: Literal["soft"] | None = Field(
        None,
        description="labels of several readers; soft: train with the share of the readers in each class; default: with "
        "their consensus",
    )
    disagreement: str | None = Field(
        None,
        description="CSV of readers' disagreement that smooths the labels; readers: estimate it from the readers of "
        "the training slides",
    )
    smoothing: dict[str, Matrix] | None = Field(None, description="the content of that file, by task")
    quick: bool = Field(False, description="few epochs, small networks and few patches, to try out a run")
    patches_per_slide: int | None = Field(
        None, ge=1, description="maximum number of patches of a slide, drawn at random"
    )
    low_overlap: int = Field(
        1,
        ge=1,
        le=4,
        description="patches of the low resolution that begin within the edge of one; 4: on slides of 1 mm they are as "
        "many as on the paper's",
    )
    patch_network: Literal["convnext-small", "efficientnet-lite0"] | None = Field(
        None, description="network whose patch classes are counted; default: convnext-small, the paper's"
    )
    reviews: bool = Field(
        False,
        description="replace labels by the newest review of each slide; differences are reported",
    )
    keep_contradictions: bool = Field(
        False, description="include slides whose IHC and ISH results contradict each other"
    )
    shuffle_labels: bool = Field(
        False, description="control run: shuffle the labels over the patients, which gives results at chance level"
    )

    @field_validator("folds")
    @classmethod
    def _folds_are_enough(cls, folds: int, info: ValidationInfo) -> int:
        """Return the number of folds. Two suffice where they are given, as others then validate."""
        least = 3 if info.data.get("fold_names") is None else 2
        if folds < least:
            raise PydanticKnownError("greater_than_equal", {"ge": least})
        return folds

    def task(self, name: str) -> Task:
        """Return a task of this run by its name. Raises InputError with the known names."""
        known = self.known_tasks
        if name not in known:
            remedy = f"choose from {', '.join(known)}, or define it in a file for --tasks"
            raise InputError(f"no task is called {name!r}", None, remedy)
        return known[name]

    @property
    def known_tasks(self) -> dict[str, Task]:
        """Return the built-in tasks and those of --tasks, by name."""
        return {**BUILTIN_TASKS, **{task.name: task for task in self.definitions or ()}}


class TrainingResources(Resources):
    """Settings that decide how a training run is distributed. They do not change a result."""

    unit_gpus: float = Field(
        1.0, gt=0, description="GPUs per fold of a method; 0.25 trains four folds at a time on one GPU"
    )
    unit_workers: int = Field(
        1, ge=1, le=64, description="number of processes that train one image network together (Ray Train)"
    )
