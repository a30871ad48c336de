"""Tests of drift: shifts give alarms, nights without drift do not, too few slides are reported as such."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.job_settings import DriftSettings
from her2batch.nightly.drift import (
    CLASS_MIX,
    DriftTest,
    class_mix_p,
    detect_drift,
    finish_times,
    flag_alarms,
    rank_test_p,
    site_reader,
)
from her2batch.store.cohort import Cohort
from tests.conftest import Synthetic


@pytest.mark.long
def test_the_false_alarm_rate_is_the_nominal_one() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1500):
        tests = [
            DriftTest("s", str(k), 0.0, 0.0, 40, 400, rank_test_p(rng.gamma(2, 1, 40), rng.gamma(2, 1, 400)))
            for k in range(8)
        ]
        alarms += any(one.alarm for one in flag_alarms(tests, DriftSettings()))
    assert alarms / 1500 < 0.006  # nominal: 0.0027, also for skewed measures


def test_a_shift_of_one_standard_deviation_gives_an_alarm() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        shifted = DriftTest("s", "dab", 0.0, 0.0, 40, 400, rank_test_p(rng.normal(1, 1, 40), rng.normal(0, 1, 400)))
        unchanged = [DriftTest("s", str(k), 0.0, 0.0, 40, 400, 0.5) for k in range(7)]
        found += flag_alarms([shifted, *unchanged], DriftSettings())[0].alarm
    assert found > 190


def test_a_changed_mix_of_classes_gives_an_alarm() -> None:
    before = {"0": 100, "low": 100, "high": 100}
    assert class_mix_p({"0": 10, "low": 11, "high": 9}, before) > 0.5
    assert class_mix_p({"0": 28, "low": 1, "high": 1}, before) < 1e-6
    assert class_mix_p({"0": 30}, {"0": 300}) == 1.0
    assert flag_alarms([DriftTest("s", CLASS_MIX, "", "", 30, 300, 1e-6)], DriftSettings())[0].alarm


def test_constant_measures_are_compared() -> None:
    same = np.full(20, 0.3)
    assert rank_test_p(same, same) == 1.0
    assert rank_test_p(same, np.full(20, 0.4)) < 1e-6


def test_a_night_is_compared_with_the_preceding_weeks(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    ids = sorted(cohort.rows())
    night, at = set(ids[::2]), datetime.now(UTC) + timedelta(hours=1)
    found = detect_drift(cohort, night, DriftSettings(least=5), at)
    assert {one.measure for one in found} >= {"dab", "cells", "score", "blur", CLASS_MIX}
    assert all(one.n_night + one.n_reference <= len(ids) for one in found)
    assert all(one.sentence for one in found)
    late = detect_drift(
        cohort, night, DriftSettings(least=5), at + timedelta(days=90)
    )  # no slide is in the reference period
    assert [(one.p, one.n_reference) for one in late] == [(None, 0)]
    assert "too few slides" in late[0].sentence
    assert set(finish_times(cohort)) == set(ids)


def test_the_site_is_read_from_the_path() -> None:
    site_of = site_reader(r"/scans/([^/]+)/")
    assert site_of({"path": "/scans/north/a.svs"}) == "north"
    assert site_of({"path": None}) == "elsewhere"
    assert site_reader(None)({"format": "aperio", "mpp": 0.2501}) == "aperio at 0.25 µm/px"
    for bad in ("(", "north"):
        with pytest.raises(InputError, match=r"drift\.site"):
            site_reader(bad)
