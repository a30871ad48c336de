"""Curves of a method, by hand and by scikit-learn."""

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from her2batch.reports.agreement.curves import calibration_table, confusion_table, roc_table
from her2batch.tasks import CLASSES
from tests.reports.agreement.predictions import one_patient_per_slide, predictions, random_predictions


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


def test_confusion_table_has_every_pair_of_classes() -> None:
    table = predictions("her2-binary", ["negative", "positive"], np.array([[0.9, 0.1], [0.9, 0.1]]))
    assert [one["n"] for one in confusion_table(table).to_pylist()] == [1, 0, 1, 0]
