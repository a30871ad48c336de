"""Settings files of jobs: the nightly run, training, the search of hyperparameters."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from her2batch.errors import InputError
from her2batch.settings import Plan, Resources, RunWindow, Settings, TimeOfDay, Training, TrainingResources


class SentinelSettings(Settings):
    """Settings of the sentinels: slides that are scored again every night, to detect a change of the results."""

    folder: str = Field(description="folder with a few slides that do not change, outside the scan folder")
    score: float = Field(
        0.02, ge=0, description="largest accepted difference of the continuous score of the membrane rule"
    )
    probability: float = Field(
        0.02, ge=0, le=1, description="largest accepted difference of the probability of a class"
    )


class DriftSettings(Settings):
    """Settings of the drift alarm: how far the results of a night may differ from those of the reference period."""

    reference_days: int = Field(
        60, ge=1, description="length of the reference period in days; it ends before the night"
    )
    least: int = Field(20, ge=2, description="smallest number of slides in a period that is compared")
    deviations: float = Field(
        3.0, gt=0, description="largest accepted difference of a measure, in standard errors of the night"
    )
    shares: float = Field(
        0.01, gt=0, lt=1, description="p value of the class mix (chi-squared) below which there is an alarm"
    )
    site: str | None = Field(
        None, description="regular expression for the slide's path; its first group is the scanner or site"
    )


class RetentionSettings(Settings):
    """Settings that limit the pyramids. Tables and thumbnails are never deleted."""

    days: int | None = Field(
        None, ge=1, description="days that a pyramid is kept after its slide was processed; default: no limit"
    )
    gigabytes: float | None = Field(
        None, gt=0, description="largest total size of the pyramids in GB; the oldest are deleted first"
    )


class DiskSettings(Settings):
    """Settings of the warning before the disk of the cohort is full."""

    warn_gigabytes: float = Field(20.0, ge=0, description="free GB below which a night warns; 0: no warning")


class NotificationSettings(Settings):
    """Receivers of the summary of a night. It contains counts and times, no patient data."""

    webhook: str | None = Field(None, description="http(s) address to which the summary is posted as JSON")
    mail_to: tuple[str, ...] = Field((), description="mail addresses that receive the summary")
    mail_from: str = Field("her2batch@localhost", description="sender of the mail")
    smtp: str = Field("localhost:25", description="HOST:PORT of the mail server")
    smtp_security: Literal["none", "starttls", "tls"] = Field(
        "none", description="encryption of the mail: none, starttls (port 587) or tls (port 465)"
    )
    link: str | None = Field(None, description="address of the web page, for links in the mail")
    ping: str | None = Field(
        None, description="http(s) address that is called when a night has ended well (dead-man's switch)"
    )
    textfile: str | None = Field(None, description="file NAME.prom for node_exporter's textfile collector")


class SendSettings(Settings):
    """The laboratory information system that gets the results of a night."""

    to: str = Field(description="address of the receiver, as --to of `her2batch send`")
    identities: str = Field(description="identity sheet of the laboratory")


class NightlySettings(Settings):
    """Settings file of the nightly run."""

    scans: str = Field(description="the folder that the scanner writes to")
    cohort: str = Field(description="the cohort folder")
    bundle: str | None = Field(None, description="folder of a trained bundle; default: the membrane rule only")
    calibration: str | None = Field(
        None, description="calibration of this laboratory, from her2batch calibrate; default: uncalibrated predictions"
    )
    labels: str | None = Field(None, description="label sheet with the patient of each slide")
    columns: dict[str, str] = Field({}, description="columns of the label sheet with other headers: name → header")
    regions: str | None = Field(None, description="folder of QuPath regions to which the tiles are restricted")
    controls: str | None = Field(None, description="control tissue, as --controls: a TOML file, or auto")
    weights: str | None = Field(None, description="folder with encoder weights; default: the hub's cache")
    pseudonymize: str | None = Field(
        None, description="key file; names, dates and barcodes of the slides are replaced by keyed hashes"
    )
    start: TimeOfDay | None = Field(None, description="local time HH:MM before which no slide is started")
    keep_nights: int = Field(30, ge=1, description="number of nightly reports to keep")
    plan: Plan = Plan()
    resources: Resources = Resources()
    window: RunWindow = RunWindow()
    sentinels: SentinelSettings | None = None
    drift: DriftSettings = DriftSettings()
    retention: RetentionSettings = RetentionSettings()
    disk: DiskSettings = DiskSettings()
    send: SendSettings | None = None
    hook: NotificationSettings = NotificationSettings()


class TrainJob(Settings):
    """Settings file of jobs/train_folds.py: the options of `train`."""

    cohort: str = Field(description="the cohort folder")
    out: str = Field("run", description="folder of the training run")
    labels: str | None = Field(None, description="label sheet or TCGA table; default: those given to the ingest")
    columns: dict[str, str] = Field({}, description="columns of the label sheet with other headers: name → header")
    annotations: str | None = Field(None, description="folder with QuPath regions, SLIDE.geojson, for patch methods")
    tasks: str | None = Field(None, description="TOML file with tasks of the user's own, as --tasks")
    folds_file: str | None = Field(None, description="CSV file with the fold of each slide or patient")
    training: Training = Training()
    resources: TrainingResources = TrainingResources()


class TuneJob(TrainJob):
    """Settings file of jobs/search.py: the options of `tune`."""

    samples: int = Field(20, ge=1, description="number of trials in each outer fold")
    outer: int = Field(1, ge=1, description="number of outer folds that are searched")


Job = TypeVar("Job", bound=Settings)


def read_settings(path: Path, kind: type[Job]) -> Job:
    """Read settings from a TOML file. Raises InputError with the file, the setting and what is wrong with it."""
    try:
        return kind.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "check the path of the settings file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"is not valid TOML ({error})", path, "correct it; docs/configuration.md has an example"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {first['msg']}", path, "docs/configuration.md lists every setting") from error
