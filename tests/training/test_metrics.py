"""Metrics: equal to scikit-learn, null where undefined, and refusal of invalid predictions."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, recall_score, roc_auc_score

from her2batch.errors import InputError
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import CLASSES
from her2batch.training.metrics import (
    auc,
    class_recalls,
    confusion,
    grouped_rows,
    kappa,
    metrics_summary,
    metrics_table,
)


def table(
    task: str,
    truth: Sequence[int],
    p: Sequence[Sequence[float]],
    method: str = "clam-sb",
    given: str = "uni",
    fold: Sequence[int] | int = 0,
) -> pa.Table:
    """A predictions table of slides s000, s001, …; predicted is the likeliest class."""
    n, classes = len(truth), CLASSES[task]
    columns = {
        "task": [task] * n,
        "method": [method] * n,
        "input": [given] * n,
        "fold": [fold] * n if isinstance(fold, int) else list(fold),
        "slide_id": [f"s{k:03}" for k in range(n)],
        "truth": [classes[k] for k in truth],
        "p": [list(one) for one in p],
        "predicted": [classes[int(np.argmax(one[: len(classes)]))] for one in p],
    }
    return pa.table(columns, run_schema("predictions"))


def drawn(task: str, n: int, seed: int, skill: float = 1.0, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Truth (n,) and p (n, C) with ties: a few levels only, exact in float32."""
    draw = np.random.default_rng(seed)
    c = len(CLASSES[task])
    truth = draw.integers(0, c, n)
    raw = draw.gamma(1, size=(n, c)) + skill * np.eye(c)[truth]
    p = np.floor(raw / raw.sum(axis=1, keepdims=True) * levels) / levels
    p[:, 0] += 1 - p.sum(axis=1)
    return truth, p


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(CLASSES)), st.integers(6, 60), st.integers(0, 2**31), st.floats(0, 2))
def test_metrics_equal_scikit_learn(task: str, n: int, seed: int, skill: float) -> None:
    truth, p = drawn(task, n, seed, skill)
    c = len(CLASSES[task])
    truth[:c] = range(c)  # scikit-learn's AUC wants all classes
    row = metrics_table(table(task, truth, p)).to_pylist()[0]
    predicted = p.argmax(axis=1)
    area = roc_auc_score(truth, p[:, 1]) if c == 2 else roc_auc_score(truth, p, multi_class="ovr", average="macro")
    assert row["auc"] == pytest.approx(area, abs=1e-12)
    assert row["f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
    assert row["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
    assert row["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"), abs=1e-12)
    assert row["n"] == n
    counts = confusion(table(task, truth, p))
    assert counts.tolist() == confusion_matrix(truth, predicted, labels=range(c)).tolist()
    assert class_recalls(counts) == pytest.approx(recall_score(truth, predicted, average=None, labels=range(c)))


def test_metrics_equal_a_worked_example() -> None:
    p = [[0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]]
    found = metrics_table(table("her2-binary", [0, 0, 1, 0, 1, 1], p)).to_pylist()[0]
    # pairs in order: 0.3 over 0.2; 0.5 over 0.2 and 0.4; 0.9 over all three: 6 of 9
    assert found["auc"] == pytest.approx(6 / 9)
    assert found["accuracy"] == pytest.approx(3 / 6)  # 0.5 : 0.5 goes to the first class
    assert found["f1"] == pytest.approx((2 * 2 / 7 + 2 * 1 / 5) / 2)
    assert found["kappa"] == pytest.approx(0.0)


def test_quadratic_kappa_equals_a_worked_example() -> None:
    counts = np.array([[2, 0, 0], [0, 1, 1], [0, 0, 2]])
    # disagreement 1 · 1² of 6; by chance Σ (i−j)² row_i col_j / 36 = (2·1 + 2·3·4 + 2·2 + 2·3 + 2·2·4 + 2·1) / 36
    assert kappa(counts) == pytest.approx(1 - (1 / 6) / (54 / 36))


def test_a_class_without_test_slides_is_left_out_of_the_means() -> None:
    p = [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]]
    row = metrics_table(table("her2-3way", [0, 0, 1, 1], p)).to_pylist()[0]
    assert (row["auc"], row["f1"], row["accuracy"], row["kappa"]) == (1, 1, 1, 1)
    assert math.isnan(class_recalls(confusion(table("her2-3way", [0, 0, 1, 1], p)))[2])


def test_undefined_metrics_are_null() -> None:
    row = metrics_table(table("her2-binary", [1, 1], [[0.2, 0.8], [0.3, 0.7]])).to_pylist()[0]
    assert row["auc"] is None
    assert row["kappa"] is None
    assert (row["f1"], row["accuracy"]) == (1, 1)


