"""Very many slides and a very large one: memory does not grow with them."""

import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from her2batch.files.atomic import file_sha256
from her2batch.pipeline.queue import SlideQueue
from her2batch.runtime.ray_session import OBJECT_STORE_BYTES, RaySession
from her2batch.runtime.scheduler import run_on_ray
from her2batch.runtime.serial import run_serially as plain_loop
from her2batch.runtime.telemetry import RunMetrics
from her2batch.settings import Resources
from tests.conftest import tissue_image, write_slide
from tests.faults.fault_fixtures import (
    ReferenceCohort,
    assert_same_files,
    ingest_command,
    ingest_serially,
    needs_mount,
    read_in_background,
)
from tests.faults.resource_monitor import ResourceUsage, run_monitored
from tests.runtime.test_scheduler import slide_jobs, worker_for

log = logging.getLogger(__name__)
MPP = 0.25
LIMIT = 3e9
"""Bytes that all processes of an ingest may hold together (docs/performance.md)."""


# -- ten thousand --------------------------------------------------------------------------------------------------

ASPECT = "Aperio Image Library v11.2.1\r\n16x16 [0,0 16x16] (16x16) JPEG/RGB Q=90|AppMag = 40|MPP = 0.2500|Number = "

OPENED = """
import sys
def _count(event, given):
    if event == "open" and isinstance(given[0], str) and given[0].endswith(".svs"):
        print(given[0], file=sys.stderr)
sys.addaudithook(_count)
"""
"""Prints every slide that is opened."""


def write_tiny_slides(folder: Path, count: int) -> Path:
    """Write Aperio slides of 16 px that differ by a number in their descriptions."""
    folder.mkdir()
    rgb = np.full((16, 16, 3), 240, np.uint8)
    rgb[4:12, 4:12] = (150, 100, 160)
    first = folder / "first.tmp"
    tifffile.imwrite(
        first, rgb, tile=(16, 16), photometric="rgb", compression="jpeg", description=f"{ASPECT}00000", metadata=None
    )  # fmt: skip
    data = first.read_bytes()
    first.unlink()
    for k in range(count):
        (folder / f"s{k:05}.svs").write_bytes(data.replace(b"Number = 00000", b"Number = %05d" % k))
    return folder


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_slides_need_the_memory_of_one_thousand_and_are_not_opened_again(tmp_path: Path) -> None:
    """With at most 1,024 open files; the second run takes at most 20 s of CPU, `status` 3 s."""
    found: dict[int, ResourceUsage] = {}
    for count in (1_000, 10_000):
        scans, out = write_tiny_slides(tmp_path / f"scans-{count}", count), tmp_path / f"c-{count}"
        found[count] = run = run_monitored("ingest", str(scans), "--out", str(out), "--quiet", files=1024)
        assert (run.code, run.said["done"]) == (0, count), run.words
        again = run_monitored("ingest", str(scans), "--out", str(out), "--quiet", first=OPENED)
        assert (again.code, again.said["already"], again.words) == (0, count, "")
        assert again.cpu <= 20
        status = run_monitored("status", str(out))
        assert (status.code, status.said["done"], status.cpu <= 3) == (0, count, True)
    assert found[10_000].tree <= LIMIT
    assert found[10_000].leader - found[1_000].leader < 9_000 * 20_000  # bytes a slide, while all rows are counted


# -- one that is very large ----------------------------------------------------------------------------------------

EDGE = 60_000
BLOCK = range(51, 67)
"""Chunks of 512 px, across and down, that hold tissue: 8,192 px in the middle."""


