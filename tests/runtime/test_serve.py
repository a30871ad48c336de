"""The web page on real Ray Serve: on loopback only, with a token; it processes posted slides and stops completely."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from her2batch.errors import InputError, StoreError
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.serve import ServeRequest, check_request, ingest_one
from her2batch.settings import Plan, Resources
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from tests.conftest import tissue_image, write_slide

TOKEN = "a-token-for-the-tests-only"
ROOT = Path(__file__).parents[2]


class Server(NamedTuple):
    address: str
    link: str
    process: psutil.Process
    cohort: Cohort
    folder: Path


def make_cohort_and_scans(folder: Path) -> Cohort:
    """A cohort with S1, and a scan folder with S1 and S2."""
    (folder / "scans").mkdir()
    write_slide(folder / "scans" / "S1.tiff", tissue_image(1400, 1200, seed=1), levels=2)
    ingest(IngestRequest(folder / "scans", folder / "cohort"), Plan(), Resources(workers=0))
    write_slide(folder / "scans" / "S2.tiff", tissue_image(1400, 1200, seed=2, brown=0.5), levels=2)
    return Cohort(folder / "cohort")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    cohort = make_cohort_and_scans(folder)
    port = free_port()
    command = [sys.executable, "-m", "her2batch.cli", "serve", str(cohort.root), "--port", str(port)]
    command += ["--scans", str(folder / "scans")]
    env = os.environ | {"HER2BATCH_TOKEN": TOKEN}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    link = process.stdout.readline().split()
    assert len(link) > 1, (folder / "log").read_text()
    yield Server(f"http://127.0.0.1:{port}", link[1], psutil.Process(process.pid), cohort, folder)
    if process.poll() is None:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_every_port_is_on_loopback_and_requires_the_token(server: Server) -> None:
    tree = [server.process, *server.process.children(recursive=True)]
    ports = [
        one.laddr.ip.removeprefix("::ffff:")
        for each in tree
        for one in each.net_connections("tcp")
        if one.status == "LISTEN"
    ]
    assert len(ports) > 3
    assert set(ports) == {"127.0.0.1"}
    assert httpx.get(f"{server.address}/api/v1/slides").status_code == 401
    assert TOKEN not in " ".join(word for each in tree for word in each.cmdline())
    with httpx.Client(follow_redirects=True) as browser:
        assert browser.get(server.link).status_code == 200
        assert browser.get(f"{server.address}/api/v1/cohort").json()["posting"] is True
    assert httpx.get(server.link).status_code == 401


@pytest.mark.slow
def test_examples_of_the_documentation_work(server: Server, tmp_path: Path) -> None:
    """Run every example of docs/web-server.md as it is; the last but one posts S2."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "web-server.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    env = os.environ | {"HER2BATCH": server.address, "TOKEN": TOKEN}
    outputs = []
    for block in blocks:
        ran = subprocess.run(["bash", "-ec", block], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout)
    assert (tmp_path / "S1.jpg").read_bytes()[:2] == (tmp_path / "tile.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert '"state":"done"' in outputs[3]
    assert '"slide_id":"S2"' in outputs[3]
    assert '"label":"1+"' in outputs[4]
    assert server.cohort.rows().keys() == {"S1", "S2"}
    assert list(verify_cohort(server.cohort)) == []
    assert cohort_status(server.cohort).adds_up


@pytest.mark.slow
def test_stopped_server_leaves_no_process_or_file(server: Server) -> None:
    tree = server.process.children(recursive=True)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == 130
    until = time.monotonic() + 60
    while time.monotonic() < until and any(one.is_running() and one.status() != "zombie" for one in tree):
        time.sleep(0.5)
    assert [one.cmdline() for one in tree if one.is_running() and one.status() != "zombie"] == []
    assert list(Path("/tmp").glob(f"h2b-{server.process.pid}-*")) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)
    assert "Traceback" not in (server.folder / "log").read_text()


def test_invalid_request_is_refused_before_a_port_is_opened(tmp_path: Path) -> None:
    cohort, port = make_cohort_and_scans(tmp_path).root, free_port()
    check_request(ServeRequest(cohort, tmp_path / "scans"), port)
    with pytest.raises(StoreError, match="no cohort"):
        check_request(ServeRequest(tmp_path / "scans"), port)
    with pytest.raises(InputError, match="no such folder"):
        check_request(ServeRequest(cohort, tmp_path / "nowhere"), port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(InputError, match="choose another --port"):
            check_request(ServeRequest(cohort), port)
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(b"k" * 32)
    with pytest.raises(InputError, match="omit --pseudonymize"):
        check_request(ServeRequest(cohort, tmp_path / "scans", key=key), port)
    ingest(IngestRequest(tmp_path / "scans", tmp_path / "hidden", key=key), Plan(), Resources(workers=0))
    with pytest.raises(InputError, match="give --pseudonymize KEYFILE"):
        check_request(ServeRequest(tmp_path / "hidden", tmp_path / "scans"), port)
    check_request(ServeRequest(tmp_path / "hidden", tmp_path / "scans", key=key), port)


@pytest.mark.long
def test_posted_file_is_processed_alone_or_reported_as_no_slide(tmp_path: Path, ray_session: object) -> None:
    cohort = make_cohort_and_scans(tmp_path)
    scans = tmp_path / "scans"
    request = ServeRequest(cohort.root, scans)
    write_slide(scans / "S3.tiff", tissue_image(1400, 1200, seed=3))
    (scans / "copy.tiff").write_bytes((scans / "S1.tiff").read_bytes())
    (scans / "notes.txt").write_text("no slide")
    (scans / "broken.svs").write_bytes(b"no TIFF at all")
    assert ingest_one(request, scans / "S2.tiff") == {"slide_id": "S2", "error_code": None, "error": None}
    assert cohort.rows().keys() == {"S1", "S2"}
    assert ingest_one(request, scans / "S2.tiff")["slide_id"] == "S2"
    assert ingest_one(request, scans / "copy.tiff") == {"slide_id": "S1", "error_code": None, "error": None}
    assert ingest_one(request, scans / "notes.txt")["error_code"] == "not-a-slide"
    found = ingest_one(request, scans / "broken.svs")
    assert (found["slide_id"], found["error_code"]) == ("broken", "unreadable")
    assert cohort_status(cohort).adds_up
    with cohort.lock(), pytest.raises(StoreError, match="is in use by"):
        ingest_one(request, scans / "S3.tiff")
    assert list(verify_cohort(cohort)) == []
    assert cohort.plan() == Plan()
