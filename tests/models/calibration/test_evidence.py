"""Evidence: names that are no file names, logarithms that stay finite."""

import numpy as np
import pytest

from her2batch.models.calibration.evidence import (
    CELLS_EVIDENCE,
    SlideEvidence,
    percent_evidence,
    share_evidence,
    slide_digest,
)
from her2batch.tasks import IHC_SCORES
from her2batch.vision.membrane import MEMBRANE_COLUMNS


def test_a_digest_does_not_show_the_name() -> None:
    assert slide_digest("MUSTER_ERIKA") == slide_digest("MUSTER_ERIKA") != slide_digest("MUSTER_ERIKB")
    assert len(slide_digest("x")) == 12


@pytest.mark.parametrize("percent", [(100, 0, 0, 0), (0, 0, 0, 100), (25, 25, 25, 25), (89.9, 10.1, 0, 0)])
def test_shares_of_cells_fall_from_step_to_step(percent: tuple[float, ...]) -> None:
    found = list(percent_evidence(percent).values())
    assert len(found) == 3
    assert np.isfinite(found).all()
    assert found == sorted(found, reverse=True)
    assert (found[0] > 0) == (100 - percent[0] > 10)


def test_a_slide_without_tiles_has_no_shares() -> None:
    assert share_evidence({name: np.zeros(0, np.float32) for name in MEMBRANE_COLUMNS}) == {}
    assert np.isfinite(
        list(share_evidence({name: np.zeros(2, np.float32) for name in MEMBRANE_COLUMNS}).values())
    ).all()


def test_the_columns_of_the_matrix_are_centred_and_in_order() -> None:
    steps = np.array([1.0, 0.0, -1.0])
    evidence = SlideEvidence(
        "s", "membrane", "her2-4way", "membrane", IHC_SCORES, steps, {"b": 3.0, "a": 1.0, "c": 9.0}
    )
    assert evidence.matrix({"b": 1.0, "a": 1.0}).tolist() == [[1, 0, 2], [0, 0, 2], [-1, 0, 2]]


def test_a_slide_without_tumour_cells_has_no_shares_of_cells() -> None:
    assert percent_evidence([0.0, 0.0, 0.0, 0.0]) == {}
    assert set(percent_evidence([100.0, 0.0, 0.0, 0.0])) == CELLS_EVIDENCE
