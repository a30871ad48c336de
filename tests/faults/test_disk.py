"""Disks that are full, faulty, slow, read-only or unmounted, and files that something else changed."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from tests.faults.fault_fixtures import (
    TRIES,
    ReferenceCohort,
    assert_intact,
    assert_same_files,
    copy_reference,
    count_rows,
    ingest_command,
    ingest_serially,
    needs_mount,
    needs_strace,
    start_ingest,
    wait_until,
)
from tests.faults.powerloss import crash_states, record_operations
from tests.faults.test_kills import assert_resumed_equal, ingest_with_faults
from tests.runtime.test_ingest import store_contents

SMALL_DISK = """
import sys
from pathlib import Path
from her2batch.errors import Her2BatchError
from her2batch.runtime import ingest as job
from her2batch.settings import Plan, Resources
job.MIN_FREE_BYTES = 0  # else a small disk is refused at once
scans, disk = Path(sys.argv[1]), Path(sys.argv[2])
ballast = disk / "ballast"
ballast.write_bytes(bytes(int(sys.argv[3])))
def run():
    try:
        return job.ingest(job.IngestRequest(scans, disk / "c"), Plan(), Resources(workers=0)).exit_code
    except Her2BatchError as error:
        print(error, flush=True)
        return error.exit_code
first = run()
ballast.unlink()
print(first, run(), flush=True)
"""


def in_namespace(shell: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command as root of a separate namespace, in which it may mount."""
    names = [str(one) for one in arguments]
    return subprocess.run(["unshare", "-rm", "sh", "-ec", shell, "sh", *names], capture_output=True, text=True)


# -- refused -------------------------------------------------------------------------------------------------------


@needs_mount
@pytest.mark.parametrize("kilobytes", [60, pytest.param(400, marks=pytest.mark.long)])
def test_slides_lost_to_a_full_disk_are_done_by_the_next_run(
    reference_cohort: ReferenceCohort, tmp_path: Path, kilobytes: int
) -> None:
    """Of a disk of 4 MB only some kB are free: enough for a first row, or for some slides."""
    disk, out = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    ballast = 4_194_304 - kilobytes * 1024 // 4096 * 4096
    run = in_namespace(
        f'mount -t tmpfs -o size=4m none "$1"; {sys.executable} -c "$3" "$4" "$1" {ballast}; cp -a "$1/c" "$2"',
        disk, out, SMALL_DISK, reference_cohort.scans,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    *words, codes = run.stdout.splitlines()
    first, second = codes.split()
    assert (first in ("2", "3"), second) == (True, "0"), run.stdout
    if first == "2":
        assert str(disk / "c") in words[0]
        assert "No space left on device; 0.0" in words[0]
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)


