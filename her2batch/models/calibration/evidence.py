"""The evidence of a slide that a calibration reads: what an uncalibrated method says, and measurements beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.models.calibration.cumulative_link import Floats, cumulative_evidence
from her2batch.models.guideline.steps import TEN_PERCENT
from her2batch.models.membrane_rule import slide_shares
from her2batch.tasks import IHC_SCORES

SMALLEST_SHARE: Final = 1e-3
"""Share below which a logarithm says nothing more."""

FURTHER_SHARES: Final = ("faint_complete", "moderate")
"""Shares of the membrane table that the steps of the rule do not read: weak but complete, and moderate but broken."""

CELLS_EVIDENCE: Final = "cells"
"""Evidence of the rule on tumour cells beside that on area: the difference of its logits at each step. As shares, the
same for all steps, the cells helped little: 20 labelled slides of five synthetic development laboratories then gave an
accuracy of 0.90, as without cells, and with the differences 0.98."""

COUNTERSTAIN: Final = "haematoxylin"
"""Measurement of the nuclear counterstain, which a laboratory's section thickness and staining decide together."""

CONTROL: Final = "control"
"""How far the slide's control tissue is from the classes that it should have: the staining of its run."""

CONTROL_WEIGHT: Final = 6.0
"""Factor of this difference, in classes, which brings it to the size of the other evidence: logits. Where the strength
of the staining varies between the runs of a laboratory by a factor of e^0.8, 60 labelled slides with controls of 1+, 2+
and 3+ gave an accuracy of 0.963 with it, 0.940 without; with a control of 3+ alone, which is intense in most runs,
0.948 (benchmarks/control_evidence.py, tables drawn at random)."""


@dataclass(frozen=True)
class SlideEvidence:
    """The evidence of one slide for one method and task.

    slide: digest of its id.  source: `membrane`, `cells` or the id of a bundle.  steps: logits of P(y ≥ k) by the
    method, (K − 1,).  further: name → evidence for all steps alike.  measured: name → measurement whose range is that
    of the laboratory.  scanner: see `scanner_name`.  others: name of another method → its logits minus `steps`.
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
    others: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all evidence beyond the method's own."""
        return frozenset({*self.further, *self.others})

    def matrix(self, centre: Mapping[str, float]) -> Floats:
        """Return the evidence as the model reads it, (K − 1, 1 + J): the method's logits, then what `centre` names."""
        columns = [
            self.others[name] if name in self.others else np.full(len(self.steps), self.further[name] - middle)
            for name, middle in sorted(centre.items())
        ]
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


def control_evidence(pieces: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the evidence of a slide's controls: the mean of score less expected class; empty without a HER2 control.

    pieces: rows of the table pieces.
    """
    found = [
        piece["score"] - IHC_SCORES.index(piece["expected"])
        for piece in pieces
        if piece["role"] == "control" and piece["expected"] in IHC_SCORES and piece["score"] is not None
    ]
    return {CONTROL: CONTROL_WEIGHT * float(np.mean(found))} if found else {}


def prediction_evidence(
    prediction: Mapping[str, Any],
    source: str,
    row: Mapping[str, Any],
    further: Mapping[str, float],
    measured: Mapping[str, float],
    others: Mapping[str, Sequence[float]] | None = None,
) -> SlideEvidence:
    """Return the evidence of a row of the predictions table.

    row: of the slides table.  others: name → probabilities of the same classes by another method.
    """
    steps, *differing = cumulative_evidence(np.array([prediction["p"], *(others or {}).values()], np.float64))
    differences = {name: logits - steps for name, logits in zip(others or {}, differing, strict=True)}
    return SlideEvidence(
        slide_digest(row["slide_id"]), source, prediction["task"], prediction["method"], tuple(prediction["classes"]),
        steps, dict(further), dict(measured), scanner_name(row), differences,
    )  # fmt: skip
