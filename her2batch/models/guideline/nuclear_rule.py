"""ER, PR and Ki-67 from the staining of tumour nuclei: positive share, Allred score, H-score and index.

Sources: ASCO/CAP 2020 for ER and PR (Allison et al., Arch Pathol Lab Med 144, 545): positive from 1 %, ER of 1 to 10 %
is low positive, ER of at most 10 % or weak is to be confirmed (recommendation 2.3); Allred et al., Mod Pathol 1998;
H-score: McCarty et al., 1985; Ki-67: International Ki67 in Breast Cancer Working Group 2021, at least 500 cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD

NuclearMarker = Literal["er", "pr", "ki67"]

POSITIVE_SHARE = 0.01
"""Share of stained tumour nuclei from which ER and PR are positive."""

LOW_POSITIVE_SHARE = 0.10
"""Share of stained tumour nuclei up to which a positive ER is reported as low positive. Of 47 negative synthetic
slides of 40 laboratories, seven show 1 to 5 %: folds, and brown edges."""

PROPORTIONS = (0.01, 0.10, 1 / 3, 2 / 3)
"""Shares that divide the Allred proportion scores 1 to 5."""

MIN_UNSTAINED_SHARE, MIN_OTHER_CELLS = 0.5, 5
"""Least share of unstained nuclei among the cells that are no tumour, of which there are at least so many: stroma and
lymphocytes are the negative control of a slide. On 236 synthetic slides of ER and Ki-67, 233 have 0.90 or more; in the
others unstained nuclei are not found for the pallor of the counterstain, and the positive share is 16 to 65 points too
high."""

MAX_CHANCE_SHARE = 0.002
"""Share of stained nuclei that counts as none: fewer are detection errors."""

MIN_KI67_CELLS = 500
"""Least number of tumour nuclei for a Ki-67 index."""


@dataclass(frozen=True)
class NuclearResult:
    """The staining of a slide's tumour nuclei.

    category: 'negative', 'low positive' (ER only) or 'positive'; for Ki-67 always 'index'.  positive: share of stained
    nuclei, 0–1.  percent: of nuclei that are negative, weak, moderate, strong.  intensity: mean of the stained nuclei,
    1–3, 0 without any.  proportion_score 0–5, intensity_score 0–3, allred 0, 2–8.  h_score 0–300.
    """

    category: str
    positive: float
    percent: tuple[float, float, float, float]
    intensity: float
    proportion_score: int
    intensity_score: int
    allred: int
    h_score: float
    n_cells: int
    n_tumour: int
    reasons: tuple[str, ...]


def score_nuclear(
    category: NDArray[np.uint8], tumour: NDArray[np.float32], marker: NuclearMarker = "er"
) -> NuclearResult:
    """Score a slide by its nuclei: category (n,), 0 negative to 3 strong, and likelihood of tumour (n,).

    Raises ValueError for a slide without tumour cells, which has no score.
    """
    is_tumour = tumour >= TUMOUR_LIKELIHOOD
    of_tumour, others = category[is_tumour], category[~is_tumour]
    n = len(of_tumour)
    if not n:
        raise ValueError("a slide without tumour cells cannot be scored")
    counts = np.bincount(of_tumour, minlength=4)[:4]
    shares = counts / n
    positive = float(1 - shares[0])
    intensity = float(counts @ np.arange(4)) / max(int(counts[1:].sum()), 1)
    proportion = proportion_score(positive)
    strength = intensity_score(intensity) if proportion else 0
    none, weak, moderate, strong = (100 * shares).tolist()
    flags = {
        "low-positive": marker == "er" and is_low_share(positive),
        "weak-nuclei": marker == "er" and positive > LOW_POSITIVE_SHARE and strength == 1,
        "undecided": marker == "pr" and is_low_share(positive),
        "few-tumour-cells": marker == "ki67" and n < MIN_KI67_CELLS,
        "no-unstained-nuclei": len(others) >= MIN_OTHER_CELLS and (others == 0).mean() < MIN_UNSTAINED_SHARE,
    }
    return NuclearResult(
        _category(positive, marker), positive, (none, weak, moderate, strong), intensity, proportion, strength,
        proportion + strength, weak + 2 * moderate + 3 * strong, len(category), n,
        tuple(name for name in flags if flags[name]),
    )  # fmt: skip


def _category(positive: float, marker: NuclearMarker) -> str:
    if marker == "ki67":
        return "index"
    if positive < POSITIVE_SHARE:
        return "negative"
    return "low positive" if marker == "er" and positive <= LOW_POSITIVE_SHARE else "positive"


def is_low_share(positive: float) -> bool:
    """Return whether a share of stained nuclei is positive, but so low that it is to be confirmed."""
    return POSITIVE_SHARE <= positive <= LOW_POSITIVE_SHARE


def proportion_score(positive: float) -> int:
    """Return the Allred proportion score, 0 to 5, of a share of stained nuclei."""
    if positive <= MAX_CHANCE_SHARE:
        return 0
    one, ten, third, two_thirds = PROPORTIONS
    return 1 + int(positive >= one) + int(positive > ten) + int(positive > third) + int(positive > two_thirds)


def intensity_score(intensity: float) -> int:
    """Return the Allred intensity score of the mean intensity of stained nuclei, 1 to 3: rounded, a half upwards."""
    return int(np.clip(np.floor(intensity + 0.5), 1, 3))
