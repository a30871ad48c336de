"""Slides that have no HER2 score: each reason with its kind of slide, and that usual slides have one."""

import numpy as np
import pytest

from her2batch.models.guideline.scorable import scorability


def cells(n=1000, tumour=0.8, nuclear=0.02, membrane=0.3, cytoplasm=0.03, moderate=0.0) -> dict[str, np.ndarray]:
    """Return n like cells, a share of which are tumour."""
    likelihood = np.where(np.arange(n) < tumour * n, 0.9, 0.1).astype(np.float32)
    values = {"nuclear_dab": nuclear, "membrane_dab": membrane, "cytoplasm_dab": cytoplasm, "moderate": moderate}
    return {"tumour": likelihood} | {name: np.full(n, value, np.float32) for name, value in values.items()}


@pytest.mark.parametrize(
    "usual",
    [
        {"membrane": 0.01, "cytoplasm": 0.0},  # 0
        {"membrane": 0.1},  # 1+
        {"membrane": 0.8, "cytoplasm": 0.2, "nuclear": 0.12},  # 3+
        {"tumour": 0.3},
    ],
)
def test_usual_slides_can_be_scored(usual: dict[str, float]) -> None:
    assert scorability(cells(**usual), stain="ihc", hue_spread=0.2, foreign=0.03) is None


@pytest.mark.parametrize(
    ("slide", "context", "code"),
    [
        ({"n": 0}, {}, "few-tumour-cells"),
        ({"n": 90, "tumour": 1.0}, {}, "few-tumour-cells"),
        ({"n": 5000, "tumour": 0.05}, {}, "few-tumour-cells"),
        ({}, {"stain": "he"}, "not-ihc"),
        ({}, {"hue_spread": 0.001}, "no-colour"),
        ({}, {"foreign": 0.4}, "other-stain"),
        ({"nuclear": 0.5, "membrane": 0.3}, {}, "nuclear-staining"),
        ({"nuclear": 0.3, "membrane": 0.35, "cytoplasm": 0.3}, {}, "cytoplasmic-staining"),
    ],
)
def test_each_reason_has_its_code_and_figures(slide, context, code) -> None:
    problem = scorability(cells(**slide), **context)
    assert problem is not None
    assert problem.code == code
    assert len(problem.reason) > 20


def test_clumps_that_look_like_nuclei_between_membranes_are_no_nuclear_staining() -> None:
    slide = cells(membrane=0.6, cytoplasm=0.1, moderate=0.9)
    slide["nuclear_dab"][::5] = 0.55
    assert scorability(slide) is None


def test_a_few_brown_nuclei_are_no_nuclear_staining_and_one_in_twenty_is() -> None:
    slide = cells(membrane=0.01, cytoplasm=0.0)
    slide["nuclear_dab"][::50] = 0.15
    assert scorability(slide) is None
    slide["nuclear_dab"][::20] = 0.15
    problem = scorability(slide)
    assert problem is not None
    assert problem.code == "nuclear-staining"


def test_a_marked_tumour_may_be_a_small_share_of_the_cells() -> None:
    assert scorability(cells(n=5000, tumour=0.05), tumour_marked=True) is None
