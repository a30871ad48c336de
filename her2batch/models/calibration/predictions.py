"""Predictions by a calibration: from the evidence of a slide to rows of the predictions table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np

from her2batch.assessment import prediction_review
from her2batch.models.calibration.calibration_file import CalibratedMethod, Calibration
from her2batch.models.calibration.conformal import CalibrationScores, conformal_sets
from her2batch.models.calibration.cumulative_link import Floats, LinkModel
from her2batch.models.calibration.evidence import SlideEvidence
from her2batch.models.membrane_rule import derived_probabilities
from her2batch.tasks import GUIDELINE_RULES, RULE_TASKS, her2_class

ABSTAINED: Final = "abstained"
OUTSIDE: Final = "outside-calibration"
TOO_FEW: Final = "too-few-labels"

OTHER_SCANNER, DRIFT, NO_EVIDENCE = "calibration-scanner", "calibration-drift", "calibration-evidence"
OUTSIDE_CAUSES: Final = (OTHER_SCANNER, NO_EVIDENCE, DRIFT)
"""Why a slide lies outside a calibration; one of them stands beside OUTSIDE."""

OF_UNCALIBRATED: Final = frozenset({"undecided", "uncalibrated", "near-10-percent", "unconfirmed-3-plus", "needs-ish"})
"""Reasons of a prediction that a calibration replaces by its own; the others concern the slide and stay."""

IHC_TASK: Final = RULE_TASKS[0]


class CalibratedPredictor:
    """The models of a calibration, ready to predict."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._methods = {method.key: _ReadyMethod(method) for method in calibration.methods}

    def __call__(
        self, prediction: Mapping[str, Any], evidence: SlideEvidence, group: str | None
    ) -> list[dict[str, Any]]:
        """Return the rows of a slide for one prediction of a calibrated method, without slide and patient.

        prediction: the uncalibrated row.  group: the slide's site or scanner.  Without a calibration of this method the
        result is empty; for another group, scanner or staining it is the uncalibrated row with the reason.
        """
        key = evidence.source, evidence.task, evidence.method
        if not any(known[:3] == key for known in self._methods):
            return []
        ready = self._methods.get((*key, group))
        cause = OTHER_SCANNER if ready is None else ready.outside_cause(evidence)
        if ready is None or cause is not None:
            return [_outside_row(prediction, cause or OTHER_SCANNER)]
        p, kept = ready.predict(evidence, self.calibration.coverage)
        classes = [name for name, is_kept in zip(evidence.classes, kept, strict=True) if is_kept]
        too_few = bool(ready.method.too_few(self.calibration.coverage))
        if evidence.task != IHC_TASK or evidence.source not in GUIDELINE_RULES:
            rows = [_row(prediction, evidence.task, dict(zip(evidence.classes, p, strict=True)), classes, too_few)]
        else:
            rows = [_derived_row(prediction, task, p, classes, too_few) for task in RULE_TASKS]
        return [{**row, "coverage": self.calibration.coverage} for row in rows]


class _ReadyMethod:
    """A calibrated method with its models."""

    def __init__(self, method: CalibratedMethod) -> None:
        self.method = method

    @cached_property
    def models(self) -> list[LinkModel]:
        """The models of the folds."""
        return [parameters.link() for parameters in self.method.folds]

    @cached_property
    def shipped(self) -> LinkModel:
        """The model that predicts slides without a label."""
        return self.method.model.link()

    @cached_property
    def scores(self) -> list[CalibrationScores]:
        """The scores of the labelled slides of each class."""
        return self.method.scores()

    def outside_cause(self, evidence: SlideEvidence) -> str | None:
        """Return why the calibration does not apply: another scanner, no measurement, or one beyond its range."""
        method, measured = self.method, evidence.measured
        if evidence.scanner not in method.scanners:
            return OTHER_SCANNER
        if not (set(method.centre) <= evidence.names and set(method.ranges) <= set(measured)):
            return NO_EVIDENCE
        is_inside = all(low <= measured[name] <= high for name, (low, high) in method.ranges.items())
        return None if is_inside else DRIFT

    def predict(self, evidence: SlideEvidence, coverage: float) -> tuple[Floats, Any]:
        """Return the probability of each class, (K,), and which classes are in the conformal set, (K,) bool.

        A labelled slide of the calibration is predicted by the model of the fold that has not seen its patient, so that
        its prediction is as honest as that of a new slide.
        """
        matrix = evidence.matrix(self.method.centre)[None]
        by_fold = np.stack([model.probabilities(matrix) for model in self.models], axis=1)
        fold = self.method.fold_of(evidence.slide)
        own = self.shipped.probabilities(matrix)[0] if fold is None else by_fold[0, fold]
        scores = self.scores if fold is None else self.method.scores(evidence.slide)
        if self.method.too_few(coverage):
            return own, np.ones(len(own), bool)
        return own, conformal_sets(by_fold, scores, coverage)[0]


def _outside_row(prediction: Mapping[str, Any], cause: str) -> dict[str, Any]:
    """Return the uncalibrated row, for review, with the reason that the calibration does not apply and its cause."""
    reasons = list(dict.fromkeys([*(prediction["reasons"] or ()), "uncalibrated", OUTSIDE, cause]))
    return {**prediction, "reasons": reasons, "review": True}


def _row(
    prediction: Mapping[str, Any], task: str, p: Mapping[str, float], classes: Iterable[str], too_few: bool
) -> dict[str, Any]:
    """Return a calibrated row. The predicted class is the most likely one, and always in the set."""
    predicted = max(p, key=lambda name: p[name])
    kept = _contiguous(list(p), {*classes, predicted})
    dropped = OF_UNCALIBRATED if predicted in ("0", "negative") else OF_UNCALIBRATED | {"ultralow"}
    reasons = [reason for reason in prediction["reasons"] or () if reason not in dropped]
    if len(kept) > 1:
        reasons.append(ABSTAINED)
    if too_few:
        reasons.append(TOO_FEW)
    return {
        "task": task, "method": prediction["method"], "classes": list(p), "p": list(p.values()),
        "predicted": predicted, "plausible": kept, "reasons": reasons, "score": prediction["score"],
        "review": prediction_review(task, predicted, reasons),
    }  # fmt: skip


def _contiguous(names: list[str], kept: set[str]) -> list[str]:
    positions = [names.index(name) for name in kept]
    return names[min(positions) : max(positions) + 1]


def _derived_row(
    prediction: Mapping[str, Any], task: str, p: Floats, classes: list[str], too_few: bool
) -> dict[str, Any]:
    """Return the row of a HER2 task that follows from the calibrated IHC score; 2+ leaves both ISH results open."""
    if task == IHC_TASK:
        named = dict(zip(prediction["classes"], p.tolist(), strict=True))
        return _row(prediction, task, named, classes, too_few)
    named = derived_probabilities(task, (p[0], p[1], p[2], p[3]))
    ihc = prediction["classes"][int(p.argmax())]
    possible = {str(her2_class(task, name, ish)) for name in (*classes, ihc) for ish in "-+"}
    row = _row(prediction, task, named, possible, too_few)
    row["predicted"] = str(her2_class(task, ihc, "-"))
    if ihc == "2+":
        row["reasons"].append("needs-ish")
    row["review"] = prediction_review(task, row["predicted"], row["reasons"])
    return row
