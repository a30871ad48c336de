"""Fit the calibration of one method: the model that ships, those of the folds, and the labelled slides' scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from her2batch.models.calibration.calibration_file import CalibratedMethod, LabelledSlide, LinkParameters
from her2batch.models.calibration.cumulative_link import Floats, LinkModel, LinkPrior, fit_link_model
from her2batch.models.calibration.evidence import SlideEvidence

MAX_FOLDS: Final = 10
"""Folds of the cross-conformal scores; with fewer patients, one each."""

RANGE_LEVEL: Final = 0.999
"""Level of the prediction interval outside which a measurement of a new slide is drift."""

PRIOR: Final = LinkPrior(shift=1.0, step=1.0, slope=0.5, weight=0.3, other=1.0)
"""Chosen on synthetic development laboratories; see docs/calibration.md."""

DIGITS: Final = 6
"""Digits after the point of all numbers in a calibration."""


@dataclass(frozen=True)
class LabelledEvidence:
    """The evidence of one labelled slide, its class and its patient."""

    evidence: SlideEvidence
    label: str
    patient: str


def fit_method(slides: Sequence[LabelledEvidence], group: str | None, prior: LinkPrior = PRIOR) -> CalibratedMethod:
    """Fit the calibration of one method and task to labelled slides of one group, of which there is at least one."""
    slides = sorted(slides, key=lambda slide: slide.evidence.slide)
    first = slides[0].evidence
    names = common_names(slides)
    others = frozenset(k for k, name in enumerate(names) if name in first.others)
    centre = {
        name: 0.0 if k in others else round(float(np.mean([one.evidence.further[name] for one in slides])), DIGITS)
        for k, name in enumerate(names)
    }
    evidence = np.stack([one.evidence.matrix(centre) for one in slides])
    labels = np.array([first.classes.index(one.label) for one in slides], np.int64)
    patients = patient_numbers([one.patient for one in slides])
    shares = 1 / np.bincount(patients)[patients]
    folds = assign_folds(patients, labels)

    def fit(rows: NDArray[np.bool_]) -> LinkParameters:
        model = fit_link_model(evidence[rows], labels[rows], prior, shares[rows], others)
        return parameters_of(model, names)

    models = [fit(folds != fold) for fold in range(int(folds.max()) + 1)]
    return CalibratedMethod(
        source=first.source, task=first.task, method=first.method, group=group, classes=first.classes,
        scanners=tuple(sorted({one.evidence.scanner for one in slides})),
        slides=dict(zip(first.classes, np.bincount(labels, minlength=len(first.classes)).tolist(), strict=True)),
        patients=_patients_of_classes(first.classes, labels, patients),
        centre=centre, ranges=_ranges([one.evidence for one in slides]), model=fit(np.ones(len(slides), bool)),
        folds=tuple(models),
        labelled=tuple(
            LabelledSlide(
                slide=one.evidence.slide, patient=int(patients[k]), label=one.label, fold=int(folds[k]),
                p=round(float(models[folds[k]].link().probabilities(evidence[k : k + 1])[0, labels[k]]), DIGITS),
            )
            for k, one in enumerate(slides)
        ),
    )  # fmt: skip


def common_names(slides: Sequence[LabelledEvidence]) -> tuple[str, ...]:
    """Return the names of the evidence beyond the method's own that every slide has, sorted."""
    return tuple(sorted(frozenset.intersection(*(one.evidence.names for one in slides))))


def patient_numbers(patients: Sequence[str]) -> NDArray[np.int64]:
    """Return a number for each patient, from 0, in the order of their first slides."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(patient, len(numbers)) for patient in patients], np.int64)


def assign_folds(patients: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold of each slide: whole patients, dealt in turn, those of each class one after the other."""
    first = {patient: int(labels[patients == patient].min()) for patient in np.unique(patients).tolist()}
    order = sorted(first, key=lambda patient: (first[patient], patient))
    n_folds = min(MAX_FOLDS, len(order))
    fold = np.zeros(len(order), np.int64)
    fold[order] = np.arange(len(order)) % n_folds
    return fold[patients]


def parameters_of(model: LinkModel, names: Sequence[str]) -> LinkParameters:
    """Return the parameters of a model, rounded as they are stored."""
    return LinkParameters(
        shift=round(model.shift, DIGITS), slope=round(model.slope, DIGITS),
        steps=tuple(round(float(step), DIGITS) for step in model.steps),
        weights={name: round(float(value), DIGITS) for name, value in zip(names, model.weights, strict=True)},
    )  # fmt: skip


def _patients_of_classes(
    classes: Sequence[str], labels: NDArray[np.int64], patients: NDArray[np.int64]
) -> dict[str, int]:
    pairs = Counter(label for label, _ in set(zip(labels.tolist(), patients.tolist(), strict=True)))
    return {name: pairs[k] for k, name in enumerate(classes)}


def _ranges(slides: Sequence[SlideEvidence]) -> dict[str, tuple[float, float]]:
    """Return the interval in which a further slide of the laboratory has each measurement that every slide has.

    The interval is the prediction interval of a normal variable, wider with fewer slides; one slide gives none.
    """
    if len(slides) < 2:
        return {}
    names = sorted(set.intersection(*(set(one.measured) for one in slides)))
    found = {}
    for name in names:
        values: Floats = np.array([one.measured[name] for one in slides], np.float64)
        quantile = stdtrit(len(values) - 1, (1 + RANGE_LEVEL) / 2)  # of Student's t; scipy.stats is slow to import
        reach = quantile * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
        found[name] = (round(float(values.mean() - reach), DIGITS), round(float(values.mean() + reach), DIGITS))
    return found
