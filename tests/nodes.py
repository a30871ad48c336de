"""A real Ray cluster of several nodes on this machine: each node its own raylet, bound to loopback, with a token."""

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
JOIN = """
import sys
import ray._private.ray_constants as constants
import ray._private.services as services
from ray.scripts.scripts import main
constants.ENABLE_RAY_CLUSTER = True  # `ray start` refuses further nodes on loopback, which is for us what they are for
services.get_node_ip_address = lambda *_: "127.0.0.1"
sys.argv[0] = "ray"
main()
"""
OBJECT_STORE_BYTES = str(100_000_000)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Cluster:
    """The nodes by name. The head runs no tasks; its dashboard accepts jobs."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="h2bc-", dir="/tmp"))
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.port, self.dashboard, self.metrics = free_port(), free_port(), free_port()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LD_"))},
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_server_request_timeout_seconds": "5",
            "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3",
            "PYTHONPATH": str(ROOT), "RAY_ADDRESS": self.address,
        }  # fmt: skip
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        own = ["--head", "--port", str(self.port), "--num-cpus", "0", "--include-dashboard", "true",
               "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard),
               "--ray-client-server-port", str(free_port()), "--metrics-export-port", str(self.metrics),
               "--temp-dir", str(self.folder / "r")]  # fmt: skip
        self._start("head", own)
        self.wait(lambda: self.count_alive() == 1)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def jobs(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def add(self, name: str, cpus: int = 1, **resources: float) -> None:
        """Start a further node. Returns when it has joined."""
        self._start(name, ["--address", self.address, "--num-cpus", str(cpus), "--resources", json.dumps(resources)])
        self.wait(lambda: "Ray runtime started" in (self.folder / f"{name}.log").read_text(errors="replace"))

    def kill(self, name: str) -> None:
        """Send SIGKILL to all processes of a node, as at a loss of power."""
        parent = psutil.Process(self.nodes.pop(name).pid)
        for one in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)

    def find_processes(self, name: str, words: str) -> list[psutil.Process]:
        """Return the processes of a node whose command line begins with `words`."""
        found = []
        with suppress(psutil.Error):
            for one in psutil.Process(self.nodes[name].pid).children(recursive=True):
                with suppress(psutil.Error):
                    if " ".join(one.cmdline()).startswith(words):
                        found.append(one)
        return found

    def count_alive(self) -> int:
        """Return the number of nodes that the head reports as alive."""
        found = self.dashboard_json("/nodes?view=summary")
        rows = found["data"]["summary"] if found else []
        return sum(one["raylet"].get("state") == "ALIVE" for one in rows)

    def dashboard_json(self, path: str, port: int | None = None) -> dict:
        """Return the JSON of the dashboard's answer, an empty dictionary while it does not answer."""
        return json.loads(self.dashboard_text(path, port) or "{}")

    def dashboard_text(self, path: str, port: int | None = None) -> str:
        token = Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port or self.dashboard}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with (
            suppress(OSError, urllib.error.URLError, http.client.HTTPException),
            urllib.request.urlopen(request, timeout=5) as answer,
        ):
            return answer.read().decode()
        return ""

    def wait(self, what: object, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "the cluster did not come to that: " + self.log()
            time.sleep(0.2)

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))

    def run(self, *command: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """Run a command with the cluster's token and address."""
        return subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    def popen(self, *command: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def close(self) -> None:
        for name in list(self.nodes):
            with suppress(psutil.NoSuchProcess):
                self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, options: list[str]) -> None:
        command = [sys.executable, "-c", JOIN, "start", *options, "--block", "--node-ip-address", "127.0.0.1",
                   "--object-store-memory", OBJECT_STORE_BYTES, "--disable-usage-stats",
                   "--dashboard-agent-listen-port", str(free_port())]  # fmt: skip
        with (self.folder / f"{name}.log").open("wb") as log:
            env = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
            env["TMPDIR"] = str(self.folder)  # what a killed node leaves goes with the cluster
            self.nodes[name] = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)


@contextmanager
def run_cluster(workers: int = 2) -> Iterator[Cluster]:
    """A cluster of a head and `workers` nodes with one CPU each."""
    made = Cluster()
    try:
        for k in range(workers):  # one after the other: nodes of one address that start together miss themselves
            made.add(f"node{k}")
        yield made
    finally:
        made.close()
