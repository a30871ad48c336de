"""Intervals and paired tests: against plain resampling, a U statistic over all pairs, and known coverage."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.tasks import CLASSES
from her2batch.training.metrics import auc, check_predictions, class_recalls, confusion_counts, metrics_table
from her2batch.training.statistics import (
    _figures,
    bootstrap_intervals,
    cells_with_few_slides,
    compare_methods,
    delong_p_value,
    draw_resamples,
    smallest_class,
    widen_interval,
    wilson_interval,
    without_auc,
)
from tests.training.test_metrics import drawn, table


def patients_of(predictions: pa.Table, slides_each: int = 2) -> dict[str, str]:
    """Slides s000 and s001 belong to P0, and so on."""
    return {one: f"P{int(one[1:]) // slides_each}" for one in predictions["slide_id"].to_pylist()}


def only(found: pa.Table, **keys: object) -> dict[str, object]:
    rows = [row for row in found.to_pylist() if all(row[name] == one for name, one in keys.items())]
    assert len(rows) == 1
    return rows[0]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["er", "her2-3way", "her2-4way"]), st.integers(4, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_a_draw_equals_the_metrics_of_its_repeated_slides(task: str, n: int, slides_each: int, seed: int) -> None:
    found = check_predictions(table(task, *drawn(task, n, seed)))
    of = np.arange(n) // slides_each
    weights = draw_resamples(int(of.max()) + 1, 5, seed)
    figures = _figures(found, of, weights)
    for k, weight in enumerate(weights):
        rows = np.repeat(np.arange(n), weight[of].astype(int))
        again = table(task, found.truth[rows], found.p[rows])
        plain = metrics_table(again).to_pylist()[0]
        for name in ("auc", "f1", "accuracy", "kappa"):
            assert figures.of[name][k] == pytest.approx(
                plain[name] if plain[name] is not None else math.nan, nan_ok=True
            )
        counts = confusion_counts(found.truth[rows], found.predicted[rows], len(CLASSES[task]))
        assert figures.recalls[k] == pytest.approx(class_recalls(counts), nan_ok=True)


def test_intervals_include_pooled_metrics_and_one_recall_per_class() -> None:
    predictions = table("her2-3way", *drawn("her2-3way", 120, 0), fold=[k % 10 for k in range(120)])
    found = bootstrap_intervals(predictions, patients_of(predictions), draws=500)
    assert [row["class"] for row in found.to_pylist()] == [None] * 4 + ["0", "low", "high"]
    for row in found.to_pylist():
        assert row["low"] < row["value"] < row["high"]
    assert only(found, metric="auc")["value"] == pytest.approx(
        auc(check_predictions(predictions).truth, check_predictions(predictions).p)
    )
    assert bootstrap_intervals(predictions, patients_of(predictions), draws=500) == found
    assert bootstrap_intervals(predictions, patients_of(predictions), draws=500, seed=1) != found


def test_patients_with_many_slides_make_intervals_wider() -> None:
    truth = np.arange(200) % 2
    right = np.random.default_rng(0).random(20)[np.arange(200) // 10] < 0.7  # a patient is right or wrong in all
    p = np.eye(2)[np.where(right, truth, 1 - truth)]
    predictions = table("er", truth, p)
    alone = only(bootstrap_intervals(predictions, patients_of(predictions, 1)), metric="accuracy")
    together = only(bootstrap_intervals(predictions, patients_of(predictions, 10)), metric="accuracy")
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_intervals_cover_the_truth_about_95_percent_of_the_time() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for repeat in range(200):  # 40 patients of two slides, which are right or wrong together more often than not
        chance = np.clip(0.7 + 0.2 * draw.standard_normal(40), 0, 1)
        right = draw.random(80) < np.repeat(chance, 2)
        truth = np.arange(80) % 2
        predictions = table("er", truth, np.eye(2)[np.where(right, truth, 1 - truth)])
        row = only(
            bootstrap_intervals(predictions, patients_of(predictions), draws=200, seed=repeat), metric="accuracy"
        )
        held += row["low"] <= 0.6972 <= row["high"]  # mean of the clipped normal
    assert 0.90 <= held / 200 <= 0.99


def test_a_class_without_slides_has_no_interval() -> None:
    predictions = table("er", [1, 1, 1], [[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]])
    found = bootstrap_intervals(predictions, patients_of(predictions), draws=20)
    assert only(found, metric="auc")["value"] is None
    assert only(found, metric="auc")["low"] is None
    assert only(found, metric="recall", **{"class": "negative"})["high"] is None


def test_a_slide_without_a_patient_is_refused() -> None:
    predictions = table("er", [0, 1], [[0.9, 0.1], [0.4, 0.6]])
    with pytest.raises(InputError, match="slide s001 has no patient"):
        bootstrap_intervals(predictions, {"s000": "A"})


# -- paired ------------------------------------------------------------------------------------------------------


def test_a_better_method_is_significantly_better() -> None:
    truth, good = drawn("her2-3way", 150, 1, skill=3.0)
    noise = np.random.default_rng(2).dirichlet([1, 1, 1], 150)
    both = pa.concat_tables([table("her2-3way", truth, good, "clam-mb"), table("her2-3way", truth, noise, "clam-sb")])
    row = only(compare_methods(both, patients_of(both)), metric="auc")
    assert (row["method"], row["other_method"], row["input"], row["other_input"]) == (
        "clam-mb",
        "clam-sb",
        "uni",
        "uni",
    )
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["p"] == pytest.approx(2 / 2001)
    assert row["p_delong"] is None  # three classes
    one, other = (metrics_table(part).to_pylist()[0]["auc"] for part in (both.slice(0, 150), both.slice(150)))
    assert row["difference"] == pytest.approx(one - other)


def test_a_method_does_not_differ_from_itself() -> None:
    truth, p = drawn("er", 40, 0)
    both = pa.concat_tables([table("er", truth, p), table("er", truth, p, given="stain")])
    for row in compare_methods(both, patients_of(both), draws=100).to_pylist():
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
        assert row["p_delong"] == (1 if row["metric"] == "auc" else None)


def test_every_two_methods_of_a_task_are_compared() -> None:
    tables = [table("er", *drawn("er", 30, 7)[:2], method=one) for one in ("clam-mb", "clam-sb", "dtfd-afs")]
    tables += [table("pr", *drawn("pr", 30, 7), method="clam-sb")]
    tables += [table("her2-4way", *drawn("her2-4way", 20, 7), method="convnext-small", given="patches-low")]
    found = compare_methods(pa.concat_tables(tables), patients_of(tables[0]), draws=50).to_pylist()
    pairs = [(row["method"], row["other_method"]) for row in found if row["metric"] == "f1"]
    assert pairs == [("clam-mb", "clam-sb"), ("clam-mb", "dtfd-afs"), ("clam-sb", "dtfd-afs")]


def test_methods_that_tested_other_slides_are_not_compared() -> None:
    truth, p = drawn("er", 20, 0)
    one, fewer = table("er", truth, p), table("er", truth[:19], p[:19], "clam-mb")
    with pytest.raises(InputError, match=r"has not tested the same slides as the others \(s019\)"):
        compare_methods(pa.concat_tables([one, fewer]), patients_of(one))
    with pytest.raises(InputError, match="with the same truth"):
        compare_methods(pa.concat_tables([one, table("er", 1 - truth, p, "clam-mb")]), patients_of(one))
    with pytest.raises(InputError, match="more than once"):
        compare_methods(pa.concat_tables([one, one, table("er", truth, p, "clam-mb")]), patients_of(one))


def by_every_pair(positive: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Difference of the AUCs and its variance (DeLong 1988), from the kernel of every pair."""
    won = [(np.sign(s[positive][:, None] - s[~positive][None, :]) + 1) / 2 for s in (one, other)]  # (m, n) each
    rows, columns = (np.stack([w.mean(axis) for w in won]) for axis in (1, 0))
    s = np.cov(rows) / len(rows[0]) + np.cov(columns) / len(columns[0])
    return won[0].mean() - won[1].mean(), s[0, 0] + s[1, 1] - 2 * s[0, 1]


