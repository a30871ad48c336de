"""Ingest jobs: slides run one at a time, links work once, posted paths stay inside the scan folder."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.web.ingest_jobs import IngestJobs, resolve_scan_path


def wait_until_ended(jobs: IngestJobs, job_id: str) -> dict[str, Any]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = jobs.status(job_id)
        assert found is not None
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.02)
    raise AssertionError(f"still {found}")


def test_slides_are_ingested_one_at_a_time_in_order() -> None:
    order: list[str] = []
    busy = threading.Lock()

    def work(path: Path) -> dict[str, Any]:
        assert busy.acquire(blocking=False)
        time.sleep(0.02)
        order.append(path.name)
        busy.release()
        return {"slide_id": path.stem}

    jobs = IngestJobs(work)
    submitted = [jobs.submit(f"/scans/{name}.svs") for name in "abc"]
    assert [wait_until_ended(jobs, one["id"])["slide_id"] for one in submitted] == ["a", "b", "c"]
    assert order == ["a.svs", "b.svs", "c.svs"]
    jobs.close()


def test_queued_slide_keeps_its_job() -> None:
    go = threading.Event()
    jobs = IngestJobs(lambda path: go.wait(10) and {"slide_id": path.stem})
    first, again = jobs.submit("/scans/a.svs"), jobs.submit("/scans/a.svs")
    assert first["id"] == again["id"]
    go.set()
    assert wait_until_ended(jobs, first["id"])["state"] == "done"
    assert jobs.submit("/scans/a.svs")["id"] != first["id"]
    jobs.close()


def test_job_waits_for_another_run_and_names_it() -> None:
    tries: list[int] = []

    def work(path: Path) -> dict[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            raise StoreError("is in use by host a, pid 1", "/cohort")
        return {"slide_id": path.stem}

    jobs = IngestJobs(work, retry_s=0.1)
    job_id = jobs.submit("/scans/a.svs")["id"]
    while len(tries) < 2:
        time.sleep(0.01)
    assert "host a, pid 1" in str(jobs.status(job_id))
    found = wait_until_ended(jobs, job_id)
    assert (found["state"], found["waiting"]) == ("done", None)
    jobs.close()


def test_failed_job_has_its_error_and_the_next_one_runs() -> None:
    def work(path: Path) -> dict[str, Any]:
        if path.stem == "a":
            raise RuntimeError("a fault")
        if path.stem == "b":
            raise InputError("no such folder", path)
        return {"slide_id": "c", "error_code": "no-mpp", "error": "c: no resolution"}

    jobs = IngestJobs(work)
    found = [wait_until_ended(jobs, jobs.submit(f"/{name}.svs")["id"]) for name in "abc"]
    assert [one["error_code"] for one in found] == ["internal", "refused", "no-mpp"]
    assert {one["state"] for one in found} == {"failed"}
    assert jobs.status("none") is None
    jobs.close()


def test_code_can_be_redeemed_once() -> None:
    jobs = IngestJobs(None, ("x", "y"))
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(jobs.redeem_code("x"))) for _ in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(results) == [False] * 19 + [True]
    assert (jobs.redeem_code("z"), jobs.redeem_code(""), jobs.redeem_code("y")) == (False, False, True)
    with pytest.raises(InputError, match="--scans"):
        jobs.submit("/scans/a.svs")


def test_posted_paths_stay_below_the_scan_folder(tmp_path: Path) -> None:
    scans, outside = tmp_path / "scans", tmp_path / "secret.svs"
    (scans / "in").mkdir(parents=True)
    (scans / "in" / "a.svs").touch()
    outside.touch()
    (scans / "link.svs").symlink_to(outside)
    assert (
        resolve_scan_path("in/a.svs", scans)
        == resolve_scan_path(str(scans / "in" / "a.svs"), scans)
        == scans / "in" / "a.svs"
    )
    wrong = ["../secret.svs", str(outside), "link.svs", "in", ".", "", "none.svs", "a\0b", "/etc/passwd", "x" * 5000]
    for path in wrong:
        with pytest.raises(InputError, match="under the scan folder"):
            resolve_scan_path(path, scans)
    with pytest.raises(InputError, match="accepts no slides"):
        resolve_scan_path("in/a.svs", None)