def test_there_is_one_row_per_method_and_fold_in_any_order_of_rows() -> None:
    truth, p = drawn("her2-3way", 60, 0)
    folds = [k % 3 for k in range(60)]
    both = pa.concat_tables(
        [table("her2-3way", truth, p, "dtfd-afs", fold=folds), table("her2-3way", truth, p, fold=folds)]
    )
    found = metrics_table(both)
    assert found.schema == run_schema("metrics")
    keys = [(one["method"], one["fold"]) for one in found.to_pylist()]
    assert keys == [(method, fold) for method in ("clam-sb", "dtfd-afs") for fold in range(3)]
    assert found["n"].to_pylist() == [20] * 6
    order = np.random.default_rng(0).permutation(120)
    assert metrics_table(both.take(pa.array(order))) == found
    assert [keys["method"] for keys, _ in grouped_rows(both, ["method"])] == ["clam-sb", "dtfd-afs"]


def test_without_predictions_there_are_no_metrics() -> None:
    assert metrics_table(run_schema("predictions").empty_table()) == run_schema("metrics").empty_table()
    assert metrics_summary(run_schema("metrics").empty_table()).num_rows == 0


def test_the_summary_is_in_percent_with_the_sample_standard_deviation() -> None:
    rows = [("clam-sb", 0, 0.9, 0.8, 0.5), ("clam-sb", 1, None, 0.7, 0.7), ("clam-mb", 0, 0.5, 0.5, 0.1)]
    given = [
        {"task": "er", "method": m, "input": "uni", "fold": fold, "auc": a, "f1": f, "accuracy": f, "kappa": k, "n": 7}
        for m, fold, a, f, k in rows
    ]
    one, two = metrics_summary(pa.Table.from_pylist(given, run_schema("metrics"))).to_pylist()
    assert (one["method"], one["folds"], one["n"]) == ("clam-mb", 1, 7)
    assert (one["auc_mean"], one["auc_sd"], one["kappa_mean"]) == (50, None, 0.1)
    assert (two["folds"], two["n"], two["auc_mean"], two["auc_sd"]) == (2, 14, 90, None)
    assert two["f1_mean"] == pytest.approx(75)
    assert two["f1_sd"] == pytest.approx(10 / math.sqrt(2))
    assert two["kappa_sd"] == pytest.approx(0.2 / math.sqrt(2))


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([[0.5, 0.5], [0.5, math.nan]], "slide s001: p are not probabilities"),
        ([[0.5, 0.4], [0.5, 0.5]], "fold 0, slide s000: p are not probabilities that sum to 1"),
        ([[1.5, -0.5], [0.5, 0.5]], "p are not probabilities"),
        ([[0.5, 0.5], [0.2, 0.3, 0.5]], "her2-binary, clam-sb on uni, fold 0, slide s001: p does not have 2"),
        ([[0.5, 0.5], [1.0]], "p does not have 2 probabilities"),
    ],
)
def test_invalid_probabilities_are_refused_naming_the_slide(p: list[list[float]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        metrics_table(table("her2-binary", [0, 1], p))


def test_an_unknown_class_or_task_is_refused() -> None:
    good = table("her2-binary", [0, 1], [[0.9, 0.1], [0.2, 0.8]])
    k = good.schema.get_field_index("truth")
    with pytest.raises(InputError, match=r"slide s001: truth is none of negative, positive"):
        metrics_table(good.set_column(k, "truth", pa.array(["negative", "3+"])))
    with pytest.raises(InputError, match="must be of one known task"):
        confusion(pa.concat_tables([good, table("er", [0], [[1, 0]])]))


def test_metrics_of_a_slice_are_those_of_its_rows() -> None:
    truth, p = drawn("her2-4way", 30, 4)
    whole = table("her2-4way", truth, p)
    assert metrics_table(whole.slice(10, 15)) == metrics_table(whole.take(list(range(10, 25))))


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([0, 1, 0, 1]), np.full((4, 2), 0.5)) == 0.5


def test_groups_contain_their_own_rows() -> None:
    """Found in a run of 58 cells: figures stood beside other methods' names."""
    rows = [
        {"task": f"t{k % 3}", "method": f"m{k % 7}", "input": f"i{k % 5}", "fold": k % 10, "mark": k}
        for k in range(4000)
    ]
    table = pa.Table.from_pylist(rows)
    seen = 0
    for keys, part in grouped_rows(table, ("task", "method", "input")):
        assert all(row[name] == keys[name] for row in part.to_pylist() for name in keys)
        seen += part.num_rows
    assert seen == 4000
