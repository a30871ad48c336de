"""The connection to Ray: bound to this machine, with a private token, and nothing left afterwards."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from her2batch.errors import HeadLost, InputError, StoreError
from her2batch.runtime.ray_session import RaySession, _cluster_address, _make_ray_folder, _start, connect
from her2batch.settings import Resources

ELSEWHERE = "http://127.0.0.1:8265"


def listening_addresses(process: psutil.Process) -> set[str]:
    """Addresses that a process listens on; none if it has just ended."""
    try:
        return {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()


def test_all_ports_are_bound_to_loopback(ray_session: RaySession) -> None:
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    addresses = set().union(*(listening_addresses(process) for process in ours))
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_existing_connection_is_used(ray_session: RaySession) -> None:
    with connect(Resources(workers=1)) as again:
        assert again.workers == 1
    assert ray_session.ray.is_initialized()


def test_head_that_died_since_the_last_check_gets_no_request(ray_session: RaySession) -> None:
    gone = replace(ray_session, head="127.0.0.1:1", _checked=time.monotonic(), stopped=threading.Event())
    gone.stopped.set()  # no waiting between the knocks
    with pytest.raises(HeadLost, match="run the same command again to continue"):
        gone.nodes()


@pytest.fixture(scope="module")
def ended() -> "subprocess.CompletedProcess[str]":
    """A session in a process of its own that got both signals. Its environment names a cluster that is not there."""
    code = """
import os, pathlib, sys
from her2batch.runtime.ray_session import connect
from her2batch.settings import Resources
before = dict(os.environ)
with connect(Resources(workers=1)) as session:
    token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    print(oct(token.stat().st_mode & 0o777), len(token.read_text()))
    for number in (2, 15):
        session.stopped.clear()
        os.kill(os.getpid(), number)
        print(number, session.stopped.is_set())
    print(session.workers, session.head)
print(os.environ["RAY_ADDRESS"])
print(token.parent.exists(), os.environ == before)
sys.exit(130)
"""
    env = {**os.environ, "RAY_ADDRESS": ELSEWHERE}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=env)


def test_session_removes_its_files_and_keeps_its_token_private(ended: "subprocess.CompletedProcess[str]") -> None:
    lines = ended.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("0o600 64", "False True"), ended.stderr


def test_signal_stops_a_run_in_order_with_exit_code_130(ended: "subprocess.CompletedProcess[str]") -> None:
    assert ended.returncode == 130, ended.stderr
    assert ended.stdout.splitlines()[1:3] == ["2 True", "15 True"]
    assert ended.stderr.count("run the same command again to continue") == 2


def test_ray_starts_here_whatever_the_environment_says(ended: "subprocess.CompletedProcess[str]") -> None:
    assert ended.stdout.splitlines()[3:5] == ["1 None", ELSEWHERE], ended.stderr


def test_folder_of_a_killed_run_is_removed() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folders = {name: Path(f"/tmp/h2b-{pid}-{name}") for name, pid in (("dead", gone.pid), ("alive", os.getpid()))}
    try:
        for folder in folders.values():
            folder.mkdir()
            os.utime(folder, (0, 0))
        fresh = _make_ray_folder()
        fresh.rmdir()
        assert {name: folder.exists() for name, folder in folders.items()} == {"dead": False, "alive": True}
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def test_missing_cluster_is_a_usage_error(tmp_path: Path) -> None:
    code = (
        "from her2batch.runtime.ray_session import connect; from her2batch.settings import Resources\n"
        "with connect(Resources(address='127.0.0.1:1')): pass"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "no Ray cluster answers at 127.0.0.1:1" in run.stderr


def test_ray_that_was_imported_earlier_is_refused() -> None:
    code = (
        "import ray; from her2batch.runtime.ray_session import connect; from her2batch.settings import Resources\n"
        "with connect(Resources(workers=1)): pass"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert InputError.__name__ in run.stderr
    assert "before it could be bound" in run.stderr


def test_signal_before_or_during_the_start_of_ray_ends_with_exit_code_130() -> None:
    before = "os.kill(os.getpid(), 15)"
    starting = """
def start(*_):
    signal.signal(15, lambda number, _: sys.exit(number))  # Ray's own handler, there until ours is
    os.kill(os.getpid(), 15)
session._start = start
with session.connect(Resources(workers=1)):
    pass
