"""The remaining time: exact where durations are proportional to bytes, uncertain where they are not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from her2batch.pipeline.progress import RemainingTime

SIZES = st.lists(st.integers(1_000_000, 4_000_000_000), min_size=3, max_size=30)


def remaining_time(workers: int, slides: list[tuple[int, float]]) -> RemainingTime:
    pace = RemainingTime(workers)
    for size, seconds in slides:
        pace.add(size, seconds)
    return pace


def test_no_remaining_time_before_three_slides_have_ended() -> None:
    assert remaining_time(2, [(100, 1.0), (100, 1.0)]).left(5, 500) is None
    assert remaining_time(2, []).left(0, 0) == (0.0, 0.0)


@given(SIZES, st.integers(1, 8), st.integers(8, 1000))
def test_no_uncertainty_where_durations_are_proportional_to_bytes(sizes: list[int], workers: int, slides: int) -> None:
    pace = remaining_time(workers, [(size, size * 3e-9) for size in sizes])
    low, high = pace.left(slides, 10**10)
    assert np.isclose([low, high], 30 / workers, rtol=1e-6).all()


def test_nine_of_ten_runs_end_within_the_estimated_times() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        sizes = rng.integers(200, 2000, 60) * 1_000_000
        costs = sizes * 4e-8 * rng.lognormal(0, 0.4, 60)
        low, high = remaining_time(1, list(zip(sizes[:20], costs[:20], strict=True))).left(40, int(sizes[20:].sum()))
        inside += low <= costs[20:].sum() <= high
    assert 0.82 < inside / 400 < 0.97


def test_fewer_slides_than_workers_take_as_many_workers_as_slides() -> None:
    pace = remaining_time(16, [(100, 1.0)] * 3)
    assert pace.left(2, 200) == (1.0, 1.0)
