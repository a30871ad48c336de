"""The HER2 guideline on cells: every wording, null and ultralow, and properties of its probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.models.guideline.cell_rule import CellRuleResult, score_cells
from her2batch.tasks import IHC_SCORES

counts = st.lists(st.integers(0, 400), min_size=4, max_size=4).filter(lambda one: sum(one) > 0)


def score(*shares: float, n: int = 1000, stroma: int = 0) -> CellRuleResult:
    """Score n tumour cells with shares of faint, complete and intense ones, beside cells of the stroma."""
    faint, complete, intense = (round(share * n) for share in (*shares, 0, 0, 0)[:3])
    category = np.repeat(np.arange(4, dtype=np.uint8), [n - faint - complete - intense, faint, complete, intense])
    tumour = np.concatenate([np.ones(n, np.float32), np.zeros(stroma, np.float32)])
    return score_cells(np.concatenate([category, np.zeros(stroma, np.uint8)]), tumour)


WORDING = [
    ("none", (), "0", "null"),
    ("faint, incomplete in 10 % or less", (0.08,), "0", "ultralow"),
    ("faint, incomplete in more than 10 %", (0.3,), "1+", None),
    ("weak to moderate, complete in 10 % or less", (0.3, 0.08), "1+", None),
    ("weak to moderate, complete in more than 10 %", (0.1, 0.2), "2+", None),
    ("weak, complete in 90 %", (0.0, 0.9), "2+", None),
    ("intense, complete in 10 % or less", (0.02, 0.02, 0.05), "2+", None),
    ("intense, complete in more than 10 %", (0.0, 0.0, 0.2), "3+", None),
]


@pytest.mark.parametrize(("words", "shares", "category", "detail"), WORDING, ids=[one[0] for one in WORDING])
def test_each_wording_of_the_guideline_gives_its_score(words, shares, category, detail) -> None:
    result = score(*shares)
    assert (result.category, result.detail) == (category, detail)
    reached = next((step for step in result.steps if step.reached), None)
    assert (reached.category if reached else "null") in (category, detail)


def test_only_tumour_cells_count() -> None:
    alone, among = score(0.3), score(0.3, stroma=5000)
    assert among.percent == alone.percent
    assert (among.n_cells, among.n_tumour) == (6000, 1000)


def test_few_cells_leave_more_classes_plausible() -> None:
    assert score(0.2, n=50).p[0] > score(0.2, n=5000).p[0]


def test_a_slide_without_tumour_cells_has_no_score() -> None:
    with pytest.raises(ValueError, match="without tumour cells"):
        score_cells(np.zeros(5, np.uint8), np.zeros(5, np.float32))


@given(counts, st.integers(0, 2))
def test_a_more_stained_cell_never_lowers_the_score(numbers: list[int], which: int) -> None:
    category = np.repeat(np.arange(4, dtype=np.uint8), numbers)
    stronger = category.copy()
    stronger[category == which] += 1
    ones = np.ones(len(category), np.float32)
    before, after = score_cells(category, ones), score_cells(stronger, ones)
    assert IHC_SCORES.index(after.category) >= IHC_SCORES.index(before.category)
    assert after.score >= before.score - 1e-9


@given(counts)
def test_probabilities_score_and_class_agree(numbers: list[int]) -> None:
    category = np.repeat(np.arange(4, dtype=np.uint8), numbers)
    result = score_cells(category, np.ones(len(category), np.float32))
    assert sum(result.p) == pytest.approx(1)
    assert sum(result.percent) == pytest.approx(100)
    assert min(result.p) >= -1e-12
    place = IHC_SCORES.index(result.category)
    assert sum(result.p[place:]) >= 0.5 - 1e-9  # the category is the median class
    assert sum(result.p[: place + 1]) >= 0.5 - 1e-9
    assert 0 <= result.score <= 3
