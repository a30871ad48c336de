"""How long the rest takes: exact where slides cost what they weigh, doubtful where they don't."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from her2batch.pipeline.progress import RemainingTime

SIZES = st.lists(st.integers(1_000_000, 4_000_000_000), min_size=3, max_size=30)


def paced(workers: int, slides: list[tuple[int, float]]) -> RemainingTime:
    pace = RemainingTime(workers)
    for size, seconds in slides:
        pace.add(size, seconds)
    return pace


def test_nothing_is_said_before_three_slides_have_ended() -> None:
    assert paced(2, [(100, 1.0), (100, 1.0)]).left(5, 500) is None
    assert paced(2, []).left(0, 0) == (0.0, 0.0)


@given(SIZES, st.integers(1, 8), st.integers(8, 1000))
def test_slides_that_cost_what_they_weigh_leave_no_doubt(sizes: list[int], workers: int, slides: int) -> None:
    pace = paced(workers, [(size, size * 3e-9) for size in sizes])
    low, high = pace.left(slides, 10**10)
    assert np.isclose([low, high], 30 / workers, rtol=1e-6).all()


def test_nine_of_ten_runs_end_between_the_two_times() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        sizes = rng.integers(200, 2000, 60) * 1_000_000
        costs = sizes * 4e-8 * rng.lognormal(0, 0.4, 60)
        low, high = paced(1, list(zip(sizes[:20], costs[:20], strict=True))).left(40, int(sizes[20:].sum()))
        inside += low <= costs[20:].sum() <= high
    assert 0.82 < inside / 400 < 0.97


def test_fewer_slides_than_workers_take_as_many_workers_as_slides() -> None:
    pace = paced(16, [(100, 1.0)] * 3)
    assert pace.left(2, 200) == (1.0, 1.0)
