"""Kappa with its interval, and at each site."""

import pytest

from her2batch.reports.agreement.kappa import kappa_interval
from her2batch.tasks import CLASSES
from her2batch.training.statistics import bootstrap_intervals
from tests.reports.agreement.predictions import predictions, random_predictions


def test_kappa_interval_equals_that_of_all_metrics() -> None:
    truth, p = random_predictions(60, 3)
    table = predictions("her2-3way", [CLASSES["her2-3way"][k] for k in truth], p)
    patients = {f"s{k}": f"p{k // 2}" for k in range(60)}
    wanted = next(one for one in bootstrap_intervals(table, patients, 200).to_pylist() if one["metric"] == "kappa")
    found = kappa_interval(table, patients, 200)
    assert found == pytest.approx({name: wanted[name] for name in ("value", "low", "high")})