@pytest.mark.long
@needs_strace
def test_next_run_repairs_a_slide_that_a_failing_system_call_stopped(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    """ENOSPC at write, EIO at fsync, EXDEV at rename: no slide is marked as done that is not whole."""
    faults = {"write": "error=ENOSPC", "fsync": "error=EIO", "rename": "error=EXDEV", "mkdir": "error=ENOSPC"}
    found = ingest_with_faults(reference_cohort, tmp_path, faults, tries=1)
    assert_faults_reported(found)


@pytest.mark.long
@needs_strace
@pytest.mark.timeout(900)
def test_next_run_repairs_a_slide_that_failing_system_calls_all_over_an_ingest_stopped(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    assert_faults_reported(
        ingest_with_faults(
            reference_cohort,
            tmp_path / "a",
            {"fsync": "error=EIO", "rename": "error=EIO", "mkdir": "error=ENOSPC"},
            TRIES,
        )
    )
    (tmp_path / "b").mkdir()
    assert_faults_reported(
        ingest_with_faults(
            reference_cohort,
            tmp_path / "b",
            {"write": "error=ENOSPC", "close": "error=EIO", "openat": "error=EMFILE"},
            TRIES // 2,
        )
    )


def assert_faults_reported(found: list[dict]) -> None:
    assert found
    for one in found:
        assert one["code"] in (0, 1, 2, 3), one
        assert one["struck"]["torn"] == [], one
        assert one["code"] != 0 or one["struck"]["same"], one
    assert_resumed_equal(found)


@needs_strace
@pytest.mark.slow
def test_read_errors_fail_one_slide_only(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """Every read of tiles fails with EIO."""
    scans = tmp_path / "scans"
    shutil.copytree(reference_cohort.scans, scans)
    broken = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(tmp_path / "log"), "-P", str(scans / "s2.tiff")]
    inject = ["--trace=pread64", "--inject=pread64:error=EIO:when=1+"]
    run = subprocess.run([*broken, *inject, *ingest_command(scans, tmp_path / "c", 0)], capture_output=True, text=True)
    assert run.returncode == 3, run.stderr
    rows = Cohort(tmp_path / "c").rows()
    assert {name: row["error_code"] for name, row in rows.items() if row["error_code"]} == {"s2": "unreadable"}
    assert "Input/output error" in rows["s2"]["error"]
    assert ingest_serially(scans, tmp_path / "c", retry_failed=True).exit_code == 0
    assert_intact(tmp_path / "c")


@needs_strace
@pytest.mark.long
def test_slow_share_changes_no_byte(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """Every read of the slides takes 20 ms longer."""
    slow = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(tmp_path / "log"), "--trace=pread64"]
    paths = [part for path in sorted(reference_cohort.scans.iterdir()) for part in ("-P", str(path))]
    run = subprocess.run(
        [
            *slow,
            "--inject=pread64:delay_enter=20000",
            *paths,
            *ingest_command(reference_cohort.scans, tmp_path / "c", 0),
        ]
    )
    assert run.returncode == 0
    assert_same_files(tmp_path / "c", reference_cohort.files)


@needs_strace
@pytest.mark.slow
def test_error_at_closing_the_lock_on_a_share_changes_nothing(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    copy_reference(reference_cohort, out)
    broken = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(tmp_path / "log"), "-P", str(out / ".lock")]
    run = subprocess.run(
        [*broken, "--trace=close", "--inject=close:error=EIO", *ingest_command(reference_cohort.scans, out, 0)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "EIO" in (tmp_path / "log").read_text()
    assert_same_files(out, reference_cohort.files)


@pytest.mark.slow
@needs_mount
def test_read_only_cohort_is_refused_before_any_work(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    out = tmp_path / "c"
    copy_reference(reference_cohort, out)
    line = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; "$@"'
    run = in_namespace(line, out, *ingest_command(reference_cohort.scans, out, 0))
    assert run.returncode == 2
    assert run.stderr.strip().startswith(f"her2batch: {out}: can't be written to (Read-only file system")
    assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.long)])
def test_unmounted_cohort_ends_the_run_and_is_not_created_again(
    reference_cohort: ReferenceCohort, tmp_path: Path, workers: int
) -> None:
    """After unmounting, an empty folder on another disk is left."""
    out, away = tmp_path / "c", tmp_path / "away"
    run = start_ingest(reference_cohort.scans, out, workers)
    wait_until(lambda: count_rows(out) >= 1)
    out.rename(away)
    out.mkdir()
    _, words = run.communicate(timeout=100)
    assert run.returncode == 2, words
    assert "Traceback" not in words
    assert [line for line in words.splitlines() if line.startswith("her2batch:")] == [words.splitlines()[-1]]
    in_place = [path for path in out.rglob("*") if path.is_file() and ".draft-" not in str(path)]
    assert in_place == []  # at most the draft of a slide that was begun at that moment
    shutil.rmtree(out)
    away.rename(out)
    assert ingest_serially(reference_cohort.scans, out).exit_code == 0
    assert_same_files(out, reference_cohort.files)


# -- power ---------------------------------------------------------------------------------------------------------


@needs_strace
@pytest.mark.slow
def test_power_loss_at_any_step_leaves_whole_slides(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """Replay every prefix of the disk operations of an ingest, without what was not forced to the disk by then."""
    scans, out = tmp_path / "scans", tmp_path / "c"
    scans.mkdir()
    for name in ("s2.tiff", "s3.tiff"):
        shutil.copy(reference_cohort.scans / name, scans)
    operations = record_operations(ingest_command(scans, out, 0), out, tmp_path / "log")
    assert len([one for one in operations if one.call == "fsync"]) > 50
    seen, most = 0, 0
    for root in crash_states(operations, out, tmp_path / "crashed"):
        cohort = Cohort(root)
        rows = cohort.reread_rows() if cohort.slides.is_dir() else {}
        problems = (
            [one for one in verify_cohort(cohort) if one.message != "no slide's row names this file"] if rows else []
        )
        assert problems == []
        seen, most = seen + 1, max(most, len(rows))
    assert (seen > 50, most) == (True, 2)


# -- altered -------------------------------------------------------------------------------------------------------


def files_of(cohort: Cohort, slide_id: str) -> list[Path]:
    """Return one file of each kind that belongs to a slide: tables, thumbnail, a shard, a zarr.json, the row."""
    row = cohort.rows()[slide_id]
    paths = [cohort.root / file["path"] for file in row["files"]]
    kinds = {path.parent if ".zarr" not in str(path) else path.name: path for path in paths}
    return [*kinds.values(), cohort.table("slides", slide_id)]


def assert_only_these_repeated(reference_cohort: ReferenceCohort, cohort: Cohort, which: set[str]) -> None:
    """Assert that the next ingest repeats exactly these slides and restores every byte."""
    summary = ingest_serially(reference_cohort.scans, cohort.root)
    assert set(summary.fresh) == which
    assert_same_files(cohort.root, reference_cohort.files)
    assert_intact(cohort.root)


@pytest.mark.slow
def test_verify_finds_200_of_200_flipped_bits(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """Flip one bit at a time, in every kind of file."""
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(reference_cohort.scans / "s3.tiff", scans)
    ingest_serially(scans, tmp_path / "c")
    cohort, chance, missed = Cohort(tmp_path / "c"), random.Random(19), []
    kinds = files_of(cohort, "s3")
    assert len(kinds) >= 8
    for k in range(200):
        path = kinds[k % len(kinds)]
        before = path.read_bytes()
        data = bytearray(before)
        bit = chance.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        if {one.path for one in verify_cohort(cohort)} != {path}:
            missed.append((path, bit))
        path.write_bytes(before)
    assert missed == []


@pytest.mark.slow
def test_only_slides_with_flipped_bits_are_ingested_again(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    cohort = copy_reference(reference_cohort, tmp_path / "c")
    for slide_id, kind in (("s0", 1), ("s3", -1), ("s5", -2)):  # a table, a row, a picture or a shard
        target = files_of(cohort, slide_id)[kind]
        data = target.read_bytes()
        target.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert {one.slide_id for one in verify_cohort(cohort)} == {"s0", "s3", "s5"}
    assert_only_these_repeated(reference_cohort, cohort, {"s0", "s3", "s5"})


@pytest.mark.slow
def test_cut_swapped_and_deleted_files_are_found_and_ingested_again(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    cohort = copy_reference(reference_cohort, tmp_path / "c")
    cut, a, b = cohort.table("tiles", "s1"), cohort.table("membrane", "s3"), cohort.table("membrane", "s4")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    a.rename(tmp_path / "x")
    b.rename(a)
    (tmp_path / "x").rename(b)
    cohort.thumbnail("s5").unlink()
    found = {one.path for one in verify_cohort(cohort)}
    assert found == {cut, a, b, cohort.thumbnail("s5")}
    assert_only_these_repeated(reference_cohort, cohort, {"s1", "s3", "s4", "s5"})


@pytest.mark.slow
def test_torn_intake_table_is_rewritten_without_ingesting_slides_again(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    cohort = copy_reference(reference_cohort, tmp_path / "c")
    data = cohort.intake.read_bytes()
    cohort.intake.write_bytes(data[: len(data) // 2])
    assert cohort.intake in {one.path for one in verify_cohort(cohort)}
    assert_only_these_repeated(reference_cohort, cohort, set())


@pytest.mark.slow
def test_torn_labels_are_reported(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id,her2\ns3,P3,3+\n")
    ingest_serially(reference_cohort.scans, tmp_path / "c", labels=labels)
    cohort = Cohort(tmp_path / "c")
    before = store_contents(cohort.root)
    cohort.labels.write_bytes(cohort.labels.read_bytes()[:-20])
    assert [one.path for one in verify_cohort(cohort)] == [cohort.labels]
    with pytest.raises(StoreError, match=r"labels.parquet: is damaged.*--labels"):
        ingest_serially(reference_cohort.scans, cohort.root)
    assert ingest_serially(reference_cohort.scans, cohort.root, labels=labels).fresh == []
    assert store_contents(cohort.root) == before
