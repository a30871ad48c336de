"""Metrics of a method with their intervals, which do not look certain for few slides."""

import numpy as np
import pytest

from her2batch.reports.agreement.method_metrics import evaluate_methods
from her2batch.reports.theme import render_template
from tests.reports.agreement.predictions import one_patient_per_slide, predictions


def only_metric(found: dict, name: str) -> dict:
    return {key: value for key, value in found["metrics"][name].items() if key != "note"}


@pytest.mark.parametrize("n", [2, 5, 9, 12, 30])
def test_figures_of_few_slides_that_are_all_right_do_not_look_certain(n: int) -> None:
    """n slides of each class, all classified right: no interval of width 0, no AUC below 10 slides a class."""
    truth = ["negative", "positive"] * n
    p = np.array([[0.9, 0.1], [0.1, 0.9]] * n)
    table = predictions("her2-binary", truth, p)
    (found,), curves = evaluate_methods(table, one_patient_per_slide(table), "x")
    for name in ("accuracy", "f1"):
        metric = only_metric(found, name)
        assert metric["value"] == metric["high"] == 1.0
        assert metric["low"] < 0.98
    assert all(row[name]["low"] < 0.95 for row in found["classes"] for name in ("recall", "precision"))
    kappa = found["metrics"]["kappa"]
    assert (kappa["value"], kappa["low"], kappa["note"]) == (1.0, None, "too few for an interval")
    auc = found["metrics"]["auc"]
    assert ("roc" in {one.name.rsplit("-", 1)[1] for one in curves}) == (n >= 10)
    if n < 10:
        assert (auc["value"], auc["note"]) == (None, f"too few: {n} slides of a class")
    else:
        assert auc["value"] == 1.0
        assert auc["low"] < 0.95
    html = render_template("method_metrics.html", methods=[found], resamples=1, min_auc_slides=10)
    assert "100.0–100.0" not in html
    assert ("too few: " in html) == (n < 10)


def test_slides_of_one_patient_count_as_one_trial() -> None:
    table = predictions("her2-binary", ["negative", "positive"] * 20, np.array([[0.9, 0.1], [0.1, 0.9]] * 20))
    (many,), _ = evaluate_methods(table, one_patient_per_slide(table), "x")
    (one,), _ = evaluate_methods(table, dict.fromkeys(table["slide_id"].to_pylist(), "p"), "x")
    assert only_metric(one, "accuracy")["low"] < 0.3 < only_metric(many, "accuracy")["low"]
