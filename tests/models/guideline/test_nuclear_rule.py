"""ER, PR and Ki-67 on nuclei: Allred, H-score, low positive and index, by their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.models.guideline.nuclear_rule import NuclearResult, intensity_score, proportion_score, score_nuclear


def score(weak: float = 0, moderate: float = 0, strong: float = 0, marker="er", n: int = 1000) -> NuclearResult:
    stained = [round(share * n) for share in (weak, moderate, strong)]
    category = np.repeat(np.arange(4, dtype=np.uint8), [n - sum(stained), *stained])
    return score_nuclear(category, np.ones(n, np.float32), marker)


@pytest.mark.parametrize(
    ("shares", "category", "allred", "h_score"),
    [
        ((0, 0, 0), "negative", 0, 0),
        ((0.005, 0, 0), "negative", 2, 0.5),
        ((0.05, 0, 0), "low positive", 3, 5),
        ((0.1, 0.1, 0), "positive", 5, 30),
        ((0, 0.5, 0), "positive", 6, 100),
        ((0, 0, 0.9), "positive", 8, 270),
    ],
)
def test_published_definitions_of_er(shares, category, allred, h_score) -> None:
    result = score(*shares)
    assert (result.category, result.allred) == (category, allred)
    assert result.h_score == pytest.approx(h_score)


def test_pr_has_no_low_positive_and_ki67_an_index() -> None:
    assert score(0.05, marker="pr").category == "positive"
    assert score(0.3, marker="ki67").positive == pytest.approx(0.3)
    assert "few-tumour-cells" in score(0.3, marker="ki67", n=400).reasons


@pytest.mark.parametrize(
    ("marker", "shares", "reasons"),
    [
        ("er", (0.005, 0, 0), ()),
        ("er", (0.05, 0, 0), ("low-positive",)),
        ("er", (0.3, 0.05, 0), ("weak-nuclei",)),
        ("er", (0.1, 0.3, 0.1), ()),
        ("pr", (0.05, 0, 0), ("undecided",)),
        ("pr", (0.3, 0.05, 0), ()),
        ("ki67", (0.05, 0, 0), ()),
    ],
)
def test_few_or_weakly_stained_nuclei_are_a_reason(marker, shares, reasons) -> None:
    assert score(*shares, marker=marker).reasons == reasons


@pytest.mark.parametrize("marker", ["er", "pr", "ki67"])
@pytest.mark.parametrize(
    ("unstained", "stained", "asks"), [(20, 0, False), (12, 8, False), (8, 12, True), (1, 3, False)]
)
def test_stroma_without_unstained_nuclei_is_a_reason(marker, unstained: int, stained: int, asks: bool) -> None:
    category = np.repeat(np.array([0, 3, 0, 2], np.uint8), [200, 400, unstained, stained])
    tumour = np.repeat(np.array([0.9, 0.1], np.float32), [600, unstained + stained])
    assert ("no-unstained-nuclei" in score_nuclear(category, tumour, marker).reasons) == asks


@pytest.mark.parametrize(
    ("share", "points"), [(0, 0), (0.005, 1), (0.01, 2), (0.1, 2), (0.2, 3), (0.34, 4), (0.66, 4), (0.67, 5), (1, 5)]
)
def test_proportion_scores(share: float, points: int) -> None:
    assert proportion_score(share) == points


@given(st.floats(1, 3))
def test_intensity_is_rounded(mean: float) -> None:
    assert abs(intensity_score(mean) - mean) <= 0.5


@given(st.lists(st.integers(0, 300), min_size=4, max_size=4).filter(lambda one: sum(one) > 0))
def test_scores_stay_in_their_ranges(numbers: list[int]) -> None:
    category = np.repeat(np.arange(4, dtype=np.uint8), numbers)
    result = score_nuclear(category, np.ones(len(category), np.float32))
    assert 0 <= result.h_score <= 300
    assert result.allred in (0, 2, 3, 4, 5, 6, 7, 8)
    assert result.positive == pytest.approx(1 - numbers[0] / sum(numbers))


def test_a_slide_without_tumour_cells_has_no_score() -> None:
    with pytest.raises(ValueError, match="without tumour cells"):
        score_nuclear(np.zeros(5, np.uint8), np.zeros(5, np.float32))
