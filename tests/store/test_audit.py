"""Tests of status and verify on a cohort of real slides; tests/store/test_cohort.py damages one further."""

import os
from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.files.parquet import write_parquet
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store import audit
from her2batch.store.audit import StoreProblem, cohort_status, verify_cohort
from her2batch.store.cohort import Cohort


@pytest.fixture(scope="module")
def cohort(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    out = tmp_path_factory.mktemp("audit") / "c"
    ingest(IngestRequest(real_data / "slides" / "HE_example.tif", out), Plan(), Resources(workers=0))
    return Cohort(out)


def test_verify_finds_a_flipped_bit_in_any_file(cohort: Cohort) -> None:
    files = [cohort.root / file["path"] for file in cohort.rows()["HE_example"]["files"]]
    assert len(files) > 6
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert [problem.path for problem in verify_cohort(cohort)] == [path]
        path.write_bytes(data)
    assert list(verify_cohort(cohort)) == []


def test_verify_names_a_table_with_other_columns(cohort: Cohort) -> None:
    path = cohort.table("tiles", "HE_example")
    data = path.read_bytes()
    write_parquet(cohort.read("membrane", "HE_example"), path)
    assert [problem.path for problem in verify_cohort(cohort)] == [path]
    path.write_bytes(data)


def test_verify_names_an_unreadable_row(cohort: Cohort) -> None:
    path = cohort.table("slides", "HE_example")
    data = path.read_bytes()
    path.write_bytes(data[:100])
    assert path in [problem.path for problem in verify_cohort(cohort)]
    assert not cohort_status(cohort).adds_up
    path.write_bytes(data)
    assert cohort_status(cohort).adds_up


def test_verify_drops_the_row_cache_if_a_row_is_damaged(tmp_path: Path, real_data: Path) -> None:
    order = IngestRequest(real_data / "slides" / "HE_example.tif", tmp_path / "c")
    ingest(order, Plan(), Resources(workers=0))
    made = Cohort(order.out)
    later = made.table("slides", "later")
    write_parquet(made.read("slides", "HE_example"), later)
    path = made.table("slides", "HE_example")
    data = path.read_bytes()
    for which, seconds in ((path, 0), (later, 10)):
        os.utime(which, ns=(0, seconds * 10**9))
    made.update_row_cache()
    later.unlink()
    path.write_bytes(bytes(len(data)))  # a disk that lost a sector changes neither size nor time
    os.utime(path, ns=(0, 0))
    assert "HE_example" in made.rows()
    assert path in [problem.path for problem in verify_cohort(made)]
    assert ingest(order, Plan(), Resources(workers=0)).already == 0
    assert path.read_bytes() == data
    assert list(verify_cohort(made)) == []


def test_slide_that_is_committed_as_a_run_ends_is_no_problem(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run holds its lock when the first look begins, and has ended when it is over."""
    path, locked = cohort.table("slides", "HE_example"), iter([True, False, False])
    seen = StoreProblem(path, "the slide's row can't be read", "HE_example")
    monkeypatch.setattr(audit, "_find_problems", lambda _: iter([seen]))
    monkeypatch.setattr(audit, "is_locked", lambda _: next(locked))
    monkeypatch.setattr(audit, "LOOK_AGAIN_S", 0.0)
    assert list(verify_cohort(cohort)) == []


def test_a_folder_without_a_cohort_is_refused_with_the_command_that_creates_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="her2batch ingest"):
        cohort_status(Cohort(tmp_path))
