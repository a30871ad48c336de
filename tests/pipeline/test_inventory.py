"""What an ingest has to do: outcomes, ids, copies, resume; without reading more than it must."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from her2batch.pipeline import inventory
from her2batch.pipeline.inventory import Inventory, take_inventory
from her2batch.settings import Plan
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


def look(scans: Path, cohort: Cohort, plan: Plan | None = None, **more: object) -> Inventory:
    found = take_inventory(scans, cohort, plan or Plan(), Pseudonymizer(), {}, **more)
    found.save(cohort)
    return found


def finish(cohort: Cohort, found: Inventory, **facts: object) -> None:
    """Commit rows as a worker would, for everything that is to do."""
    plan = Plan()
    for todo in found.jobs:
        row = {"slide_id": todo.slide_id, "sha256": f"sha of {todo.slide_id}", "bytes": todo.source.bytes,
               "status": "done", "mpp_source": "file", "plan_id": plan.id, "files": [], **facts}  # fmt: skip
        write_row(cohort, row)


def ids(found: Inventory) -> list[str]:
    return [todo.slide_id for todo in found.jobs]


def test_everything_seen_has_one_outcome(scans: Path, cohort: Cohort) -> None:
    (scans / "notes.md").write_text("x")
    shutil.copy(scans / "s0.tiff", scans / "z-copy.tiff")
    found = look(scans, cohort)
    assert ids(found) == ["readme", "s0", "s1", "s2"]  # a slide by content, whatever its suffix
    assert (found.seen, found.duplicates, found.ignored) == (6, 1, 1)
    assert found.entries[str(scans / "z-copy.tiff")]["slide_id"] == "s0"


def test_what_is_committed_is_left_alone_even_after_a_kill(
    scans: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(cohort, look(scans, cohort))  # rows are there; the intake table knows no digests yet
    monkeypatch.setattr(inventory, "fingerprint_slide", None)  # reading any file would fail
    found = look(scans, cohort)
    assert ids(found) == []
    assert len(found.current) == 4


def test_a_failure_stays_until_asked_or_until_it_may_be_over(scans: Path, cohort: Cohort) -> None:
    finish(cohort, look(scans, cohort), status="failed", error_code="unreadable")
    assert ids(look(scans, cohort)) == []
    assert len(ids(look(scans, cohort, retry_failed=True))) == 4
    finish(cohort, look(scans, cohort, retry_failed=True), status="failed", error_code="unstable")
    assert len(ids(look(scans, cohort))) == 4


def test_another_plan_is_another_result(scans: Path, cohort: Cohort) -> None:
    finish(cohort, look(scans, cohort))
    assert len(ids(look(scans, cohort, Plan(tile=256)))) == 4
    assert ids(look(scans, cohort, Plan(mpp_override=0.25))) == []  # all have a resolution of their own


def test_a_copy_that_comes_later_finds_its_original(scans: Path, cohort: Cohort) -> None:
    look(scans, cohort)  # seen, and stopped before anything was read
    shutil.copy(scans / "s1.tiff", scans / "a-first-in-order.tiff")
    found = look(scans, cohort)
    assert found.entries[str(scans / "a-first-in-order.tiff")]["outcome"] == "duplicate"
    assert "s1" in ids(found)


def test_names_that_differ_in_case_only_are_told_apart(cohort: Cohort, make_slide: Callable) -> None:
    make_slide("x/a.tiff", seed=1)
    scans = make_slide("y/A.tiff", seed=2).parent.parent
    found = ids(look(scans, cohort))
    assert found[0] == "a"
    assert found[1].startswith("A-")


def test_an_order_of_the_folder_does_not_change_the_ids(tmp_path: Path, make_slide: Callable) -> None:
    for name in ("b/s.tiff", "a/s.tiff", "c/s.tiff"):
        make_slide(name, seed=ord(name[0]))
    found = []
    for k in range(2):
        cohort = Cohort(tmp_path / f"c{k}")
        cohort.create(Plan())
        found.append(ids(look(tmp_path / "scans", cohort)))
    assert found[0] == found[1]
    assert found[0][0] == "s"


AN_INGEST_THAT_IS_WATCHED = """
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


def watched(scans: Path, out: Path) -> list[str]:
    command = [sys.executable, "-c", AN_INGEST_THAT_IS_WATCHED, str(scans), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_a_second_ingest_opens_no_slide_and_starts_no_ray(tmp_path: Path, scans: Path) -> None:
    (scans / "notes.md").write_text("x")
    shutil.copy(scans / "s0.tiff", scans / "z-copy.tiff")
    for path in scans.iterdir():
        os.utime(path, ns=(0, 0))  # what changed in the last two seconds is looked at twice
    assert watched(scans, tmp_path / "c")[0] == "0"
    assert watched(scans, tmp_path / "c") == ["4", "0", "False"]


def test_what_is_remembered_of_a_folder_holds_no_name_of_it(cohort: Cohort, make_slide: Callable) -> None:
    path = make_slide("Jane Doe.tiff")
    (path.parent / "Jane.vms").write_text("[VMS]\nImageFile=Jane Doe.jpg\n")
    os.utime(path, ns=(0, 0))
    os.utime(path.parent / "Jane.vms", ns=(0, 0))
    take_inventory(path.parent, cohort, Plan(), Pseudonymizer(b"k" * 32), {}).save(cohort)
    assert len(cohort.read_probes()) == 2
    assert "Jane" not in str(cohort.read_probes())


def test_a_lost_memo_changes_nothing(scans: Path, cohort: Cohort) -> None:
    finish(cohort, look(scans, cohort))
    first = look(scans, cohort)
    cohort.probe_cache_file.unlink()
    assert look(scans, cohort) == first
    assert (len(first.current), first.jobs) == (4, [])
