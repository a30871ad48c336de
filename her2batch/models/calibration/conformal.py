"""Prediction sets of ordered classes that contain the true class of a slide with a stated probability, class by class.

The sets are Mondrian (class-conditional) conformal sets (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random
World, 2005, 4.5): a class stays in the set unless the slide fits it worse than the labelled slides of that class did.
So the coverage holds among the slides of every class, and not only on average. The slides are scored by
cross-conformal prediction (Vovk, Ann Math Artif Intell 2015; as CV+ in Romano, Sesia & Candès, NeurIPS 2020): a
labelled slide is scored by the model of the fold that did not contain its patient, and compared with the new slide
under the same model, so nothing is held back and every model that decides is stored. The misfit is 1 − p of the class
(Sadinle, Lei & Wasserman, JASA 2019). Slides of one patient are one unit, each with an equal share of it (Dunn,
Wasserman & Ramdas, JASA 2023). A set on an ordinal scale has no gaps (Lu, Angelopoulos & Pomerantz, MICCAI 2022): the
classes between its ends belong to it, which only adds coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDING: Final = 1e-12
"""Rounding error of a probability or of a sum of shares."""


@dataclass(frozen=True)
class CalibrationScores:
    """The labelled slides of one class, or of several that are pooled.

    fit: probability that the model of the fold gave a slide's true class, (m,).  fold: of each slide, (m,).  share: of
    each slide in its patient, (m,).  patients: their number.
    """

    fit: Floats
    fold: NDArray[np.int64]
    share: Floats
    patients: int

    def p_values(self, by_fold: Floats) -> Floats:
        """Return the conformal p-value of new slides in this class.

        by_fold: probability of the class by the model of each fold, (n, F) → (n,): the share of patients, the new one
        among them, whose slides fit the class no better.
        """
        worse = self.fit[None, :] <= by_fold[:, self.fold] + ROUNDING
        return np.asarray((1 + (worse * self.share[None, :]).sum(axis=1)) / (self.patients + 1), np.float64)


def needed_patients(coverage: float) -> int:
    """Return the number of patients that a class needs before any slide can be excluded from it: 9 at 0.9."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def conformal_sets(p_by_fold: Floats, scores: Sequence[CalibrationScores], coverage: float) -> NDArray[np.bool_]:
    """Return which classes each slide may have, without gaps: (n, F, K) → (n, K).

    p_by_fold: probabilities by the model of each fold.  scores: of each class, K.  If any class has fewer patients than
    the coverage needs, each set holds all classes: a slide of that class could be anywhere.  A set is never empty: a
    slide that fits no class keeps the classes that it fits best.
    """
    n, _, k = p_by_fold.shape
    if any(one.patients < needed_patients(coverage) for one in scores):
        return np.ones((n, k), bool)
    values = np.stack([one.p_values(p_by_fold[:, :, c]) for c, one in enumerate(scores)], axis=1).reshape(n, k)
    kept = values > 1 - coverage + ROUNDING
    kept |= (values >= values.max(axis=1, keepdims=True) - ROUNDING) & ~kept.any(axis=1, keepdims=True)
    return fill_gaps(kept)


def fill_gaps(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return sets with the classes between their ends: (n, K) → (n, K)."""
    from_low = np.maximum.accumulate(kept, axis=1)
    from_high = np.maximum.accumulate(kept[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(from_low & from_high)
