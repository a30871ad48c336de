"""Steps of the guideline and their probabilities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.models.guideline.steps import StepShares, log_ratio, probability_above, step_probabilities

shares = st.floats(0, 1)


def test_a_share_at_the_threshold_is_undecided() -> None:
    assert probability_above(0.1, 0.1, 0.7) == pytest.approx(0.5)
    assert log_ratio(0.1, 0.1) == pytest.approx(0)


@given(shares, shares, shares)
def test_probabilities_fall_from_1_to_3(stained: float, complete: float, intense: float) -> None:
    one, two, three = step_probabilities(StepShares(stained, max(complete, intense), intense), 0.7)
    assert 1 >= one >= two >= three >= 0
