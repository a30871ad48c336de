"""The evidence of a slide that a calibration reads: what an uncalibrated method says, and measurements beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.models.calibration.cumulative_link import Floats, cumulative_evidence
from her2batch.models.guideline.steps import TEN_PERCENT
from her2batch.models.membrane_rule import slide_shares

SMALLEST_SHARE: Final = 1e-3
"""Share below which a logarithm says nothing more."""

FURTHER_SHARES: Final = ("faint_complete", "moderate")
"""Shares of the membrane table that the steps of the rule do not read: weak but complete, and moderate but broken."""

CELLS_EVIDENCE: Final = frozenset({"cells_1", "cells_2", "cells_3"})
"""Further evidence from segmented cells: shares of tumour cells of 1+, 2+, 3+ and more."""

COUNTERSTAIN: Final = "haematoxylin"
"""Measurement of the nuclear counterstain, which a laboratory's section thickness and staining decide together."""

CONTROL: Final = "control"
"""Mean difference of the slide's control tissue from its expected class, in classes."""


@dataclass(frozen=True)
class SlideEvidence:
    """The evidence of one slide for one method and task.

    slide: digest of its id.  source: `membrane`, `cells` or the id of a bundle.  steps: logits of P(y ≥ k) by the
    method, (K − 1,).  further: name → evidence for all steps alike.  measured: name → measurement whose range is that
    of the laboratory.  scanner: see `scanner_name`.
    """

    slide: str
    source: str
    task: str
    method: str
    classes: tuple[str, ...]
    steps: Floats
    further: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    scanner: str = "unknown"

    def matrix(self, centre: Mapping[str, float]) -> Floats:
        """Return the evidence as the model reads it, (K − 1, 1 + J): the method's logits, then what `centre` names."""
        columns = [np.full(len(self.steps), self.further[name] - middle) for name, middle in sorted(centre.items())]
        return np.stack([self.steps, *columns], axis=1)


def slide_digest(slide_id: str) -> str:
    """Return the name of a slide in a calibration, which is no file name of a patient: twelve hexadecimal digits."""
    return hashlib.sha256(slide_id.encode()).hexdigest()[:12]


def scanner_name(row: Mapping[str, Any]) -> str:
    """Return what the slides table knows of a slide's scanner: its format and resolution. row: of that table."""
    mpp = row.get("mpp")
    resolution = f" {mpp:.2f} µm/px" if mpp is not None else ""
    return f"{row.get('format') or 'unknown'}{resolution}"


def share_evidence(membrane: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the further evidence of a slide's membrane table: logarithms of shares over 10 %. Empty without tiles."""
    if not len(membrane["cells"]):
        return {}
    shares = slide_shares(membrane)
    return {name: float(np.log(max(shares[name], SMALLEST_SHARE) / TEN_PERCENT)) for name in FURTHER_SHARES}


def percent_evidence(percent: Sequence[float]) -> dict[str, float]:
    """Return the further evidence of the cells: logarithms of the shares of tumour cells of 1+, 2+, 3+ and more.

    percent: share of tumour cells of category 0, 1, 2, 3, in percent.  Empty without tumour cells, whose shares are all
    0: no cell was found, which is not a negative tumour.
    """
    if sum(percent) <= 0:
        return {}
    above = np.cumsum(np.asarray(percent, np.float64)[::-1])[::-1][1:] / 100
    return {f"cells_{k}": float(np.log(max(share, SMALLEST_SHARE) / TEN_PERCENT)) for k, share in enumerate(above, 1)}


def prediction_evidence(
    prediction: Mapping[str, Any],
    source: str,
    row: Mapping[str, Any],
    further: Mapping[str, float],
    measured: Mapping[str, float],
) -> SlideEvidence:
    """Return the evidence of a row of the predictions table. row: of the slides table."""
    p = np.array([prediction["p"]], np.float64)
    return SlideEvidence(
        slide_digest(row["slide_id"]), source, prediction["task"], prediction["method"], tuple(prediction["classes"]),
        cumulative_evidence(p)[0], dict(further), dict(measured), scanner_name(row),
    )  # fmt: skip
