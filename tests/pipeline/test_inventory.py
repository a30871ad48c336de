"""The inventory: outcomes, ids, copies and resume, without reading more files than necessary."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from her2batch.pipeline.inventory import Inventory, take_inventory
from her2batch.pipeline.resume import seen_files
from her2batch.settings import Plan
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.pseudonyms import Pseudonymizer


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    made = Cohort(tmp_path / "c")
    made.create(Plan())
    return made


@pytest.fixture
def scans(make_slide: Callable) -> Path:
    for k in range(3):
        make_slide(f"s{k}.tiff", size=(600, 600 + k), seed=k)
    odd = make_slide("odd.tiff", size=(600, 700))
    odd.rename(odd.with_name("readme.txt"))
    return odd.parent


def run_inventory(scans: Path, cohort: Cohort, plan: Plan | None = None, **more: object) -> Inventory:
    found = take_inventory(scans, cohort, plan or Plan(), Pseudonymizer(), {}, **more)
    found.save(cohort)
    return found


def commit_all(cohort: Cohort, found: Inventory, **facts: object) -> None:
    """Commit a row for every slide to process, as a worker does."""
    plan = Plan()
    for job in found.jobs:
        row = {"slide_id": job.slide_id, "sha256": f"sha of {job.slide_id}", "bytes": job.source.bytes,
               "status": "done", "mpp_source": "file", "plan_id": plan.id, "files": [], **facts}  # fmt: skip
        write_row(cohort, row)


def job_ids(found: Inventory) -> list[str]:
    return [job.slide_id for job in found.jobs]


def test_every_file_has_one_outcome(scans: Path, cohort: Cohort) -> None:
    (scans / "notes.md").write_text("x")
    shutil.copy(scans / "s0.tiff", scans / "z-copy.tiff")
    found = run_inventory(scans, cohort)
    assert job_ids(found) == ["readme", "s0", "s1", "s2"]  # a slide by content, whatever its suffix
    assert (found.seen, found.duplicates, found.ignored) == (6, 1, 1)
    assert found.entries[str(scans / "z-copy.tiff")]["slide_id"] == "s0"


def test_finished_slides_are_skipped_after_a_killed_run(
    scans: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_all(cohort, run_inventory(scans, cohort))  # rows are there; the intake table knows no digests yet
    monkeypatch.setattr(seen_files, "fingerprint_slide", None)  # reading any file would fail
    found = run_inventory(scans, cohort)
    assert job_ids(found) == []
    assert len(found.current) == 4


def test_failed_slides_are_retried_on_request_or_if_the_error_is_transient(scans: Path, cohort: Cohort) -> None:
    commit_all(cohort, run_inventory(scans, cohort), status="failed", error_code="unreadable")
    assert job_ids(run_inventory(scans, cohort)) == []
    assert len(job_ids(run_inventory(scans, cohort, retry_failed=True))) == 4
    commit_all(cohort, run_inventory(scans, cohort, retry_failed=True), status="failed", error_code="unstable")
    assert len(job_ids(run_inventory(scans, cohort))) == 4


def test_changed_plan_processes_slides_again(scans: Path, cohort: Cohort) -> None:
    commit_all(cohort, run_inventory(scans, cohort))
    assert len(job_ids(run_inventory(scans, cohort, Plan(tile=256)))) == 4
    assert job_ids(run_inventory(scans, cohort, Plan(mpp_override=0.25))) == []  # all have a resolution of their own


def test_copy_that_comes_later_is_a_duplicate(scans: Path, cohort: Cohort) -> None:
    run_inventory(scans, cohort)  # seen, and stopped before anything was read
    shutil.copy(scans / "s1.tiff", scans / "a-first-in-order.tiff")
    found = run_inventory(scans, cohort)
    assert found.entries[str(scans / "a-first-in-order.tiff")]["outcome"] == "duplicate"
    assert "s1" in job_ids(found)


def test_names_that_differ_in_case_only_get_different_ids(cohort: Cohort, make_slide: Callable) -> None:
    make_slide("x/a.tiff", seed=1)
    scans = make_slide("y/A.tiff", seed=2).parent.parent
    found = job_ids(run_inventory(scans, cohort))
    assert found[0] == "a"
    assert found[1].startswith("A-")


def test_order_of_the_folder_does_not_change_the_ids(tmp_path: Path, make_slide: Callable) -> None:
    for name in ("b/s.tiff", "a/s.tiff", "c/s.tiff"):
        make_slide(name, seed=ord(name[0]))
    found = []
    for k in range(2):
        cohort = Cohort(tmp_path / f"c{k}")
        cohort.create(Plan())
        found.append(job_ids(run_inventory(tmp_path / "scans", cohort)))
    assert found[0] == found[1]
    assert found[0][0] == "s"


AUDITED_INGEST = """
import sys
scans, out = sys.argv[1:]
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from pathlib import Path
summary = ingest(IngestRequest(Path(scans), Path(out)), Plan(), Resources(workers=int(Path(out).exists())))
print(summary.already, sum(path.startswith(scans) for path in opened), "ray" in sys.modules)
"""


def run_audited_ingest(scans: Path, out: Path) -> list[str]:
    command = [sys.executable, "-c", AUDITED_INGEST, str(scans), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_second_ingest_opens_no_slide_and_starts_no_ray(tmp_path: Path, scans: Path) -> None:
    (scans / "notes.md").write_text("x")
    shutil.copy(scans / "s0.tiff", scans / "z-copy.tiff")
    for path in scans.iterdir():
        os.utime(path, ns=(0, 0))  # what changed in the last two seconds is looked at twice
    assert run_audited_ingest(scans, tmp_path / "c")[0] == "0"
    assert run_audited_ingest(scans, tmp_path / "c") == ["4", "0", "False"]


def test_probe_cache_of_a_pseudonymized_cohort_has_no_file_names(cohort: Cohort, make_slide: Callable) -> None:
    path = make_slide("Jane Doe.tiff")
    (path.parent / "Jane.vms").write_text("[VMS]\nImageFile=Jane Doe.jpg\n")
    os.utime(path, ns=(0, 0))
    os.utime(path.parent / "Jane.vms", ns=(0, 0))
    take_inventory(path.parent, cohort, Plan(), Pseudonymizer(b"k" * 32), {}).save(cohort)
    assert len(cohort.read_probes()) == 2
    assert "Jane" not in str(cohort.read_probes())


def test_lost_probe_cache_changes_nothing(scans: Path, cohort: Cohort) -> None:
    commit_all(cohort, run_inventory(scans, cohort))
    first = run_inventory(scans, cohort)
    cohort.probe_cache_file.unlink()
    assert run_inventory(scans, cohort) == first
    assert (len(first.current), first.jobs) == (4, [])


def test_a_failed_slide_that_was_renamed_is_tried_again(scans: Path, cohort: Cohort) -> None:
    found = run_inventory(scans, cohort)
    for job in found.jobs:
        row = {"slide_id": job.slide_id, "sha256": fingerprint_slide(job.source.members).sha256,
               "bytes": job.source.bytes, "path": str(job.source.path), "status": "failed", "error_code": "unreadable",
               "plan_id": Plan().id, "files": []}  # fmt: skip
        write_row(cohort, row)
    assert job_ids(run_inventory(scans, cohort)) == []
    (scans / "s0.tiff").rename(scans / "renamed.tiff")
    assert job_ids(run_inventory(scans, cohort)) == ["s0"]
