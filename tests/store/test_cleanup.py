"""Tests of the cleanup after a killed run: its files are deleted, and no others."""

from pathlib import Path

import pytest

from her2batch.files.parquet import write_parquet
from her2batch.settings import Plan
from her2batch.store.audit import verify_cohort
from her2batch.store.cleanup import remove_leftovers, remove_orphans
from her2batch.store.cohort import Cohort
from tests.store.test_cohort import commit, row, tiles


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    made = Cohort(tmp_path / "cohort")
    made.create(Plan())
    return made


def files_of_slides(cohort: Cohort) -> set[str]:
    return {str(path.relative_to(cohort.root)) for path in cohort.root.rglob("*")} - {".lock"}


def test_an_uncommitted_draft_is_not_part_of_the_cohort(cohort: Cohort) -> None:
    cohort.draft("a").write("tiles", tiles("a"))
    assert cohort.rows() == {}
    assert cohort.table_names() == []
    remove_leftovers(cohort)
    assert not list(cohort.root.glob(".draft-*"))


def test_half_written_files_are_deleted_and_complete_ones_kept(cohort: Cohort) -> None:
    commit(cohort, "a")
    before = files_of_slides(cohort)
    for path in (cohort.settings, cohort.intake, cohort.table("slides", "a"), cohort.table("tiles", "a")):
        path.with_name(f".{path.name}.7.part").touch()
    with cohort.lock():
        remove_leftovers(cohort)
    assert files_of_slides(cohort) == before


def test_files_without_a_row_are_deleted_and_files_of_a_row_kept(cohort: Cohort) -> None:
    commit(cohort, "a")
    before = files_of_slides(cohort)
    commit(cohort, "b")
    cohort.table("slides", "b").unlink()
    assert remove_orphans(cohort, cohort.rows()) == ["pyramids/b.zarr", "tables/tiles/b.parquet", "thumbnails/b.jpg"]
    assert files_of_slides(cohort) == before
    assert remove_orphans(cohort, cohort.rows()) == []


def test_old_files_of_a_failed_slide_are_deleted(cohort: Cohort) -> None:
    good = commit(cohort, "a")
    cohort.draft("a").commit(row("a", status="failed", error_code="truncated"), None)  # killed before the old went
    assert all((cohort.root / file["path"]).exists() for file in good["files"])
    assert remove_orphans(cohort, cohort.rows()) == ["pyramids/a.zarr", "tables/tiles/a.parquet", "thumbnails/a.jpg"]
    assert list(verify_cohort(cohort)) == []


def test_files_of_an_unreadable_row_are_kept(cohort: Cohort) -> None:
    commit(cohort, "a")
    cohort.table("slides", "a").write_bytes(b"torn")
    assert remove_orphans(cohort, cohort.reread_rows()) == []
    write_parquet(tiles("x"), cohort.table("tiles", "x"))
    assert remove_orphans(cohort, cohort.reread_rows()) == ["tables/tiles/x.parquet"]