"""
    for body in (before, starting):
        code = f"""
import os, signal, sys
from her2batch.cli.app import guarded
from her2batch.runtime import ray_session as session
from her2batch.settings import Resources
guarded(lambda: exec({body!r}))
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert run.returncode == 130, (body, run)
        assert "run the same command again to continue" in run.stderr


@pytest.mark.slow
def test_interrupt_during_the_import_of_ray_does_not_crash_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its native threads then outlive it and meet its destructor: sometimes a segmentation fault."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "2")  # the thread that crashed: now every time
    code = """
import os, time
from her2batch.cli.app import guarded
from her2batch.runtime import ray_session as session
from her2batch.settings import Resources
imported = session._import_ray
def with_interrupt(folder):
    ray = imported(folder)
    made = ray._raylet.CoreWorker
    def interrupted(*args):
        made(*args)
        os.kill(os.getpid(), 15)
        time.sleep(1)
    ray._raylet.CoreWorker = interrupted
    return ray
session._import_ray = with_interrupt
guarded(lambda: session.connect(Resources(workers=1)).__enter__())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (130, "her2batch: stopped; run the same command again to continue\n")


@pytest.mark.slow
def test_process_ends_when_ray_dies_during_a_blocking_call() -> None:
    """As during a request to Ray that gets no answer; Ray itself would go on for a minute."""
    code = """
import time
from her2batch.cli.app import guarded
from her2batch.runtime import ray_session
from her2batch.runtime.ray_session import connect
from her2batch.settings import Resources
ray_session.PROCESS_LOST_S = 3.0  # not 10: a shorter test
def spend():
    with connect(Resources(workers=1)) as session:
        [process.kill() for process in session.processes if process.name() == "gcs_server"]
        time.sleep(600)
guarded(spend)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert run.returncode == 2, run
    assert run.stderr.splitlines()[-1].startswith(
        "her2batch: a part of Ray on this machine has died; run the same command again"
    )


def test_command_interrupted_before_it_begins_prints_one_line() -> None:
    code = """
import os
from her2batch.cli import app as cli
cli.app.command("wait")(lambda: os.kill(os.getpid(), 15))
cli.main()
"""
    run = subprocess.run([sys.executable, "-c", code, "wait"], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, "her2batch: stopped; run the same command again to continue\n")


def test_signal_after_the_end_changes_no_exit_code() -> None:
    for number in (15, 2):
        late = f"""
import atexit, os
from her2batch.cli.app import guarded
atexit.register(os.kill, os.getpid(), {number})
guarded(lambda: 3)
"""
        run = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, timeout=60)
        assert (run.returncode, run.stderr) == (3, "")


def test_failed_start_of_ray_is_a_clear_error(tmp_path: Path) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    with pytest.raises(StoreError, match=r"Ray could not be started .*timed out.*; .*the same command"):
        _start(SimpleNamespace(init=init), Resources(workers=1), tmp_path)


ADDRESSES = ["http://127.0.0.1:8265", "https://head:8265", "10.0.0.1:6379", "ray://head:10001", "auto", "local", ""]


@pytest.mark.parametrize("found", ADDRESSES)
@pytest.mark.parametrize("given", ["local", "10.0.0.2:6379", "ray://other:10001"])
def test_address_decides_and_not_the_environment(monkeypatch: pytest.MonkeyPatch, given: str, found: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", found)
    assert _cluster_address(given) == given


def test_auto_is_the_cluster_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _cluster_address("auto") == "auto"
    for found in ("10.0.0.1:6379", "ray://head:10001"):
        monkeypatch.setenv("RAY_ADDRESS", found)
        assert _cluster_address("auto") == found
    for found in ("http://127.0.0.1:8265", "local"):
        monkeypatch.setenv("RAY_ADDRESS", found)
        with pytest.raises(InputError, match=rf"RAY_ADDRESS={found} is set.*unset RAY_ADDRESS"):
            _cluster_address("auto")


def test_failed_start_names_the_settings_of_ray_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**settings: object) -> None:
        assert settings["address"] == "local"
        raise RuntimeError("no")

    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    with pytest.raises(StoreError, match=r"if it fails again, unset RAY_ADDRESS, .*RAY_TMPDIR"):
        _start(SimpleNamespace(init=init), Resources(workers=1), tmp_path)
