"""Tests of retention: the oldest pyramids are deleted, tables are kept, and no slide is ingested again."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from her2batch.job_settings import RetentionSettings
from her2batch.nightly.retention import delete_pyramid, due_pyramids, pyramid_bytes, retire_pyramids
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import RETIRED, Cohort
from tests.conftest import Synthetic

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def row(size: int) -> dict:
    return {"files": [{"path": "pyramids/x.zarr/0", "bytes": size}, {"path": "tables/tiles/x.parquet", "bytes": 9}]}


def test_pyramids_are_deleted_by_age_and_then_by_quota() -> None:
    rows = {name: row(10**9) for name in "abcd"}
    finished = {name: NOW - timedelta(days=days) for name, days in zip("abcd", (40, 3, 2, 1), strict=True)}
    assert due_pyramids(rows, finished, RetentionSettings(days=30), NOW) == ["a"]
    assert due_pyramids(rows, finished, RetentionSettings(gigabytes=2.5), NOW) == ["a", "b"]
    assert due_pyramids(rows, finished, RetentionSettings(days=30, gigabytes=1.5), NOW) == ["a", "b", "c"]
    assert due_pyramids(rows, finished, RetentionSettings(), NOW) == []
    assert due_pyramids(rows, {}, RetentionSettings(days=1), NOW) == list("abcd")  # unknown age counts as oldest


@given(st.lists(st.integers(1, 5 * 10**9), max_size=12), st.floats(0.1, 30))
def test_the_rest_fits_and_no_pyramid_too_many_is_deleted(sizes: list[int], limit: float) -> None:
    rows = {f"{k:02d}": row(size) for k, size in enumerate(sizes)}
    finished = {name: NOW - timedelta(days=100 - k) for k, name in enumerate(rows)}
    deleted = due_pyramids(rows, finished, RetentionSettings(gigabytes=limit), NOW)
    left = sum(pyramid_bytes(rows[one]) for one in rows.keys() - set(deleted))
    assert left <= limit * 1e9
    assert deleted == sorted(rows)[: len(deleted)]
    if deleted:
        assert left + pyramid_bytes(rows[deleted[-1]]) > limit * 1e9


def test_a_cohort_without_pyramids_is_valid_and_not_ingested_again(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    later = datetime.now(UTC) + timedelta(days=10)
    deleted = retire_pyramids(cohort, RetentionSettings(days=5), later)
    assert deleted
    assert set(deleted) == set(cohort.rows())
    assert not any((tmp_path / "c" / "pyramids").iterdir())
    assert all(RETIRED in one["flags"] for one in cohort.rows().values())
    assert list(verify_cohort(cohort)) == []
    assert retire_pyramids(cohort, RetentionSettings(days=5), later) == []
    summary = ingest(IngestRequest(synthetic.scans, cohort.root), Plan(), Resources(workers=0))
    assert summary.fresh == []


def test_the_next_night_deletes_files_left_by_a_killed_one(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    first = sorted(cohort.rows())[0]
    shutil.copytree(cohort.pyramid(first), tmp_path / "kept")
    delete_pyramid(cohort, cohort.rows()[first])
    shutil.copytree(tmp_path / "kept", cohort.pyramid(first))  # as if the files had not been deleted yet
    assert [one.message for one in verify_cohort(cohort)][:1] == ["no slide's row names this file"]
    retire_pyramids(cohort, RetentionSettings(), datetime.now(UTC))
    assert list(verify_cohort(cohort)) == []
