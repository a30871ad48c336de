"""Steps of the HER2 guideline and the probabilities that each is reached; shared by the rules on area and on cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TEN_PERCENT = 0.10
"""The threshold of the guideline, for all of its steps."""

TRACE = 0.01
"""Share of intense, complete staining above which 'intense complete in ≤ 10 %' holds; below it is noise."""


class GuidelineStep(NamedTuple):
    """One step of the guideline. column: the share's name.  share: of the slide."""

    category: str
    wording: str
    column: str
    share: float
    threshold: float

    @property
    def reached(self) -> bool:
        """Return whether the share is above the threshold, so that the wording holds."""
        return self.share > self.threshold


class StepShares(NamedTuple):
    """The shares that the steps of the guideline read, 0–1."""

    stained: float  # faint or stronger, complete or not
    complete: float  # weak to moderate or stronger, and complete
    intense: float  # intense and complete


def step_probabilities(shares: StepShares, sigma: float) -> tuple[float, float, float]:
    """Return the probabilities of at least 1+, 2+ and 3+, in falling order; above ½ where the wording holds.

    Each is the probability that a share lies above its threshold: logistic in the logarithm of the share, with standard
    deviation sigma. A larger share never lowers a probability.
    """
    three = probability_above(shares.intense, TEN_PERCENT, sigma)
    two = max(probability_above(shares.complete, TEN_PERCENT, sigma), probability_above(shares.intense, TRACE, sigma))
    return max(probability_above(shares.stained, TEN_PERCENT, sigma), two), two, three


def probability_above(share: float, threshold: float, sigma: float) -> float:
    """Return the probability that a share measured with an error of sigma (of its logarithm) is above a threshold."""
    return float(1 / (1 + np.exp(-log_ratio(share, threshold) * np.pi / (np.sqrt(3) * sigma))))


def log_ratio(share: float, threshold: float) -> float:
    """Return the natural logarithm of the ratio of a share to a threshold; a share of 0 counts as 0.01 %."""
    return float(np.log(max(share, 1e-4) / threshold))
