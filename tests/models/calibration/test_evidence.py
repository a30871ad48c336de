"""Evidence: names that are no file names, logarithms that stay finite."""

import numpy as np
import pytest

from her2batch.models.calibration.cumulative_link import LinkModel
from her2batch.models.calibration.evidence import (
    CONTROL_WEIGHT,
    SlideEvidence,
    control_evidence,
    prediction_evidence,
    share_evidence,
    slide_digest,
)
from her2batch.tasks import IHC_SCORES
from her2batch.vision.membrane import MEMBRANE_COLUMNS


def test_a_digest_does_not_show_the_name() -> None:
    assert slide_digest("MUSTER_ERIKA") == slide_digest("MUSTER_ERIKA") != slide_digest("MUSTER_ERIKB")
    assert len(slide_digest("x")) == 12


def test_a_weight_of_1_puts_another_method_in_the_place_of_the_own() -> None:
    own = {"task": "her2-4way", "method": "membrane", "classes": IHC_SCORES, "p": [0.1, 0.2, 0.3, 0.4]}
    cells = [0.6, 0.2, 0.15, 0.05]
    evidence = prediction_evidence(own, "membrane", {"slide_id": "a"}, {}, {}, {"cells": cells})
    assert evidence.names == {"cells"}
    matrix = evidence.matrix({"cells": 0.0})[None]
    for weight, expected in ((0.0, own["p"]), (1.0, cells)):
        model = LinkModel(0.0, 1.0, np.zeros(3), np.array([weight]))
        assert model.probabilities(matrix)[0] == pytest.approx(expected)


def test_a_slide_without_tiles_has_no_shares() -> None:
    assert share_evidence({name: np.zeros(0, np.float32) for name in MEMBRANE_COLUMNS}) == {}
    assert np.isfinite(
        list(share_evidence({name: np.zeros(2, np.float32) for name in MEMBRANE_COLUMNS}).values())
    ).all()


def test_controls_are_compared_with_what_they_should_be() -> None:
    tissue = {"role": "tissue", "expected": None, "score": 1.0}
    controls = [
        {"role": "control", "expected": "3+", "score": 2.5},
        {"role": "control", "expected": "1+", "score": 0.7},
    ]
    assert control_evidence([tissue, *controls]) == {"control": pytest.approx(CONTROL_WEIGHT * -0.4)}
    unknown = [
        {"role": "control", "expected": None, "score": 2.0},
        {"role": "control", "expected": "3+", "score": None},
    ]
    assert control_evidence([tissue, *unknown, {"role": "control", "expected": "positive", "score": 2.0}]) == {}


def test_the_columns_of_the_matrix_are_centred_and_in_order() -> None:
    steps = np.array([1.0, 0.0, -1.0])
    evidence = SlideEvidence(
        "s", "membrane", "her2-4way", "membrane", IHC_SCORES, steps, {"b": 3.0, "a": 1.0, "c": 9.0}
    )
    assert evidence.matrix({"b": 1.0, "a": 1.0}).tolist() == [[1, 0, 2], [0, 0, 2], [-1, 0, 2]]
