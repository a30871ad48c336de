"""Risk and coverage, the order of the review, and what a review gains and costs: properties over random slides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.reports.abstention.selective import (
    JudgedSlide,
    class_coverage,
    error_of,
    review_order,
    risk_coverage,
    slides_in_budget,
    trade_point,
    trade_points,
)
from her2batch.tasks import IHC_SCORES


@st.composite
def judged(draw: st.DrawFn, number: int = 0) -> JudgedSlide:
    truth, predicted, before = (draw(st.sampled_from(IHC_SCORES)) for _ in range(3))
    k = IHC_SCORES.index(predicted)
    low, high = draw(st.integers(0, k)), draw(st.integers(k, 3))
    error = draw(st.sampled_from([0.0, 0.1, 0.1, 0.3, 0.5, 0.7]))
    patient = f"p{draw(st.integers(0, 5))}"
    return JudgedSlide(
        f"s{number}", patient, truth, predicted, IHC_SCORES[low : high + 1], error, draw(st.booleans()), before
    )


SLIDES = st.lists(judged(), min_size=1, max_size=25)


@given(SLIDES)
def test_the_curve_ends_with_the_error_of_all_slides_and_ignores_the_order_of_ties(slides: list[JudgedSlide]) -> None:
    error, wrong = error_of(slides), np.array([one.wrong for one in slides])
    curve = risk_coverage(error, wrong)
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(wrong.mean())
    assert curve.expected[-1] == pytest.approx(error.mean())
    assert (np.diff(curve.coverage) > 0).all()
    assert (np.diff(curve.expected) >= -1e-12).all()
    turned = risk_coverage(error[::-1], wrong[::-1])
    np.testing.assert_allclose(turned.risk, curve.risk)
    assert 0 <= curve.area <= 1


def test_probabilities_that_rank_all_errors_first_leave_none_among_the_others() -> None:
    error = np.array([0.6, 0.5, 0.1, 0.05, 0.0])
    curve = risk_coverage(error, np.array([True, True, False, False, False]))
    assert curve.risk.tolist() == [0, 0, 0, 0.25, 0.4]
    assert curve.area == pytest.approx((0.25 + 0.4) / 5)


def test_true_probabilities_find_most_errors_in_the_first_half_and_expect_the_risk() -> None:
    rng = np.random.default_rng(0)
    error = rng.uniform(0, 0.5, 4000)
    wrong = rng.uniform(size=4000) < error
    first = review_order(error, np.ones(4000, bool))[:2000]
    assert wrong[first].sum() / wrong.sum() == pytest.approx(0.75, abs=0.04)
    curve = risk_coverage(error, wrong)
    assert np.abs(curve.risk - curve.expected)[200:].max() < 0.03


@given(SLIDES)
def test_the_queue_has_slides_outside_first_and_then_the_most_likely_errors(slides: list[JudgedSlide]) -> None:
    inside = np.array([one.inside for one in slides])
    order = review_order(error_of(slides), inside)
    assert sorted(order.tolist()) == list(range(len(slides)))
    assert not (np.diff(inside[order].astype(int)) < 0).any()
    assert (np.diff(error_of(slides)[order][inside[order]]) <= 0).all()


@given(st.integers(0, 1000), st.floats(0, 1))
def test_a_budget_is_never_exceeded_and_never_wasted(n: int, share: float) -> None:
    length = slides_in_budget(n, share)
    assert length <= share * n + 1e-6
    assert length > share * n - 1 - 1e-6


def test_a_fifth_of_fifteen_slides_is_three() -> None:
    assert [slides_in_budget(15, share) for share in (0.2, 0.6, 0.19, 0.0, 1.0)] == [3, 9, 2, 0, 15]


@given(SLIDES, st.floats(0, 1))
def test_more_review_never_leaves_more_errors_or_misses_more_tests(slides: list[JudgedSlide], budget: float) -> None:
    *points, sets = trade_points(slides, budget)
    assert [point.reviewed for point in points] == sorted(point.reviewed for point in points)
    assert [point.wrong for point in points] == sorted((point.wrong for point in points), reverse=True)
    assert [point.missed for point in points] == sorted((point.missed for point in points), reverse=True)
    for point in (*points, sets):
        assert point.caught + point.wrong == point.errors
        assert point.reviewed + point.others == point.slides == len(slides)
        before = sum(one.uncalibrated == "2+" for one in slides)
        assert point.ish == before - point.saved + point.added
        assert point.error is None or point.low <= point.error <= point.high
    assert sets.reviewed == sum(len(one.plausible) > 1 or not one.inside for one in slides)


@given(SLIDES)
def test_a_review_of_all_slides_orders_exactly_the_tests_of_the_labels(slides: list[JudgedSlide]) -> None:
    point = trade_point("all", slides, [True] * len(slides))
    assert (point.wrong, point.missed, point.error) == (0, 0, None)
    assert point.ish == sum(one.truth == "2+" for one in slides)


def test_tests_saved_and_added_are_unknown_without_the_uncalibrated_class() -> None:
    slide = JudgedSlide("s", "p", "2+", "2+", ("2+",), 0.1)
    point = trade_point("none", [slide], [False])
    assert (point.ish, point.saved, point.added) == (1, None, None)


@given(SLIDES)
def test_the_coverage_counts_each_slide_inside_once(slides: list[JudgedSlide]) -> None:
    found = class_coverage(slides, IHC_SCORES)
    assert sum(row.slides for row in found) == sum(one.inside for one in slides)
    assert all(row.low <= row.covered / row.slides <= row.high and 1 <= row.size <= 4 for row in found)


def test_slides_of_one_patient_make_no_interval_narrower() -> None:
    same = [JudgedSlide(f"s{k}", "p", "0", "0", ("0",), 0.1) for k in range(20)]
    apart = [JudgedSlide(f"s{k}", f"p{k}", "0", "0", ("0",), 0.1) for k in range(20)]
    one, many = (trade_point("none", slides, [False] * 20) for slides in (same, apart))
    assert one.high > many.high