@settings(deadline=None)
@given(st.integers(5, 60), st.integers(0, 2**31))
def test_delong_equals_a_computation_over_all_pairs(n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    positive = np.arange(n) % 2 == 0
    one, other = draw.integers(0, 12, (2, n)) + 2 * positive * draw.integers(0, 3, (2, 1))
    difference, variance = by_every_pair(positive, one, other)
    assume(variance > 1e-12)
    wanted = math.erfc(abs(difference) / math.sqrt(2 * variance))
    assert delong_p_value(positive, one.astype(float), other.astype(float)) == pytest.approx(wanted, abs=1e-9)


def test_delong_equals_a_worked_example() -> None:
    positive = np.array([True, True, False, False])
    one, other = np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 3, 2])  # AUC 1 and 1/2
    # placements of the positives differ by 0 and 1, of the negatives by 1/2 and 1/2: variance (1/2)/2 + 0
    assert delong_p_value(positive, one, other) == pytest.approx(math.erfc(0.5 / math.sqrt(2 * 0.25)))
    assert delong_p_value(positive, one, one) == 1
    assert math.isnan(delong_p_value(np.array([True, False, False, False]), one, other))


def test_delong_has_its_nominal_false_positive_rate() -> None:
    draw = np.random.default_rng(0)
    positive = np.arange(80) < 40
    both = draw.standard_normal((400, 2, 80)) + positive
    below = np.mean([delong_p_value(positive, one, other) < 0.05 for one, other in both])
    assert 0.02 <= below <= 0.085


