"""The validation log: entries follow each other, and any change of one is found."""

import json
from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.settings import Plan
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import SLIDE_COLUMNS
from her2batch.store.validation.criteria import DEFAULT_CRITERIA
from her2batch.store.validation.registrations import (
    append_entry,
    comparisons_before,
    find_log_problems,
    log_folder,
    newest_registration,
    read_log,
    register_criteria,
    slide_digests,
)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """A cohort of two slides without files."""
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    for name in ("a", "b"):
        empty = dict.fromkeys(column.name for column in SLIDE_COLUMNS)
        write_row(made, {**empty, "slide_id": name, "sha256": name * 64, "status": "done", "files": [], "flags": []})
    return made


def compare_all(cohort: Cohort) -> None:
    append_entry(cohort, "compared", {"slides": slide_digests(cohort.rows().values())})


def test_criteria_are_registered_once_for_the_same_slides(cohort: Cohort) -> None:
    first = register_criteria(cohort, DEFAULT_CRITERIA)
    assert register_criteria(cohort, DEFAULT_CRITERIA) == first
    assert len(first["slides"]) == 2
    assert not first["labels_in_cohort"]
    second = register_criteria(cohort, DEFAULT_CRITERIA.replace("0.90", "0.80"))
    assert second["number"] == 2
    assert second["previous"] == first["sha256"]
    assert newest_registration(read_log(cohort)) == second
    assert newest_registration(read_log(cohort), first["criteria_sha256"]) == first


def test_comparison_before_the_registration_is_known(cohort: Cohort) -> None:
    before = register_criteria(cohort, DEFAULT_CRITERIA)
    compare_all(cohort)
    after = register_criteria(cohort, DEFAULT_CRITERIA + "# changed after the figures\n")
    log = read_log(cohort)
    assert comparisons_before(log, before) == []
    assert [entry["number"] for entry in comparisons_before(log, after)] == [2]


def test_log_names_no_slide(cohort: Cohort) -> None:
    register_criteria(cohort, DEFAULT_CRITERIA)
    text = next(log_folder(cohort).glob("*.json")).read_text()
    assert all(row["sha256"] not in text for row in cohort.rows().values())


@pytest.mark.parametrize("damage", ["byte", "time", "delete", "swap", "rehash", "empty"])
def test_any_change_of_the_log_is_found(cohort: Cohort, damage: str) -> None:
    for k in range(3):
        append_entry(cohort, "registered", {"criteria": str(k), "slides": [], "criteria_sha256": str(k)})
    assert list(find_log_problems(cohort)) == []
    first, second, _ = paths = sorted(log_folder(cohort).glob("*.json"))
    if damage == "byte":
        second.write_text(second.read_text().replace('"criteria": "1"', '"criteria": "9"'))
    elif damage == "time":
        entry = json.loads(second.read_text())
        second.write_text(json.dumps({**entry, "time": "2020-01-01T00:00:00+00:00"}))
    elif damage == "delete":
        second.unlink()
    elif damage == "swap":
        a, b = first.read_text(), second.read_text()
        first.write_text(b)
        second.write_text(a)
    elif damage == "rehash":  # an entry that is forged with a fitting checksum of its own breaks the next one
        from her2batch.store.validation.registrations import content_sha256

        entry = {**json.loads(second.read_text()), "criteria": "9"}
        second.write_text(json.dumps({**entry, "sha256": content_sha256(entry)}))
    else:
        second.write_text("")
    problems = list(find_log_problems(cohort))
    assert len(problems) == 1
    assert problems[0][0] in paths
    with pytest.raises(StoreError, match="restore the folder"):
        append_entry(cohort, "compared", {"slides": []})
    assert any(one.path == problems[0][0] for one in verify_cohort(cohort))
