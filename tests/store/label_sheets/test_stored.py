"""The labels in a cohort: written once, read with the columns of this version, refused where damaged."""

from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.store.label_sheets.stored import COLUMNS, stored_label_table, stored_labels, write_labels


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    found = Cohort(tmp_path / "cohort")
    found.create(Plan())
    return found


def test_labels_are_read_as_they_were_written(cohort: Cohort) -> None:
    assert (stored_labels(cohort), stored_label_table(cohort).num_rows) == ({}, 0)
    write_labels(cohort, [{"slide_id": "S1", "her2": "0", "her2_detail": "null", "patient_unknown": True}])
    row = stored_labels(cohort)["S1"]
    assert tuple(row) == COLUMNS
    assert (row["her2_detail"], row["patient_unknown"], row["site"]) == ("null", True, None)


def test_labels_that_have_not_changed_are_not_written_again(cohort: Cohort) -> None:
    write_labels(cohort, [{"slide_id": "S1"}])
    inode = cohort.labels.stat().st_ino
    write_labels(cohort, [{"slide_id": "S1"}])
    assert cohort.labels.stat().st_ino == inode
    write_labels(cohort, [{"slide_id": "S2"}])
    assert cohort.labels.stat().st_ino != inode


def test_damaged_labels_are_refused_and_can_be_given_again(cohort: Cohort) -> None:
    cohort.labels.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="is damaged; give the labels again"):
        stored_labels(cohort)
    write_labels(cohort, [{"slide_id": "S1"}])
    assert list(stored_labels(cohort)) == ["S1"]
