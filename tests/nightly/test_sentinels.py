"""Tests of sentinels: equal results pass, any difference holds the report back."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.job_settings import SentinelSettings
from her2batch.nightly.sentinels import check_sentinels, collect_predictions, find_deviations
from her2batch.store.cohort import Cohort, write_row
from tests.conftest import Synthetic

SETTINGS = SentinelSettings(folder="sentinels")
IDS = {"plan": "p", "bundle": "membrane"}


@pytest.fixture
def cohort(synthetic: Synthetic, tmp_path: Path) -> Cohort:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    return Cohort(tmp_path / "c")


def test_the_first_night_makes_the_reference_and_the_second_agrees(cohort: Cohort, tmp_path: Path) -> None:
    first = check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)
    assert (first.new, first.held) == (True, False)
    second = check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)
    assert (second.new, second.held, second.updated) == (False, False, [])


def test_another_plan_or_bundle_holds_the_night_back(cohort: Cohort, tmp_path: Path) -> None:
    check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)
    for name in IDS:
        found = check_sentinels(cohort, tmp_path / "s.json", SETTINGS, {**IDS, name: "other"})
        assert found.deviations == [f"the {name} differs from the reference ({IDS[name]} → other)"]


def test_an_update_without_effect_on_scores_is_only_reported(cohort: Cohort, tmp_path: Path) -> None:
    check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)
    kept = json.loads((tmp_path / "s.json").read_text())
    kept["versions"]["numpy"] = "1.0"
    (tmp_path / "s.json").write_text(json.dumps(kept))
    found = check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)
    assert not found.held
    assert found.updated[0].startswith("numpy 1.0 → ")


def test_scores_and_probabilities_may_change_within_the_tolerance(cohort: Cohort) -> None:
    kept = collect_predictions(cohort)
    slide_id = next(one for one in kept if any(prediction["score"] is not None for prediction in kept[one].values()))
    key = next(one for one in kept[slide_id] if kept[slide_id][one]["score"] is not None)
    for name, step, words in (("score", 0.019, None), ("score", 0.03, "score"), ("score", float("nan"), "score")):
        changed = copy.deepcopy(kept)
        changed[slide_id][key][name] += step
        found = find_deviations(kept, changed, SETTINGS)
        assert (found == []) if words is None else (words in found[0] and slide_id in found[0])
    changed = copy.deepcopy(kept)
    changed[slide_id][key]["p"][0] += 0.05
    assert "a probability changed by" in find_deviations(kept, changed, SETTINGS)[0]
    changed = copy.deepcopy(kept)
    changed[slide_id][key]["predicted"] = "other"
    assert "class" in find_deviations(kept, changed, SETTINGS)[0]


def test_a_sentinel_that_is_missing_new_or_failed_is_a_deviation(cohort: Cohort, tmp_path: Path) -> None:
    check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)
    rows = cohort.rows()
    first = sorted(rows)[0]
    write_row(cohort, {**rows[first], "status": "failed", "error_code": "truncated", "files": []})
    assert check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS).deviations == [f"{first} failed: truncated"]
    cohort.table("slides", first).unlink()
    found = check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS).deviations
    assert found == [f"{first} is no longer among the sentinels"]


def test_missing_sentinels_and_a_damaged_reference_are_reported(cohort: Cohort, tmp_path: Path) -> None:
    empty = Cohort(tmp_path / "e")
    assert check_sentinels(empty, tmp_path / "s.json", SETTINGS, IDS).held
    assert not (tmp_path / "s.json").exists()
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(InputError, match="not a valid reference of the sentinels"):
        check_sentinels(cohort, tmp_path / "s.json", SETTINGS, IDS)


def test_a_deviation_names_no_definite_class_of_a_2_plus_slide() -> None:
    def of(ihc: str, status: str) -> dict:
        values = {"her2-4way · membrane": ihc, "her2-binary · clam-sb": status}
        return {"S1": {key: {"predicted": name, "p": [1.0], "score": None} for key, name in values.items()}}

    (found,) = find_deviations(of("2+", "negative"), of("2+", "positive"), SETTINGS)
    assert found == "S1, her2-binary · clam-sb: the class changed; with 2+ only ISH decides it"
    (found,) = find_deviations(of("3+", "negative"), of("3+", "positive"), SETTINGS)
    assert found.endswith("class negative → positive")
