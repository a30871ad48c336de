"""Fitting: what every slide has is used, and its range is kept."""

import numpy as np
import pytest

from her2batch.models.calibration.evidence import CONTROL_WEIGHT, SlideEvidence
from her2batch.models.calibration.fitting import LabelledEvidence, fit_method
from her2batch.tasks import IHC_SCORES


def slide(k: int, further: dict, measured: dict, others: dict | None = None, bias: float = 0.0) -> LabelledEvidence:
    steps = 4.0 * (k % 4) - 4.0 * (np.arange(3) + 0.5) + bias
    evidence = SlideEvidence(
        f"s{k}", "membrane", "her2-4way", "membrane", IHC_SCORES, steps, further, measured, "aperio", others or {}
    )
    return LabelledEvidence(evidence, IHC_SCORES[k % 4], f"p{k}")


def test_evidence_that_one_slide_lacks_is_left_out() -> None:
    slides = [slide(k, {"moderate": 0.1 * k, **({"intense": 0.2} if k else {})}, {}) for k in range(8)]
    assert set(fit_method(slides, None).centre) == {"moderate"}


@pytest.mark.parametrize("n", [8, 20])
def test_cells_that_are_right_are_believed_where_the_area_is_wrong(n: int) -> None:
    """The area of every other slide is three logits too high or too low, which no shift mends; the cells are right."""
    biases = [3.0 if k // 4 % 2 else -3.0 for k in range(n)]
    slides = [slide(k, {}, {}, {"cells": np.full(3, -bias)}, bias) for k, bias in enumerate(biases)]
    found = fit_method(slides, None)
    assert found.centre == {"cells": 0.0}
    assert found.model.weights["cells"] > 0.5
    p = np.array([found.model.link().probabilities(one.evidence.matrix(found.centre)[None])[0] for one in slides])
    assert [IHC_SCORES[k] for k in p.argmax(axis=1)] == [one.label for one in slides]


def test_controls_tell_the_staining_of_a_run() -> None:
    """The staining of every other run is two and a half logits too strong or too weak, and its controls show it."""
    biases = [2.5 if k // 4 % 2 else -2.5 for k in range(60)]
    right = []
    for control in (CONTROL_WEIGHT * 0.4, 0.0):  # 2.5 logits are 0.4 classes of a control
        slides = [
            slide(k, {"control": float(np.sign(bias)) * control}, {}, None, bias) for k, bias in enumerate(biases)
        ]
        found = fit_method(slides, None)
        p = [found.model.link().probabilities(one.evidence.matrix(found.centre)[None])[0] for one in slides]
        right.append(sum(IHC_SCORES[one.argmax()] == of.label for one, of in zip(p, slides, strict=True)))
    assert right[0] >= 58
    assert right[1] <= 45


@pytest.mark.parametrize("n", [2, 5, 20, 60])
def test_a_range_holds_every_labelled_slide_and_is_wider_with_fewer(n: int) -> None:
    values = 0.25 + 0.02 * np.random.default_rng(n).standard_normal(n)
    found = fit_method([slide(k, {}, {"haematoxylin": float(values[k])}) for k in range(n)], None)
    low, high = found.ranges["haematoxylin"]
    assert low <= values.min()
    assert high >= values.max()
    assert (high - low) / values.std(ddof=1) > 6


def test_one_slide_gives_a_calibration_without_ranges() -> None:
    found = fit_method([slide(0, {}, {"haematoxylin": 0.25})], "north")
    assert found.ranges == {}
    assert found.group == "north"
    assert found.too_few(0.9) == list(IHC_SCORES)
