"""Settings, each declared once: Plan decides results and is hashed; Resources only say how fast."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from her2batch.errors import InputError


class Settings(BaseModel):
    """A frozen value; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ALGORITHMS: Final = 1
"""Version of the computations of an ingest; part of every plan's id, so that slides of another version are not current.

Raise it by one, with a line here, in a release in which any slide gets other values in a table of the plan: tissue,
tiles, stains, quality, embeddings, patches, the membrane rule. A release that only adds tables or columns, or is only
faster, keeps it. tests/test_algorithms.py fails where a value changes without a new version.

1: the first version. Plan ids of this version are those of cohorts that were written before ids had a version.
"""


class Plan(Settings):
    """What is computed. Two cohorts with one plan id and the same slides hold the same bytes."""

    encoders: tuple[str, ...] = Field(
        ("stain",),
        description="encoder of the tiles: stain, uni, uni2-h, virchow2, h-optimus-0, timm:NAME or the name of an "
        "encoder that an installed package adds; repeatable",
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
        """Twelve hexadecimal digits that identify this plan and the version of the algorithms."""
        values = self.model_dump(mode="json")
        if ALGORITHMS > 1:
            values["algorithms"] = ALGORITHMS
        text = json.dumps(values, sort_keys=True)
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
    patience: float = Field(
        1800.0, ge=1, description="seconds that a step of a slide may take, models aside, before it is given up"
    )


def _time_of_day(text: str) -> str:
    if re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?", text) is None:
        raise PydanticCustomError("time_of_day", "give a local time of day, as 06:00")
    return text


TimeOfDay = Annotated[str, AfterValidator(_time_of_day)]
"""Local time of day, HH:MM or HH:MM:SS."""


class RunWindow(Settings):
    """When slides are taken up, and which first: nothing here changes a byte of the tables."""

    watch: bool = Field(False, description="go on as the scanner finishes slides, until --until or a signal")
    until: TimeOfDay | None = Field(
        None, description="local time HH:MM at which no further slide is begun; the rest is deferred to the next run"
    )
    settle: float = Field(
        60.0, ge=0.1, le=86_400, description="seconds that a file must stay as it is before a watch takes it up"
    )
    linger: bool = Field(True, description="a watch waits for further slides; false: it leaves when nothing is left")
    urgent: str | None = Field(
        None, description="slides that come first: a folder under SCANS, or a text file with a name a line"
    )


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
        description="method to train, or a MIL method that an installed package adds; repeatable",
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
    reviews: bool = Field(
        False,
        description="lay the newest verdict of the cohort's reviews over each slide's label; differences are said",
    )
    keep_contradictions: bool = Field(False, description="train on slides whose IHC and ISH contradict each other too")
    shuffle_labels: bool = Field(False, description="a control: labels at random over the patients, figures at chance")


class TrainingResources(Resources):
    """How a run's units are spread: nothing here changes a figure."""

    unit_gpus: float = Field(1.0, gt=0, description="GPUs of one unit: 0.25 trains four folds side by side on one")
    unit_workers: int = Field(1, ge=1, le=64, description="processes that train one image network together (Ray Train)")


class SentinelSettings(Settings):
    """Slides that are scored again every night, to see that the software says what it said before."""

    folder: str = Field(description="a few fixed slides, outside the scans folder")
    score: float = Field(0.02, ge=0, description="most that the membrane rule's continuous score may differ by")
    probability: float = Field(0.02, ge=0, le=1, description="most that a class's probability may differ by")


class DriftSettings(Settings):
    """How far a night's figures may lie from the reference period before an alarm."""

    reference_days: int = Field(60, ge=1, description="length of the reference period, which ends before the night")
    least: int = Field(20, ge=2, description="slides a period needs before it is compared")
    deviations: float = Field(
        3.0, gt=0, description="most that a figure may move, in standard errors of a night's figures"
    )
    shares: float = Field(0.01, gt=0, lt=1, description="p value of the score mix (chi-squared) that alarms")
    site: str | None = Field(
        None, description="regular expression over the slide's path whose first group names its scanner or site"
    )


class RetentionSettings(Settings):
    """What pyramids may take. Tables and thumbnails are kept for ever."""

    days: int | None = Field(
        None, ge=1, description="days a pyramid is kept after its slide was done; default: for ever"
    )
    gigabytes: float | None = Field(None, gt=0, description="most that all pyramids may take; the oldest go first")


class NotificationSettings(Settings):
    """Who is told when a night has ended. What is told holds counts and times, no patient data."""

    webhook: str | None = Field(None, description="http(s) address that the summary is posted to, as JSON")
    mail_to: tuple[str, ...] = Field((), description="addresses that get the summary by mail")
    mail_from: str = Field("her2batch@localhost", description="sender of the mail")
    smtp: str = Field("localhost:25", description="HOST:PORT of the mail server")


class NightlySettings(Settings):
    """The nightly job's one file."""

    scans: str = Field(description="the folder that the scanner writes to")
    cohort: str = Field(description="the cohort folder")
    bundle: str | None = Field(None, description="folder of a trained bundle; default: the membrane rule alone")
    labels: str | None = Field(None, description="labels CSV: which slides are one patient's")
    weights: str | None = Field(None, description="folder with encoder weights; default: the hub's cache")
    pseudonymize: str | None = Field(None, description="key file: no name of the source reaches the store")
    start: TimeOfDay | None = Field(None, description="local time HH:MM before which nothing is begun")
    keep_nights: int = Field(30, ge=1, description="reports that are kept")
    plan: Plan = Plan()
    resources: Resources = Resources()
    window: RunWindow = RunWindow()
    sentinels: SentinelSettings | None = None
    drift: DriftSettings = DriftSettings()
    retention: RetentionSettings = RetentionSettings()
    hook: NotificationSettings = NotificationSettings()


class TrainJob(Settings):
    """What jobs/train_folds.py reads: `train` as a file."""

    cohort: str = Field(description="the cohort folder")
    out: str = Field("run", description="the run's folder")
    labels: str | None = Field(None, description="labels CSV or TCGA table; default: those given to the ingest")
    annotations: str | None = Field(None, description="folder of QuPath regions, SLIDE.geojson, for patch methods")
    training: Training = Training()
    resources: TrainingResources = TrainingResources()


class TuneJob(TrainJob):
    """What jobs/search.py reads: `tune` as a file."""

    samples: int = Field(20, ge=1, description="trials in each outer fold")
    outer: int = Field(1, ge=1, description="outer folds that are searched")


Job = TypeVar("Job", bound=Settings)


def read_settings(path: Path, kind: type[Job]) -> Job:
    """Settings from a TOML file. Raises InputError naming the file, the setting and what is wrong with it."""
    try:
        return kind.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "give the settings file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is no TOML ({error})", path, "mend it; docs/operations.md has an example") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {first['msg']}", path, "docs/operations.md lists every setting") from error
