"""Agreement with the labels: curves by hand, by scikit-learn, and on a cohort."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from her2batch.reports.agreement import (
    _evaluate_methods,
    _without_patches,
    _worst_misclassified,
    calibration_table,
    confusion_table,
    kappa_interval,
    label_agreement_section,
    labelled_predictions,
    roc_table,
    training_run_section,
)
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import render_template
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import CLASSES, PATCH_NETWORKS
from her2batch.training.statistics import bootstrap_intervals


def predictions(task: str, truth: list[str], p: np.ndarray) -> pa.Table:
    classes = CLASSES[task]
    rows = [
        {"task": task, "method": "m", "input": "i", "fold": 0, "slide_id": f"s{k}", "truth": truth[k],
         "p": p[k].tolist(), "predicted": classes[int(p[k].argmax())]}
        for k in range(len(truth))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, run_schema("predictions"))


def one_patient_per_slide(table: pa.Table) -> dict[str, str]:
    return {slide_id: slide_id for slide_id in table["slide_id"].to_pylist()}


def random_predictions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truths and probabilities of three classes; the probabilities are correlated with the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3)) + 1.5 * np.eye(3)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, p.round(2) / p.round(2).sum(axis=1, keepdims=True)


def test_roc_curves_equal_those_of_scikit_learn() -> None:
    truth, p = random_predictions(200, 1)
    table = predictions("her2-3way", [CLASSES["her2-3way"][k] for k in truth], p)
    found = roc_table(table, one_patient_per_slide(table), draws=50)
    stored = np.array(table["p"].to_pylist())
    for k, name in enumerate(CLASSES["her2-3way"]):
        own = found.filter(pc.equal(found["class"], name))
        false, hit, _ = roc_curve(truth == k, stored[:, k])
        assert np.allclose(own["tpr"].to_numpy()[1:], np.interp(own["fpr"].to_numpy(), false, hit)[1:], atol=1e-9)
        assert own["auc"][0].as_py() == pytest.approx(roc_auc_score(truth == k, stored[:, k]))
        low, high = own["low"].to_numpy(), own["high"].to_numpy()
        assert (low <= own["tpr"].to_numpy() + 1e-9).mean() > 0.95
        assert (high >= own["tpr"].to_numpy() - 1e-9).mean() > 0.95
        assert (high - low)[1:-1].mean() > 0.02


def test_bands_resample_patients_not_slides() -> None:
    """Ten copies of every slide narrow the band when they count as patients, not when they belong to one patient."""
    truth, p = random_predictions(40, 2)
    names = [CLASSES["her2-3way"][k] for k in np.repeat(truth, 10)]
    many = predictions("her2-3way", names, np.repeat(p, 10, axis=0))
    grouped = {f"s{k}": f"p{k // 10}" for k in range(400)}

    def width(patients: dict[str, str]) -> float:
        found = roc_table(many, patients, draws=100)
        return float((found["high"].to_numpy() - found["low"].to_numpy()).mean())

    assert width(grouped) > 2 * width(one_patient_per_slide(many))


def test_two_classes_have_one_roc_curve_and_one_class_has_none() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    table = predictions("her2-binary", ["negative", "positive", "negative"], p)
    assert set(roc_table(table, one_patient_per_slide(table), 20)["class"].to_pylist()) == {"positive"}
    same = predictions("her2-binary", ["negative"] * 3, p)
    assert roc_table(same, one_patient_per_slide(same), 20).num_rows == 0


def test_calibration_equals_values_by_hand() -> None:
    p = np.array([[0.95, 0.05], [0.93, 0.07], [0.38, 0.62], [0.35, 0.65]])
    table = predictions("her2-binary", ["negative", "positive", "positive", "positive"], p)
    rows = calibration_table(table, one_patient_per_slide(table), 100).to_pylist()
    assert [(round(one["p"], 3), one["share"], one["n"]) for one in rows] == [(0.635, 1.0, 2), (0.94, 0.5, 2)]
    assert (rows[1]["low"], rows[1]["high"]) == (0.0, 1.0)
    assert (rows[0]["low"], rows[0]["high"]) == (pytest.approx(0.342, abs=1e-3), 1.0)  # Wilson: 2 of 2


def test_kappa_interval_equals_that_of_all_metrics() -> None:
    truth, p = random_predictions(60, 3)
    table = predictions("her2-3way", [CLASSES["her2-3way"][k] for k in truth], p)
    patients = {f"s{k}": f"p{k // 2}" for k in range(60)}
    wanted = next(one for one in bootstrap_intervals(table, patients, 200).to_pylist() if one["metric"] == "kappa")
    found = kappa_interval(table, patients, 200)
    assert found == pytest.approx({name: wanted[name] for name in ("value", "low", "high")})


def test_confusion_table_has_every_pair_of_classes() -> None:
    table = predictions("her2-binary", ["negative", "positive"], np.array([[0.9, 0.1], [0.9, 0.1]]))
    assert [one["n"] for one in confusion_table(table).to_pylist()] == [1, 0, 1, 0]


def test_labelled_predictions_have_the_class_of_their_label(report_data: ReportData) -> None:
    found = labelled_predictions(report_data)
    by_rule = found.filter(pc.equal(found["method"], "membrane"))
    assert set(by_rule["task"].to_pylist()) == {"her2-4way", "her2-3way", "her2-binary"}
    assert set(found["task"].to_pylist()) == {"her2-4way", "her2-5way", "her2-3way", "her2-binary", "er"}
    truth = {(one["slide_id"], one["truth"]) for one in found.to_pylist() if one["task"] == "her2-4way"}
    assert truth == {(one, report_data.labels[one]["her2"]) for one, _ in truth}


def test_section_shows_methods_sites_and_misclassified_slides(report_data: ReportData) -> None:
    part = label_agreement_section(report_data)
    assert part is not None
    for words in ("her2-4way by membrane", "her2-3way by clam-sb", "Agreement at each site", "north", "Misclassified"):
        assert words in part.html, words
    names = [one.name for one in part.figures]
    assert len(names) == len(set(names))
    assert {one.rsplit("-", 1)[1] for one in names if one.startswith("labels-")} == {"confusion", "calibration"}
    assert any(one.startswith("kappa-") for one in names)


def test_section_is_left_out_without_labels_or_run(report_data: ReportData) -> None:
    from dataclasses import replace

    assert label_agreement_section(replace(report_data, labels={})) is None
    assert training_run_section(report_data) is None


def only_metric(found: dict, name: str) -> dict:
    return {key: value for key, value in found["metrics"][name].items() if key != "note"}


@pytest.mark.parametrize("n", [2, 5, 9, 12, 30])
def test_figures_of_few_slides_that_are_all_right_do_not_look_certain(n: int) -> None:
    """n slides of each class, all classified right: no interval of width 0, no AUC below 10 slides a class."""
    truth = ["negative", "positive"] * n
    p = np.array([[0.9, 0.1], [0.1, 0.9]] * n)
    table = predictions("her2-binary", truth, p)
    (found,), curves = _evaluate_methods(table, one_patient_per_slide(table), "x")
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
    (many,), _ = _evaluate_methods(table, one_patient_per_slide(table), "x")
    (one,), _ = _evaluate_methods(table, dict.fromkeys(table["slide_id"].to_pylist(), "p"), "x")
    assert only_metric(one, "accuracy")["low"] < 0.3 < only_metric(many, "accuracy")["low"]


def test_misclassified_slides_open_for_ish_show_only_their_ihc_score() -> None:
    rows = [*predictions("her2-binary", ["positive"], np.array([[0.9, 0.1]])).to_pylist(),
            *predictions("her2-4way", ["3+"], np.array([[0.1, 0.1, 0.7, 0.1]])).to_pylist()]  # fmt: skip
    table = pa.Table.from_pylist(rows, run_schema("predictions"))
    assert [row["task"] for row in _worst_misclassified(table, {"s0"})] == ["her2-4way"]
    assert [row["predicted"] for row in _worst_misclassified(table.slice(0, 1), set())] == ["negative"]


@pytest.mark.parametrize("network", PATCH_NETWORKS)
def test_patches_are_no_slides_in_the_report_of_a_run(network: str) -> None:
    """A run keeps one row a patch of every network that classifies patches; agreement is measured on slides."""
    table = predictions("her2-4way", ["0", "3+"], np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    kinds = [(network, "patches-low"), (network, "thumbnail-224"), ("svm", "patches-low")]
    rows = [{**row, "method": method, "input": name} for row in table.to_pylist() for method, name in kinds]
    found = _without_patches(pa.Table.from_pylist(rows, table.schema)).to_pylist()
    assert {(row["method"], row["input"]) for row in found} == set(kinds[1:])
