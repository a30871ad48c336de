"""A calibration as a file: TOML that a person can read, bound to what it was fitted on, with a checksum."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import tomli_w
from pydantic import Field, ValidationError, model_validator

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.models.calibration.conformal import CalibrationScores, needed_patients
from her2batch.models.calibration.cumulative_link import LinkModel
from her2batch.settings import Plan, Settings
from her2batch.tasks import CALIBRATION_PREFIX

FORMAT: Final = 1
"""The newest version of the file that this release reads."""

COPY_AGAIN: Final = "copy the file again, or make a new one with her2batch calibrate"

HEAD: Final = """\
# A calibration of her2batch. Do not edit it: a changed file is refused.
# It may be used for slides of the same laboratory, stain, scanner and settings only. For research use.
"""


class LinkParameters(Settings):
    """Parameters of a cumulative-link model; see `cumulative_link`."""

    shift: float
    slope: float = Field(gt=0)
    steps: tuple[float, ...]
    weights: dict[str, float] = Field(default_factory=dict)

    def link(self) -> LinkModel:
        """Return the model."""
        weights = np.array([self.weights[name] for name in sorted(self.weights)], np.float64)
        return LinkModel(self.shift, self.slope, np.array(self.steps, np.float64), weights)


class LabelledSlide(Settings):
    """A labelled slide. slide: digest of its id.  patient: number.  p: of its class by the model of its fold."""

    slide: str
    patient: int = Field(ge=0)
    label: str
    fold: int = Field(ge=0)
    p: float = Field(ge=0, le=1)


class CalibratedMethod(Settings):
    """The calibration of one method and task, for one group of slides.

    source: `membrane`, `cells` or the id of a bundle.  group: site or scanner; None: all slides.  scanners: of the
    labelled slides.  slides, patients: labelled ones of each class.  centre: of the further evidence.  ranges:
    measurement → its smallest and largest value.  model: the one that predicts.  folds: the models that score.
    """

    source: str
    task: str
    method: str
    group: str | None = None
    classes: tuple[str, ...] = Field(min_length=2)
    scanners: tuple[str, ...]
    slides: dict[str, int]
    patients: dict[str, int]
    centre: dict[str, float] = Field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    model: LinkParameters
    folds: tuple[LinkParameters, ...] = Field(min_length=1)
    labelled: tuple[LabelledSlide, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> CalibratedMethod:
        for model in (self.model, *self.folds):
            if len(model.steps) != len(self.classes) - 1 or set(model.weights) != set(self.centre):
                raise ValueError("a model does not fit its classes or its evidence")
        if any(one.label not in self.classes or one.fold >= len(self.folds) for one in self.labelled):
            raise ValueError("a labelled slide has an unknown class or fold")
        return self

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """Return what the calibration is for: source, task, method, group."""
        return self.source, self.task, self.method, self.group

    def fold_of(self, slide: str) -> int | None:
        """Return the fold of a labelled slide; None for another slide. slide: its digest."""
        return next((one.fold for one in self.labelled if one.slide == slide), None)

    def scores(self, without: str | None = None) -> list[CalibrationScores]:
        """Return the scores of each class. without: digest of a labelled slide whose patient is left out."""
        left_out = {one.patient for one in self.labelled if one.slide == without}
        return [self._class_scores(name, left_out) for name in self.classes]

    def _class_scores(self, name: str, left_out: set[int]) -> CalibrationScores:
        own = [one for one in self.labelled if one.label == name and one.patient not in left_out]
        patients = [one.patient for one in own]
        share = np.array([1 / patients.count(patient) for patient in patients], np.float64)
        fold = np.array([one.fold for one in own], np.int64)
        return CalibrationScores(np.array([one.p for one in own], np.float64), fold, share, len(set(patients)))

    def too_few(self, coverage: float) -> list[str]:
        """Return the classes with too few patients for the coverage."""
        return [name for name in self.classes if self.patients.get(name, 0) < needed_patients(coverage)]


class Calibration(Settings):
    """The content of a calibration file.

    her2batch: version that made it.  algorithms: of the measurements.  plan: see `measurement_plan`.  stains: of the
    slides that it may be used for.  per: property of the slides that divides them into groups.  coverage: of the sets.
    """

    format: int = 1
    her2batch: str
    algorithms: int
    plan: str
    stains: tuple[str, ...] = Field(min_length=1)
    per: Literal["site", "scanner"] | None = None
    coverage: float = Field(0.9, gt=0, lt=1)
    methods: tuple[CalibratedMethod, ...] = Field(min_length=1)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(_content(self).encode()).hexdigest()

    @property
    def id(self) -> str:
        """Return the name of its predictions: `cal-` and twelve hexadecimal digits."""
        return f"{CALIBRATION_PREFIX}{self.checksum[:12]}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that were calibrated."""
        return tuple(dict.fromkeys(method.task for method in self.methods))

    def group_of(self, slide: str) -> str | None:
        """Return the group of a labelled slide; None for another slide. slide: its digest."""
        groups = (method.group for method in self.methods if method.fold_of(slide) is not None)
        return next(groups, None)

    @property
    def groups(self) -> tuple[str | None, ...]:
        """Return the groups that were calibrated."""
        return tuple(dict.fromkeys(method.group for method in self.methods))


def measurement_plan(plan: Plan) -> str:
    """Return the id of the settings that decide the measurements: those of the plan without its networks.

    An encoder or a bundle that is added later changes no measurement, so that a calibration stays valid.
    """
    unused = {name: Plan.model_fields[name].default for name in ("encoders", "precision", "compile", "bundle")}
    return plan.model_copy(update=unused).id


def _content(calibration: Calibration) -> str:
    return tomli_w.dumps(calibration.model_dump(mode="json", exclude_none=True))


def _comment(calibration: Calibration) -> str:
    """Return lines of comment that say what was calibrated, and on how many slides."""
    lines = []
    for method in calibration.methods:
        counts = ", ".join(f"{name}: {n} of {method.patients[name]} patients" for name, n in method.slides.items())
        group = f", {calibration.per} {method.group}" if method.group is not None else ""
        few = method.too_few(calibration.coverage)
        note = f" Too few for the coverage: {', '.join(few)}; every set holds all classes." if few else ""
        lines.append(f"# {method.method}, {method.task}{group}: labelled slides of {counts}.{note}")
    return "".join(" ".join(line.split()) + "\n" for line in lines)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration. The same calibration gives the same bytes. Raises OSError."""
    text = f'{HEAD}{_comment(calibration)}checksum = "{calibration.checksum}"\n{_content(calibration)}'
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text, "utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read and check a calibration. Raises InputError naming the file and the remedy."""
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        remedy = "name the file that her2batch calibrate wrote"
        raise InputError(f"cannot be read as a calibration ({type(error).__name__})", path, remedy) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is not valid TOML: {error}", path, COPY_AGAIN) from error
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        what = f"has format {version}; this version of her2batch reads formats up to {FORMAT}"
        raise InputError(what, path, "install a newer version of her2batch")
    return _checked(data, path)


def _checked(data: Mapping[str, Any], path: Path) -> Calibration:
    values = dict(data)
    checksum = values.pop("checksum", None)
    try:
        calibration = Calibration.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"is no valid calibration: {where + ': ' if where else ''}{first['msg']}"
        raise InputError(what, path, COPY_AGAIN) from error
    if checksum != calibration.checksum:
        raise InputError("was changed after it was made: it has another checksum", path, COPY_AGAIN)
    return calibration
