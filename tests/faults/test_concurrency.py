"""Concurrency: two runs on one cohort, readers beside a writer, a scanner that changes a slide under the reader."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from her2batch.models.encoders import embedding_dim
from her2batch.pipeline.queue import SlideQueue
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.stages import active_stages
from her2batch.pipeline.worker import SlideWorker
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.scheduler import run_on_ray
from her2batch.runtime.serial import run_serially as plain_loop
from her2batch.runtime.telemetry import RunMetrics
from her2batch.settings import Plan, Resources
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from tests.conftest import tissue_image, write_slide
from tests.faults.fault_fixtures import (
    ReferenceCohort,
    assert_intact,
    assert_same_files,
    copy_reference,
    count_rows,
    find_descendants,
    ingest_command,
    ingest_serially,
    process_tree,
    read_in_background,
    start_ingest,
    wait_until,
    wait_until_ended,
)
from tests.runtime.test_ingest import store_contents
from tests.runtime.test_scheduler import slide_jobs

# -- two runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_runs_started_together_one_works_and_the_other_reports_it(
    reference_cohort: ReferenceCohort, tmp_path: Path
) -> None:
    """On a busy machine the second may begin only after the first has ended; then two others are started."""
    for attempt in range(10):
        out = tmp_path / f"c{attempt}"
        runs = [start_ingest(reference_cohort.scans, out, 0) for _ in range(2)]
        words = {run: run.communicate(timeout=120)[1] for run in runs}
        first, second = sorted(runs, key=lambda run: run.returncode)
        if second.returncode != 0:
            break
    assert (first.returncode, second.returncode) == (0, 2), words
    assert f"{out}: is in use by host {socket.gethostname()}, pid {first.pid}, since" in words[second]
    assert len(words[second].splitlines()) == 1
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)


@pytest.mark.slow
def test_second_run_changes_nothing_not_even_the_plan(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    out = tmp_path / "c"
    copy_reference(reference_cohort, out)
    with Cohort(out).lock():
        run = subprocess.run(
            [*ingest_command(reference_cohort.scans, out, 0), "--mpp", "0.25"], capture_output=True, text=True
        )
    assert run.returncode == 2
    assert f"is in use by host {socket.gethostname()}, pid {os.getpid()}" in run.stderr
    assert_same_files(out, reference_cohort.files)


@pytest.mark.slow
def test_lock_of_a_killed_run_is_free_at_once(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    out = tmp_path / "c"
    run = start_ingest(reference_cohort.scans, out, 0)
    wait_until(lambda: count_rows(out) >= 1)
    assert f"pid {run.pid}" in (out / ".lock").read_text()
    run.send_signal(signal.SIGKILL)
    run.wait()
    begun = time.monotonic()
    with Cohort(out).lock() as held:
        assert time.monotonic() - begun < 2
        assert f"pid {os.getpid()}" in held.holder


# -- readers beside the writer -------------------------------------------------------------------------------------


def cohort_readers(out: Path) -> dict[str, Callable[[], object]]:
    """Return ways to read a cohort: as a notebook, a report, `status`, `verify` and a viewer do."""
    cohort = Cohort(out)

    def glob() -> int:
        return int(pyarrow.dataset.dataset(str(out / "tables" / "slides"), format="parquet").count_rows())

    def report() -> int:
        """Join the tables of every committed slide: each row has all its tiles and embeddings."""
        rows = cohort.rows()
        for slide_id, row in rows.items():
            for name in ("tiles", "membrane", "embeddings/stain"):
                assert cohort.read(name, slide_id).num_rows == row["n_tiles"]
            assert cohort.thumbnail(slide_id).stat().st_size > 0
            if row["n_tiles"]:
                with Pyramid(cohort.pyramid(slide_id)) as slide:
                    assert slide.read(Box(400, 400, 64, 64)).shape == (64, 64, 3)
        return len(rows)

    def look() -> int:
        return cohort_status(cohort).done

    def check() -> int:
        problems = list(verify_cohort(cohort))
        assert problems == [], problems
        return len(cohort.rows())

    return {"glob": glob, "report": report, "status": look, "verify": check}


@pytest.mark.parametrize("readers", [("glob", "report"), ("status", "verify")])
@pytest.mark.slow
def test_reader_beside_an_ingest_sees_whole_slides_and_never_fewer(
    reference_cohort: ReferenceCohort, tmp_path: Path, readers: tuple[str, str]
) -> None:
    out = tmp_path / "c"
    run = start_ingest(reference_cohort.scans, out, 0)
    wait_until(lambda: count_rows(out) >= 1 and (out / "tables" / "runs" / "intake.parquet").exists())
    one, other = (cohort_readers(out)[name] for name in readers)
    with read_in_background(one) as first, read_in_background(other) as second:
        assert run.wait(timeout=200) == 0
    for found in (first, second):
        counts = [one for one in found if isinstance(one, int)]
        assert counts == sorted(counts)
        assert len(counts) > 1
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)


# -- the slide changes ---------------------------------------------------------------------------------------------


def replace_slide(path: Path) -> None:
    """Replace a slide by another, as when a scan is repeated."""
    write_slide(path.with_name("new.tmp"), tissue_image(960, 880, seed=77, brown=0.4))
    path.with_name("new.tmp").replace(path)


def truncate_slide(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@dataclass
class DisturbedWorker(SlideWorker):
    """A worker that calls a function on its slide before a stage, or before the commit."""

    stage: str = ""
    disturb: Callable[[Path], None] = Path.unlink

    def _call(self, stage, state, slide=None):
        if stage.name == self.stage:
            self.disturb(slide.info.path)
        return super()._call(stage, state, slide)

    def _part(self, slide, state, role, lo, hi):
        if self.stage == "tiles" == role:
            self.disturb(slide.info.path)
        return super()._part(slide, state, role, lo, hi)


@pytest.mark.parametrize(
    "stage", [pytest.param("first", marks=pytest.mark.long), "tiles", pytest.param("last", marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    ("disturb", "code"), [(replace_slide, "unstable"), (truncate_slide, "unstable"), (Path.unlink, "gone")]
)
def test_slide_that_changes_under_the_reader_keeps_its_old_result(
    reference_cohort: ReferenceCohort, tmp_path: Path, disturb: Callable[[Path], None], code: str, stage: str
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "c"
    scans.mkdir()
    path = scans / "a.tiff"
    shutil.copy(reference_cohort.scans / "s4.tiff", path)
    ingest_serially(scans, out)
    old = store_contents(out)
    cohort = Cohort(out)
    context = StageContext(Plan(), dims={"stain": embedding_dim("stain")})
    stages = [stage.name for stage in active_stages(context)]
    where = {"first": stages[0], "last": stages[-1]}.get(stage, stage)
    worker = DisturbedWorker(cohort, context, stage=where, disturb=disturb)
    for _ in range(2):  # the scan was repeated; while that is read it is disturbed, and the next time again
        shutil.copy(reference_cohort.scans / "s5.tiff", path)
        row = worker.run(slide_jobs(scans, worker)[0]).row
        assert (row["status"], row["error_code"]) == ("failed", code)
        kept = {name: data for name, data in store_contents(out).items() if "tables/slides" not in name}
        assert kept == {name: data for name, data in old.items() if "tables/slides" not in name}
        assert list(verify_cohort(cohort)) == []
    shutil.copy(reference_cohort.scans / "s3.tiff", path)
    assert ingest_serially(scans, out).fresh == ["a"]
    assert cohort.rows()["a"]["width"] == 900 + 60 * 3
    assert_intact(out)


# -- order and numbers ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_number_of_workers_changes_no_byte(
    reference_cohort: ReferenceCohort, tmp_path: Path, ray_session: RaySession
) -> None:
    cells = [data for name, data in reference_cohort.files.items() if name.startswith("tables/cells/")]
    assert len(cells) == 6
    assert sum(pq.read_metadata(pa.BufferReader(data)).num_rows for data in cells) > 500
    for workers in (1, 2, 3):
        summary = ingest(
            IngestRequest(reference_cohort.scans, tmp_path / str(workers)), Plan(), Resources(workers=workers)
        )
        assert summary.exit_code == 0
        assert_same_files(tmp_path / str(workers), reference_cohort.files)


@pytest.mark.long
def test_huge_slide_and_slow_worker_change_no_byte(
    tmp_path: Path, ray_session: RaySession, make_slide: Callable
) -> None:
    """The huge slide is shared between the workers, and one of them stands still for two seconds in the middle."""
    make_slide("huge.tiff", size=(5000, 4600), brown=0.4)
    for k in range(4):
        make_slide(f"small{k}.tiff", seed=k, size=(900, 900))
    scans, session = tmp_path / "scans", replace(ray_session, workers=2)
    reference = SlideWorker(*_empty_cohort(tmp_path / "plain"))
    list(plain_loop(reference, SlideQueue(slide_jobs(scans, reference))))
    worker = SlideWorker(*_empty_cohort(tmp_path / "c"), range_batches=1, split_batches=1)
    slowed: list[psutil.Process] = []
    for _ in run_on_ray(session, worker, SlideQueue(slide_jobs(scans, worker)), Resources(workers=2), RunMetrics()):
        if not slowed:
            slowed = find_descendants(os.getpid(), "ray::Actor")[:1]
            slowed[0].suspend()
            threading.Timer(2.0, slowed[0].resume).start()
    assert len(slowed) == 1
    assert store_contents(tmp_path / "plain") == store_contents(tmp_path / "c")


def _empty_cohort(out: Path) -> tuple[Cohort, StageContext]:
    cohort = Cohort(out)
    cohort.create(Plan(tile=64))
    return cohort, StageContext(Plan(tile=64), dims={"stain": embedding_dim("stain")})


@pytest.mark.long
def test_order_of_slides_changes_no_byte(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    out = tmp_path / "backwards"
    shuffled = tmp_path / "scans"
    shuffled.mkdir()
    for path in sorted(reference_cohort.scans.iterdir(), reverse=True):  # one at a time, the last first
        shutil.copy(path, shuffled)
        ingest_serially(shuffled, out)
    tables = {
        name: data for name, data in store_contents(out).items() if "tables/slides" not in name
    }  # rows name their path
    assert tables == {name: data for name, data in reference_cohort.files.items() if "tables/slides" not in name}


# -- Ray in need ---------------------------------------------------------------------------------------------------

NEEDY = """
import sys
from pathlib import Path
from her2batch.runtime import ray_session as session
session.OBJECT_STORE_BYTES = 80_000_000
session.RAY_FOLDER = Path(sys.argv.pop(1))
from her2batch.cli.app import main
main()
"""


@pytest.mark.long
def test_small_object_store_ends_well_or_with_one_line(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """With 80 MB of object store and 50 MB for all files of Ray, the run ends within five minutes."""
    room = Path("/tmp") / f"h2b-room-{os.getpid()}"
    room.mkdir()
    out = tmp_path / "c"
    try:
        line = 'mount -t tmpfs -o size=50m none "$1"; shift; exec "$@"'
        program = [sys.executable, "-c", NEEDY, str(room), *ingest_command(reference_cohort.scans, out)[3:]]
        names = ["unshare", "-rm", "sh", "-ec", line, "sh", str(room), *program]
        run = subprocess.run(names, capture_output=True, text=True, timeout=290)
    finally:
        room.rmdir()
    assert run.returncode in (0, 1, 2), run.stderr
    if run.returncode == 0:
        assert_same_files(out, reference_cohort.files)
    else:
        assert len([one for one in run.stderr.splitlines() if one.startswith("her2batch:")]) == 1, run.stderr
    assert ingest_serially(reference_cohort.scans, out).exit_code == 0
    assert_same_files(out, reference_cohort.files)


CHAOS = {
    "RAY_testing_rpc_failure": '{"*": {"num_failures": 20, "req_failure_prob": 2, "resp_failure_prob": 2, "in_flight_failure_prob": 0}}',  # noqa: E501
    "RAY_testing_rpc_failure_avoid_intra_node_failures": "0",
    "RAY_testing_asio_delay_us": "CoreWorkerService.grpc_server.PushTask=1000:50000,NodeManagerService.grpc_server.RequestWorkerLease=1000:50000",  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    ["RAY_testing_rpc_failure", "RAY_testing_asio_delay_us"],
)
@pytest.mark.long
def test_lost_or_late_ray_messages_change_no_byte(
    reference_cohort: ReferenceCohort, tmp_path: Path, fault: str
) -> None:
    """Ray may end the process itself, with its own message, when a message of its start was lost."""
    out = tmp_path / "c"
    env = {**os.environ, fault: CHAOS[fault]}
    run = subprocess.Popen(
        ingest_command(reference_cohort.scans, out), stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    wait_until(lambda: count_rows(out) >= 1 or run.poll() is not None, within=200)
    everybody = process_tree(run.pid)
    _, words = run.communicate(timeout=250)
    assert run.returncode in (0, 2, 3) or "core_worker" in words, words
    wait_until_ended(everybody)
    assert ingest_serially(reference_cohort.scans, out, retry_failed=True).exit_code == 0
    assert_same_files(out, reference_cohort.files)
    assert_intact(out)
