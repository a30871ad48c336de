"""Acceptance criteria of a validation: a TOML file that a laboratory writes before it sees the figures.

A criterion names a measure, the least value that is accepted, and the least number of slides that decide it.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from her2batch.errors import InputError
from her2batch.tasks import CLASSES

Measure = Literal[
    "agreement", "category-agreement", "positive-agreement", "negative-agreement", "kappa", "repeated-scans",
    "slides-of-patient", "results",
]  # fmt: skip
"""agreement: share of slides whose class is that of the label.  category-agreement: the same for the IHC categories
negative (0, 1+), equivocal (2+) and positive (3+).  positive-agreement, negative-agreement: share of the slides with,
and without, a label of at least the class `of` that the prediction confirms.  kappa: quadratic weighted.
repeated-scans: share of pairs of scans of one physical slide with the same class.  slides-of-patient: the same of pairs
of slides of one patient with the same label.  results: share of the labelled slides that have a result."""

DEFAULT_CRITERIA: Final = """\
title = "Acceptance criteria of her2batch"
task = "her2-4way"

[[criteria]]
name = "Concordance of IHC categories"
measure = "category-agreement"
at_least = 0.90
least_slides = 40
source = "CAP 2024, analytic validation of IHC assays: at least 90 % overall concordance, HER2 included"

[[criteria]]
name = "Positive percent agreement"
measure = "positive-agreement"
of = "3+"
at_least = 0.90
least_slides = 20
source = "CAP 2014 and 2024: predictive markers are validated on at least 20 positive tissues"

[[criteria]]
name = "Negative percent agreement"
measure = "negative-agreement"
of = "3+"
at_least = 0.90
least_slides = 20
source = "CAP 2014 and 2024: predictive markers are validated on at least 20 negative tissues"

[[criteria]]
name = "Weighted kappa of the IHC scores"
measure = "kappa"
at_least = 0.81
least_slides = 40
source = "Landis and Koch 1977: almost perfect agreement"

[[criteria]]
name = "Same class in repeated scans"
measure = "repeated-scans"
at_least = 0.95
least_slides = 20
source = "CAP 2021, validating whole slide imaging: 95 % concordance"
"""
"""Criteria of a validation for which no file was registered."""


def default_criteria(task: str) -> str:
    """Return the text of the default criteria for a task; tasks other than the IHC score have no IHC categories."""
    if task == "her2-4way":
        return DEFAULT_CRITERIA
    text = DEFAULT_CRITERIA.replace('task = "her2-4way"', f'task = "{task}"').replace('of = "3+"\n', "")
    text = text.replace("category-agreement", "agreement").replace("Concordance of IHC categories", "Concordance")
    return text.replace("Weighted kappa of the IHC scores", "Weighted kappa")


class Criterion(BaseModel):
    """One acceptance criterion.

    of: class from which a slide counts as positive; the last class where it is not given.  each: the criterion holds
    for each site, or each scanner, on its own.  bound: whether the value, or the lower end of its 95 % interval, must
    reach `at_least`.  least_slides: number of slides (or pairs) of the measure below which the criterion is not
    decided.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    measure: Measure
    at_least: float = Field(gt=0, le=1)
    of: str | None = None
    each: Literal["site", "scanner"] | None = None
    bound: Literal["value", "lower"] = "value"
    least_slides: int = Field(default=1, ge=1)
    source: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Criterion:
        if self.of is not None and self.measure not in ("positive-agreement", "negative-agreement"):
            raise ValueError(f"`of` belongs to positive-agreement and negative-agreement, not to {self.measure}")
        return self


class Criteria(BaseModel):
    """The criteria of a validation.  task: what they are about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Acceptance criteria"
    task: str = "her2-4way"
    criteria: tuple[Criterion, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Criteria:
        names = [criterion.name for criterion in self.criteria]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two criteria are called {doubled[0]!r}")
        classes = CLASSES.get(self.task)
        for criterion in self.criteria:
            if classes is not None and criterion.of is not None and criterion.of not in classes[1:]:
                raise ValueError(f"{criterion.name}: `of` is one of {', '.join(classes[1:])}")
            if criterion.measure == "category-agreement" and self.task != "her2-4way":
                raise ValueError(f"{criterion.name}: category-agreement belongs to the task her2-4way")
        return self


def parse_criteria(text: str, path: Path | None = None) -> Criteria:
    """Return the criteria of a TOML text. Raises InputError with the place and the remedy."""
    remedy = "correct the file; docs/validation.md has an example"
    try:
        return Criteria.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not valid TOML: {error}", path, remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"is not valid: {where + ': ' if where else ''}{message}", path, remedy) from error


def read_criteria(path: Path) -> tuple[Criteria, str]:
    """Return the criteria of a file, and its text. Raises InputError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't be read ({type(error).__name__})", path, "give a TOML file in UTF-8") from error
    return parse_criteria(text, path), text


def criteria_sha256(text: str) -> str:
    """Return the checksum of a text of criteria, by which a registration is recognised."""
    return hashlib.sha256(text.encode()).hexdigest()
