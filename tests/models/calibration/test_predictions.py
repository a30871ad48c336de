"""Rows of the predictions table by a calibration, for rules and for heads of a bundle."""

import numpy as np
import pytest

from her2batch.models.calibration.calibration_file import Calibration
from her2batch.models.calibration.evidence import SlideEvidence, prediction_evidence, slide_digest
from her2batch.models.calibration.fitting import LabelledEvidence, fit_method
from her2batch.models.calibration.predictions import CalibratedPredictor
from her2batch.tasks import CLASSES


def head_rows(task: str, n: int, bias: float, seed: int) -> list[tuple[dict, str]]:
    """Predictions of a head from another laboratory, which leans to the highest class by `bias`; and the truth."""
    rng, classes, rows = np.random.default_rng(seed), CLASSES[task], []
    for k in range(n):
        label = k % len(classes)
        logits = -1.5 * np.abs(np.arange(len(classes)) - label) + bias * np.arange(len(classes)) + rng.normal(0, 0.7)
        logits = logits + rng.normal(0, 0.5, len(classes))
        p = np.exp(logits) / np.exp(logits).sum()
        row = {
            "slide_id": f"{seed}-{k}", "task": task, "method": "clam-sb", "classes": list(classes), "p": p.tolist(),
            "predicted": classes[int(p.argmax())], "plausible": list(classes), "review": True, "score": None,
            "reasons": ["pen", "undecided", "uncalibrated"],
        }  # fmt: skip
        rows.append((row, classes[label]))
    return rows


def evidence_of(row: dict) -> SlideEvidence:
    return prediction_evidence(
        row, "0123456789ab", {"slide_id": row["slide_id"], "format": "aperio", "mpp": 0.25}, {}, {}
    )


def calibration_of(task: str, n: int, bias: float) -> Calibration:
    slides = [LabelledEvidence(evidence_of(row), truth, row["slide_id"]) for row, truth in head_rows(task, n, bias, 1)]
    return Calibration(her2batch="1", algorithms=2, plan="p", stains=("her2",), methods=(fit_method(slides, None),))


@pytest.mark.parametrize("task", ["her2-4way", "her2-3way", "her2-binary", "her2-5way", "er"])
def test_heads_of_another_laboratory_are_calibrated(task: str) -> None:
    predictor = CalibratedPredictor(calibration_of(task, 60, 1.5))
    before, after, covered = [], [], []
    for row, truth in head_rows(task, 60, 1.5, 2):
        (found,) = predictor(row, evidence_of(row), None)
        before.append(row["predicted"] == truth)
        after.append(found["predicted"] == truth)
        covered.append(truth in found["plausible"])
        assert found["classes"] == list(CLASSES[task])
        assert sum(found["p"]) == pytest.approx(1)
        assert "pen" in found["reasons"]  # of the slide, not of the method
        assert not {"undecided", "uncalibrated"} & set(found["reasons"])
    assert np.mean(after) >= np.mean(before)
    assert np.mean(covered) >= 0.87


def test_a_method_that_was_not_calibrated_has_no_row() -> None:
    predictor = CalibratedPredictor(calibration_of("her2-3way", 30, 0.0))
    row, _ = head_rows("her2-binary", 1, 0.0, 3)[0]
    assert predictor(row, evidence_of(row), None) == []


def test_a_quality_flag_asks_for_a_review_of_a_calibrated_slide_too() -> None:
    predictor = CalibratedPredictor(calibration_of("er", 60, 0.0))
    for row, _ in head_rows("er", 20, 0.0, 4):
        assert predictor(row, evidence_of(row), None)[0]["review"]


def test_the_set_of_a_labelled_slide_does_not_count_the_slide_itself() -> None:
    calibration = calibration_of("er", 60, 0.0)
    method = calibration.methods[0]
    slide = slide_digest("1-0")
    assert method.fold_of(slide) is not None
    assert sum(one.patients for one in method.scores(slide)) == sum(one.patients for one in method.scores()) - 1
