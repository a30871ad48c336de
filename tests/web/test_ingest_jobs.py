"""The desk: posted slides one after the other, each with its ticket; links that work once; paths that stay inside."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.web.ingest_jobs import IngestJobs, checked


def ended(desk: IngestJobs, number: str) -> dict[str, Any]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = desk.look(number)
        assert found is not None
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.02)
    raise AssertionError(f"still {found}")


def test_slides_are_read_one_at_a_time_in_order() -> None:
    order: list[str] = []
    busy = threading.Lock()

    def work(path: Path) -> dict[str, Any]:
        assert busy.acquire(blocking=False)
        time.sleep(0.02)
        order.append(path.name)
        busy.release()
        return {"slide_id": path.stem}

    desk = IngestJobs(work)
    tickets = [desk.submit(f"/scans/{name}.svs") for name in "abc"]
    assert [ended(desk, one["id"])["slide_id"] for one in tickets] == ["a", "b", "c"]
    assert order == ["a.svs", "b.svs", "c.svs"]
    desk.close()


def test_a_slide_that_waits_keeps_its_ticket() -> None:
    go = threading.Event()
    desk = IngestJobs(lambda path: go.wait(10) and {"slide_id": path.stem})
    first, again = desk.submit("/scans/a.svs"), desk.submit("/scans/a.svs")
    assert first["id"] == again["id"]
    go.set()
    assert ended(desk, first["id"])["state"] == "done"
    assert desk.submit("/scans/a.svs")["id"] != first["id"]
    desk.close()


def test_another_writer_is_waited_for_and_named() -> None:
    tries: list[int] = []

    def work(path: Path) -> dict[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            raise StoreError("is in use by host a, pid 1", "/cohort")
        return {"slide_id": path.stem}

    desk = IngestJobs(work, retry_s=0.1)
    number = desk.submit("/scans/a.svs")["id"]
    while len(tries) < 2:
        time.sleep(0.01)
    assert "host a, pid 1" in str(desk.look(number))
    found = ended(desk, number)
    assert (found["state"], found["waiting"]) == ("done", None)
    desk.close()


def test_what_goes_wrong_is_on_the_ticket_and_the_desk_goes_on() -> None:
    def work(path: Path) -> dict[str, Any]:
        if path.stem == "a":
            raise RuntimeError("a fault")
        if path.stem == "b":
            raise InputError("no such folder", path)
        return {"slide_id": "c", "error_code": "no-mpp", "error": "c: no resolution"}

    desk = IngestJobs(work)
    found = [ended(desk, desk.submit(f"/{name}.svs")["id"]) for name in "abc"]
    assert [one["error_code"] for one in found] == ["internal", "refused", "no-mpp"]
    assert {one["state"] for one in found} == {"failed"}
    assert desk.look("none") is None
    desk.close()


def test_a_code_is_good_for_one_use_however_many_try() -> None:
    desk = IngestJobs(None, ("x", "y"))
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(desk.spend("x"))) for _ in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(results) == [False] * 19 + [True]
    assert (desk.spend("z"), desk.spend(""), desk.spend("y")) == (False, False, True)
    with pytest.raises(InputError, match="--scans"):
        desk.submit("/scans/a.svs")


def test_posted_paths_stay_under_the_scans_folder(tmp_path: Path) -> None:
    scans, outside = tmp_path / "scans", tmp_path / "secret.svs"
    (scans / "in").mkdir(parents=True)
    (scans / "in" / "a.svs").touch()
    outside.touch()
    (scans / "link.svs").symlink_to(outside)
    assert checked("in/a.svs", scans) == checked(str(scans / "in" / "a.svs"), scans) == scans / "in" / "a.svs"
    wrong = ["../secret.svs", str(outside), "link.svs", "in", ".", "", "none.svs", "a\0b", "/etc/passwd", "x" * 5000]
    for path in wrong:
        with pytest.raises(InputError, match="under the scans folder"):
            checked(path, scans)
    with pytest.raises(InputError, match="nothing may be posted"):
        checked("in/a.svs", None)
