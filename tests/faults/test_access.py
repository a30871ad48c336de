"""Every socket of a command is bound to loopback from its start to its end, and every port asks for a token.

That a session keeps its token to itself and is removed with its folder is tested in tests/runtime/test_ray_session.py.
"""

import http.client
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from her2batch.runtime.ray_session import RaySession
from tests.conftest import MakeSlide, Synthetic
from tests.nightly.scanner import write_toml

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
)
"""gRPC methods of Ray's head, of a node and of a worker that an attacker would call first."""


def process_commands(root: psutil.Process) -> dict[int, str]:
    """Return a process and its descendants: pid → command line."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found[one.pid] = " ".join(one.cmdline())[:60]
    return found


def command_line(pid: int) -> str | None:
    """Return the command line of a process, None when it has ended."""
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())[:60]
    return None


def listening_sockets(pids: dict[int, str]) -> set[tuple[str, int, int]]:
    """Return (address, port, pid) of the TCP and UDP sockets on which these processes listen."""
    return {
        (one.laddr.ip, one.laddr.port, one.pid)
        for one in psutil.net_connections("inet")
        if one.pid in pids and one.laddr and (one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM)
    }


def grpc_status(port: int, method: str, token: str | None = None) -> str:
    """Return the gRPC status of a server's answer to a call."""
    said = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=5, metadata=said)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def http_response(port: int, method: str, path: str) -> tuple[int, str]:
    """Return status and body, and status 0 where the server speaks no HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (http.client.HTTPException, OSError):
        return 0, ""
    finally:
        connection.close()


def test_requests_without_token_are_refused_on_every_port(ray_session: RaySession) -> None:
    pids = process_commands(psutil.Process())
    ports = {port for _, port, _ in listening_sockets(pids)}
    assert ports
    answers = {(port, method): grpc_status(port, method) for port in ports for method in METHODS}
    assert "OK" not in answers.values()
    for method in METHODS:  # each is served by somebody, and refused
        assert "UNAUTHENTICATED" in {answers[port, method] for port in ports}, method
    for port in ports:
        for method, path in (("GET", "/"), ("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("GET", "/api/version")):
            status, body = http_response(port, method, path)
            counts = body.startswith("# HELP")  # Prometheus' page: numbers, for whoever is on this machine
            assert status in (0, 401, 403, 404, 405) or counts, (port, path, status, body[:200])
            assert not counts or "/scans" not in body


def test_requests_with_token_are_answered(ray_session: RaySession) -> None:
    """Without this test the one above would pass against a closed port."""
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    ports = {port for _, port, _ in listening_sockets(process_commands(psutil.Process()))}
    method = METHODS[0]
    refused = [port for port in ports if grpc_status(port, method) == "UNAUTHENTICATED"]
    assert [grpc_status(port, method, token.read_text()) for port in refused] == ["OK"]


def run_and_record_sockets(*command: str) -> tuple[set[tuple[str, int, int]], int]:
    """Run a command line. Returns its listening sockets and exit code. Fails when it leaves anything behind."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shared = set(os.listdir("/dev/shm"))  # noqa: PTH208
    with subprocess.Popen(
        [sys.executable, "-m", "her2batch.cli", *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        root, seen, pids = psutil.Process(run.pid), set(), {}
        while run.poll() is None:
            pids |= process_commands(root)
            seen |= listening_sockets(pids)
            time.sleep(0.05)
    end = time.monotonic() + 90
    while left := [pid for pid, words in pids.items() if command_line(pid) == words]:
        assert time.monotonic() < end, {pid: pids[pid] for pid in left}
        time.sleep(0.2)
    assert not list(Path("/tmp").glob(f"h2b-{run.pid}-*"))
    assert not {one for one in set(os.listdir("/dev/shm")) - shared if str(run.pid) in one}  # noqa: PTH208
    return seen, run.returncode


@pytest.mark.long
def test_ingest_listens_on_loopback_only(make_slide: MakeSlide, tmp_path: Path) -> None:
    scans = make_slide("a.tiff", size=(900, 700)).parent
    seen, code = run_and_record_sockets(
        "ingest", str(scans), "--out", str(tmp_path / "c"), "--workers", "1", "--tile", "64"
    )
    assert code == 0
    assert len(seen) > 3
    assert {address for address, _, _ in seen} <= LOOPBACK


@pytest.mark.long
def test_nightly_watch_listens_on_loopback_only(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("a.tiff", size=(900, 700))
    plan = {"plan": "tile = 64", "resources": "workers = 1"}
    seen, code = run_and_record_sockets("overnight", str(write_toml(tmp_path, **plan)))
    assert code == 0
    assert len(seen) > 3
    assert {address for address, _, _ in seen} <= LOOPBACK


@pytest.mark.long
def test_training_listens_on_loopback_only(synthetic: Synthetic, tmp_path: Path) -> None:
    given = ("--method", "clam-sb", "--folds", "3", "--quick", "--workers", "1", "--out", str(tmp_path / "run"))
    seen, code = run_and_record_sockets("train", str(synthetic.cohort), *given)
    assert code == 0
    assert len(seen) > 3
    assert {address for address, _, _ in seen} <= LOOPBACK