def write_large_slide(path: Path) -> Path:
    """Write a slide of 60,000 px square with one level: a chunk of glass and four of tissue, repeated."""
    glass = np.random.default_rng(0).normal(240, 1, (512, 512, 3)).clip(0, 255).astype(np.uint8)
    inside = tissue_image(4096, 4096, seed=3, brown=0.3)[1536:2560, 1536:2560]  # all of it tissue
    kinds = [inside[y : y + 512, x : x + 512] for y in (0, 512) for x in (0, 512)]
    blank, *tissue = (imagecodecs.jpeg8_encode(one, level=85, subsampling="420") for one in [glass, *kinds])
    count = -(-EDGE // 512)
    places = ((y, x) for y in range(count) for x in range(count))
    chunks = (tissue[y % 2 * 2 + x % 2] if y in BLOCK and x in BLOCK else blank for y, x in places)
    tifffile.imwrite(
        path, chunks, shape=(EDGE, EDGE, 3), dtype=np.uint8, tile=(512, 512), photometric="ycbcr", compression="jpeg",
        subsampling=(2, 2), metadata=None, resolution=(1e4 / MPP,) * 2, resolutionunit="CENTIMETER", bigtiff=True,
    )  # fmt: skip
    return path


@pytest.mark.long
def test_slide_of_60_000_px_needs_the_stated_memory_only(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_large_slide(scans / "large.tiff")
    run = run_monitored("ingest", str(scans), "--out", str(tmp_path / "c"), "--quiet")
    assert (run.code, run.said["done"]) == (0, 1), run.words
    edge = BLOCK.stop * 512 - BLOCK.start * 512
    assert (edge // 448 - 1) ** 2 <= run.said["tiles"] <= (edge // 448 + 2) ** 2  # tiles of 224 px at 0.5 µm/px
    assert run.tree <= LIMIT


# -- through Ray's object store ------------------------------------------------------------------------------------


def write_crops(folder: Path, count: int) -> Path:
    """Write slides of 3,000 × 2,600 px, each another crop of one piece of tissue."""
    folder.mkdir()
    whole = tissue_image(3700, 3200, brown=0.4)
    for k in range(count):
        y, x = divmod(k, 30)
        write_slide(folder / f"s{k:03}.tiff", whole[y * 24 : y * 24 + 2600, x * 22 : x * 22 + 3000])
    return folder


def file_digests(cohort: Path) -> dict[str, str]:
    """Return the digest of every file that must be the same in each run."""
    files = [path for path in cohort.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path.relative_to(cohort)): file_sha256(path) for path in files if path.name != ".lock"}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_five_hundred_shared_slides_pass_through_an_object_store_of_200_mb(
    tmp_path: Path, ray_session: RaySession
) -> None:
    """More than 200 MB pass through the store, never a tenth of it at once; the bytes are those of the serial loop."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    scans = write_crops(tmp_path / "scans", 500)
    reference = worker_for(tmp_path / "plain")
    list(plain_loop(reference, SlideQueue(slide_jobs(scans, reference))))
    worker = worker_for(tmp_path / "shared", range_batches=1, split_batches=1)
    state = get_state_from_address()
    with read_in_background(lambda: get_memory_info_reply(state).store_stats, every=0.5) as looks:
        queue = SlideQueue(slide_jobs(scans, worker))
        ended = list(run_on_ray(ray_session, worker, queue, Resources(workers=2), RunMetrics()))
    most, last = max(one.object_store_bytes_used for one in looks), looks[-1]
    log.info("object store: %d at most, %d in all", most, last.cumulative_created_bytes)
    assert Counter(one.row["status"] for one in ended) == {"done": 500}
    assert file_digests(tmp_path / "plain") == file_digests(tmp_path / "shared")
    assert last.cumulative_created_bytes > OBJECT_STORE_BYTES
    assert (most < OBJECT_STORE_BYTES / 10, last.spilled_bytes_total) == (True, 0)


FULL = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
from her2batch.runtime import ingest
from her2batch.runtime import ray_session as session
from her2batch.runtime import scheduler as pool
from her2batch.pipeline.queue import SlideQueue
from her2batch.pipeline.worker import SlideWorker
session.OBJECT_STORE_BYTES, session.RAY_FOLDER = 80_000_000, Path(sys.argv.pop(1))
where, name = {"workers": (pool._Scheduler, "_start_actor"), "slide": (SlideQueue, "next_job")}[sys.argv.pop(1)]
ingest.SlideWorker = partial(SlideWorker, range_batches=1, split_batches=0)
then, held = getattr(where, name), []
def fill(*given):
    import ray
    for size in () if held else (1_000_000, 100_000, 10_000):
        try:
            while True:
                held.append(ray.put(np.ones(size, np.uint8)))
                held.append(ray.get(held[-1]))  # whose bytes somebody looks at can't be moved out of the store
        except ray.exceptions.OutOfDiskError:
            print("full", size, file=sys.stderr)
    return then(*given)
setattr(where, name, fill)
from her2batch.cli.app import main
main()
"""
"""Ray's object store and its disk are full before the first worker starts, or before the first slide is handed out."""


@needs_mount
@pytest.mark.parametrize("before", ["slide", "workers"])
@pytest.mark.long
def test_full_object_store_beside_a_full_disk_ends_the_run_with_one_line(
    reference_cohort: ReferenceCohort, tmp_path: Path, before: str
) -> None:
    """With 80 MB of object store, 50 MB for Ray's files and shared slides; the next run ends with the same bytes."""
    room = Path("/tmp") / f"h2b-full-{os.getpid()}"
    room.mkdir()
    out = tmp_path / "c"
    try:
        mount = 'mount -t tmpfs -o size=50m none "$1"; shift; exec "$@"'
        program = [
            sys.executable,
            "-c",
            FULL,
            str(room),
            before,
            *ingest_command(reference_cohort.scans, out)[3:],
            "--quiet",
        ]
        names = ["unshare", "-rm", "sh", "-ec", mount, "sh", str(room), *program]
        run = subprocess.run(names, capture_output=True, text=True, timeout=290)
    finally:
        room.rmdir()
    words = [one for one in run.stderr.splitlines() if "LOG ERROR" not in one]  # Ray's own, which has no room for them
    log.info("%s", words)
    assert words[:3] == ["full 1000000", "full 100000", "full 10000"]
    assert (run.returncode, len(words)) == (2, 4), run.stderr
    assert words[3].startswith("her2batch: ")
    assert "make sure that the disk with Ray's files" in words[3]
    assert ingest_serially(reference_cohort.scans, out).exit_code == 0
    assert_same_files(out, reference_cohort.files)
