"""Agreement between readers: weighted kappa of each pair, Fleiss' kappa and Krippendorff's alpha of all.

Quadratically weighted kappa: Cohen, Psychological Bulletin 70, 213 (1968). Fleiss, Psychological Bulletin 76, 378
(1971). Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), University of Pennsylvania, whose alpha allows
for slides that only some of the readers have read, and here weights differences of ordered classes by their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.training.metrics import kappa, nan_to_null
from her2batch.training.statistics import draw_resamples

Floats = NDArray[np.float64]
Readings = Mapping[str, Mapping[str, int]]
"""slide_id → reader → class."""

RESAMPLES: Final = 300
"""Bootstrap resamples of patients for the intervals."""


@dataclass(frozen=True)
class ReaderAgreement:
    """Agreement of the readers in one column of the labels.

    slides: with two readers and more.  unanimous: slides of these on which all agree.  fleiss: None where slides have
    different numbers of readers.  alpha, pairs: value with the bounds of its 95 % interval; None where undefined.
    pairs: rows with first, second, slides, agreed, kappa.
    """

    column: str
    classes: tuple[str, ...]
    readers: tuple[str, ...]
    slides: int
    unanimous: int
    fleiss: float | None
    alpha: Mapping[str, float | None]
    pairs: tuple[Mapping[str, Any], ...]

    @property
    def as_json(self) -> dict[str, Any]:
        """The agreement as plain values."""
        return {
            "column": self.column, "classes": list(self.classes), "readers": list(self.readers), "slides": self.slides,
            "unanimous": self.unanimous, "fleiss_kappa": self.fleiss, "krippendorff_alpha": dict(self.alpha),
            "pairs": [dict(pair) for pair in self.pairs],
        }  # fmt: skip


def measure_agreement(
    column: str, classes: Sequence[str], readings: Readings, patients: Mapping[str, str]
) -> ReaderAgreement | None:
    """Return the agreement of readers on the slides that at least two of them have read; None without such slides.

    patients: slide_id → patient, of whom the intervals are a bootstrap.  Three classes and more are ordered.
    """
    read = {slide_id: own for slide_id, own in sorted(readings.items()) if len(own) > 1}
    if not read:
        return None
    readers = sorted({reader for own in read.values() for reader in own})
    counts = np.array([np.bincount([*own.values()], minlength=len(classes)) for own in read.values()], np.float64)
    names = sorted({patients.get(slide_id, slide_id) for slide_id in read})
    patient = np.array([names.index(patients.get(slide_id, slide_id)) for slide_id in read])
    weights = draw_resamples(len(names), RESAMPLES, 0)[:, patient]
    pairs = [_pair(a, b, list(read.values()), len(classes), weights) for a, b in combinations(readers, 2)]
    return ReaderAgreement(
        column, tuple(classes), tuple(readers), len(read), sum(len(set(own.values())) == 1 for own in read.values()),
        fleiss_kappa(counts), _with_interval(krippendorff_alpha(counts, len(classes) > 2, weights)),
        tuple(pair for pair in pairs if pair["slides"]),
    )  # fmt: skip


def _pair(
    first: str, second: str, read: Sequence[Mapping[str, int]], n_classes: int, weights: Floats
) -> dict[str, Any]:
    """Return the agreement of two readers on the slides that both have read."""
    both = np.array([first in own and second in own for own in read])
    cells = np.zeros((len(read), n_classes**2))
    for k in np.flatnonzero(both).tolist():
        cells[k, read[k][first] * n_classes + read[k][second]] = 1
    values = kappa((weights @ cells).reshape(-1, n_classes, n_classes))
    agreed = int(cells[:, :: n_classes + 1].sum())
    return {
        "first": first, "second": second, "slides": int(both.sum()), "agreed": agreed, "kappa": _with_interval(values)
    }  # fmt: skip


def _with_interval(values: Floats) -> dict[str, float | None]:
    """Return the first value, and the central 95 % of the others; None where they are undefined or all equal."""
    defined = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else (None, None)
    if low == high:
        low = high = None
    return {"value": nan_to_null(float(values[0])), "low": low, "high": high}


def fleiss_kappa(counts: Floats) -> float | None:
    """Return Fleiss' kappa of slides × classes numbers of readers, (n, C).

    None where slides have different numbers of readers, or all readings are of one class.
    """
    readers = counts.sum(axis=1)
    if (readers != readers[0]).any() or readers[0] < 2:
        return None
    observed = float(((counts**2).sum(axis=1) - readers).mean() / (readers[0] * (readers[0] - 1)))
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 else None


def krippendorff_alpha(counts: Floats, ordinal: bool, weights: Floats | None = None) -> Floats:
    """Return Krippendorff's alpha, (B,), for each row of weights of the slides; NaN where all readings are alike.

    counts: (n, C), numbers of readers of at least two in all.  ordinal: differences are those of ranks, else all
    differences are equal.  weights: (B, n), how often each slide counts; default: once.
    """
    weights = np.ones((1, len(counts))) if weights is None else weights
    per_slide = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    per_slide /= (counts.sum(axis=1) - 1)[:, None, None]
    coincidences = np.tensordot(weights, per_slide, 1)  # (B, C, C)
    marginals = coincidences.sum(axis=2)
    difference = (
        _rank_differences(marginals) if ordinal else np.broadcast_to(1 - np.eye(counts.shape[1]), coincidences.shape)
    )
    n = marginals.sum(axis=1)
    observed = (coincidences * difference).sum(axis=(1, 2))
    expected = (marginals[:, :, None] * marginals[:, None, :] * difference).sum(axis=(1, 2)) / (n - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(expected > 0, 1 - observed / expected, np.nan))


def _rank_differences(marginals: Floats) -> Floats:
    """Return δ² of ordered classes, (B, C, C): readings from one class to the other, the ends by half."""
    ranks = marginals.cumsum(axis=1) - marginals / 2
    return np.asarray((ranks[:, :, None] - ranks[:, None, :]) ** 2)