@pytest.mark.parametrize("n", [1, 3, 10, 200])
def test_wilson_interval_solves_its_equation_and_has_a_width(n: int) -> None:
    """The bounds solve (p - share)^2 = z^2 p (1 - p) / n, which is how Wilson defined them."""
    for k in {0, 1, n // 2, n}:
        low, high = wilson_interval(k / n, n)
        assert 0 <= low <= k / n <= high <= 1
        assert high - low > 0.01
        for bound in (low, high):
            if 0 < bound < 1:
                assert (bound - k / n) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, rel=1e-4, abs=1e-9)


def test_an_interval_is_never_narrower_than_wilsons() -> None:
    assert widen_interval({"value": 1.0, "low": 1.0, "high": 1.0}, 4) == {
        "value": 1.0,
        "low": pytest.approx(0.5101, abs=1e-4),
        "high": 1.0,
    }
    assert widen_interval({"value": 0.5, "low": 0.0, "high": 0.6}, 400)["low"] == 0.0
    assert widen_interval({"value": None, "low": None, "high": None}, 4)["low"] is None


def test_smallest_class_counts_classes_and_rests() -> None:
    assert smallest_class(np.array([0, 0, 0, 1]), 2) == 1
    assert smallest_class(np.array([0, 1, 2, 2]), 3) == 1
    assert smallest_class(np.array([0, 0]), 2) == 0


@pytest.mark.parametrize("n", [9, 10])
def test_no_auc_is_shown_below_ten_slides_of_a_class(n: int) -> None:
    truth = np.repeat([0, 1], [n, 40])
    few = cells_with_few_slides(table("er", truth, np.stack([1 - 0.9 * truth, 0.9 * truth], axis=1)))
    row = {"task": "er", "method": "clam-sb", "input": "stain", "auc_mean": 1.0, "auc_sd": 0.0, "f1_mean": 1.0}
    (shown,) = without_auc([row], {(row["task"], row["method"], row["input"])} if few else set())
    assert (shown["too_few"], shown["auc_mean"], shown["f1_mean"]) == (n < 10, None if n < 10 else 1.0, 1.0)
