"""Settings, each declared once: Plan decides results and is hashed; Resources only say how fast."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen value; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(Settings):
    """What is computed. Two cohorts with one plan id and the same slides hold the same bytes."""

    encoders: tuple[str, ...] = Field(
        ("stain",),
        description="encoder of the tiles: stain, uni, uni2-h, virchow2, h-optimus-0 or timm:NAME; repeatable",
    )
    mpp: float = Field(0.5, ge=0.1, le=10, description="tile resolution, µm/px")
    tile: int = Field(224, ge=32, le=4096, description="tile edge, px at --mpp")
    min_tissue: float = Field(0.25, ge=0, le=1, description="share of a tile that must be tissue")
    mpp_override: float | None = Field(
        None, ge=0.05, le=20, description="µm/px of slides whose file gives no resolution"
    )
    reader: Literal["auto", "tiff", "cucim", "openslide"] = Field(
        "auto", description="what opens the slides: auto, tiff, cucim or openslide"
    )
    jpeg_quality: int = Field(
        90, ge=50, le=100, description="JPEG quality of pyramids whose slide can't be copied as it is"
    )
    lossless: bool = Field(
        False,
        description="pyramids whose slide can't be copied as it is: zstd without loss, six times larger, not JPEG",
    )
    bundle: str | None = Field(None, description="id of the bundle whose nets classify patches and thumbnails")

    @property
    def id(self) -> str:
        """Twelve hex digits that name this plan."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def for_slide(self, mpp_source: str | None) -> Plan:
        """The plan as one slide sees it: --mpp-override is no part of it where the file has its own resolution.

        So an override given later brings in the slides that lacked one and leaves the others as they are.
        """
        if mpp_source in ("file", "objective"):
            return self.model_copy(update={"mpp_override": None})
        return self


class Resources(Settings):
    """How fast, never what: nothing here changes a byte of the tables."""

    address: str = Field("local", description="Ray cluster: local, auto or HOST:PORT")
    workers: int | None = Field(
        None, ge=0, description="worker processes; 0: a plain loop without Ray; default: one a core"
    )
    gpus: float | None = Field(None, ge=0, description="GPUs to use; default: all that are there")
    worker_memory: int = Field(4_000_000_000, ge=500_000_000, description="bytes a worker may hold")


class MilSettings(Settings):
    """CLAM and DTFD-MIL (methods.md §4; Lu 2021, Zhang 2022)."""

    lr: float = Field(1e-4, gt=0, le=1, description="Adam's step")
    weight_decay: float = Field(1e-5, ge=0, le=1, description="L2 penalty (DTFD: 1e-4)")
    epochs: int = Field(200, ge=1, description="at most so many")
    least_epochs: int = Field(50, ge=0, description="early stopping not before this epoch (CLAM)")
    patience: int = Field(20, ge=1, description="epochs without a smaller validation loss before training stops")
    dropout: float = Field(0.25, ge=0, lt=1, description="share of units left out, a multiple of 1/256 (CLAM)")
    k: int = Field(8, ge=1, description="instances of highest and of lowest attention that are clustered (CLAM)")
    bag_weight: float = Field(0.7, ge=0, le=1, description="share of the bag's loss; the rest is the instances' (CLAM)")
    pseudo_bags: int = Field(4, ge=1, description="parts a bag is split into (DTFD)")
    splits_at_test: int = Field(5, ge=1, description="random splits averaged at test; the paper's is 1 (DTFD)")


class ImageSettings(Settings):
    """Networks fine-tuned on thumbnails or patches (methods.md §5)."""

    lr: float = Field(1e-4, gt=0, le=1, description="step of Adam (AdamW for ConvNeXt and ViT)")
    weight_decay: float | None = Field(None, ge=0, le=1, description="default: 1e-4, with AdamW 1e-2")
    epochs: int = Field(50, ge=1, description="at most so many (paper: 25 to 100)")
    warmup: int = Field(3, ge=0, description="epochs of linear warm-up before the cosine")
    patience: int = Field(10, ge=1, description="epochs without a smaller validation loss before training stops")
    batch: int = Field(16, ge=2, description="pictures a step (paper's range: 16–32)")
    loss: Literal["cross-entropy", "weighted", "focal"] = Field(
        "cross-entropy", description="weighted: by inverse class frequency; focal: γ = 2"
    )
    jitter: float = Field(0.0, ge=0, le=0.5, description="brightness and contrast jitter; HER2 is colour, so off")
    size: Literal["full", "tiny"] = Field("full", description="tiny: the same family at toy size, for trials")
    pretrained: str = Field(
        "imagenet", description="imagenet (of the hub), none (random) or a folder of NAME.safetensors"
    )


class CountsSettings(Settings):
    """Classifiers on the counts of patch classes (methods.md §6). Their searches are inside the training folds."""

    search: bool = Field(True, description="search the small grid by cross-validation on the training slides")
    inner_folds: int = Field(3, ge=2, le=10, description="folds of that search")


class Training(Settings):
    """What is trained and compared: all that decides the figures of a run."""

    tasks: tuple[str, ...] = Field(("her2-3way",), description="her2-binary, her2-3way, her2-4way, er, pr; repeatable")
    methods: tuple[str, ...] = Field(
        ("clam-sb",),
        description="clam-sb, clam-mb, dtfd-afs, dtfd-maxs, dtfd-maxmins, convnext-small, resnet50, densenet201, "
        "vit-base, random-forest, svm, mlp or majority-vote; repeatable",
    )
    inputs: tuple[str, ...] = Field(
        (),
        description="what a method reads: an encoder's name, thumbnail-224, thumbnail-512, patches-low, "
        "patches-moderate or patches-high; repeatable; default: the cohort's encoders, thumbnail-224, patches-low",
    )
    folds: int = Field(10, ge=3, le=100, description="parts of the cross-validation")
    seed: int = Field(0, ge=0, description="of the folds and of every random choice in training")
    options: tuple[str, ...] = Field((), description="a setting of the methods, as lr=0.0002; repeatable")
    quick: bool = Field(False, description="few epochs, toy networks, few patches: to see all of it run")
    patches_per_slide: int | None = Field(None, ge=1, description="at most so many patches of a slide, drawn at random")
    keep_contradictions: bool = Field(False, description="train on slides whose IHC and ISH contradict each other too")
    shuffle_labels: bool = Field(False, description="a control: labels at random over the patients, figures at chance")


class Spread(Resources):
    """How a run's units are spread: nothing here changes a figure."""

    unit_gpus: float = Field(1.0, gt=0, description="GPUs of one unit: 0.25 trains four folds side by side on one")
    unit_workers: int = Field(1, ge=1, le=64, description="processes that train one image network together (Ray Train)")
