"""What a test run leaves behind: nothing. A plugin for the process that leads the run.

Temporary files of the tests and of their child processes lie in one folder, which is removed with the run; it stays
when a test failed. Processes are recognised by an environment variable that they inherit. One that outlives the run is
ended, named, and makes the run fail.
"""

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

MARK = "HER2BATCH_TEST_RUN"
"""Environment variable with the name of the run."""

GRACE_S = 15.0
"""How long processes may take to end after the last test."""

PREFIX = "her2batch-tests-"

KEPT = 2
"""Folders of earlier runs with failed tests that are kept."""


class SessionCleanup:
    """Gives a test run its own temporary folder, and removes or reports what is left at its end."""

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)
        self._begun = time.time()
        _remove_old_folders()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._left: list[str] = []
        os.environ[MARK] = self._name
        os.environ["TMPDIR"] = str(self._folder)
        tempfile.tempdir = None  # read TMPDIR again

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End and name the processes that are left, and remove the folders."""
        self._left = self._end_processes()
        _remove_ray_folders_of_killed_runs(self._begun)
        if self._left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if session.exitstatus != pytest.ExitCode.TESTS_FAILED:
            shutil.rmtree(self._folder, ignore_errors=True)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name what was left."""
        for line in self._left:
            terminalreporter.write_line(f"a process outlived the tests and was ended: {line}", red=True)
        if self._folder.exists():
            terminalreporter.write_line(f"temporary files of the failed tests: {self._folder}")

    def _end_processes(self) -> list[str]:
        end = time.monotonic() + GRACE_S
        while (processes := self._processes()) and time.monotonic() < end:
            time.sleep(0.2)
        commands = []
        for process in processes:
            with suppress(psutil.Error):
                commands.append(f"{process.pid} {' '.join(process.cmdline())[:150]}")
                process.kill()
        return commands

    def _processes(self) -> list[psutil.Process]:
        """The processes of this run, without the one that leads it and the one that ends with it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                ours = process.pid != os.getpid() and process.environ().get(MARK) == self._name
                if ours and process.status() != psutil.STATUS_ZOMBIE and not _is_own_tracker(process):
                    found.append(process)
        return found


def _is_own_tracker(process: psutil.Process) -> bool:
    """True for the resource tracker of this process's multiprocessing, which Python itself ends with this process."""
    return process.ppid() == os.getpid() and "multiprocessing.resource_tracker" in " ".join(process.cmdline())


def _remove_old_folders() -> None:
    """Remove the folders of earlier runs that failed or were killed, except the newest ones."""
    ended = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        with suppress(OSError):
            facts = folder.stat()
            if facts.st_uid == os.getuid() and pid.isdigit() and not psutil.pid_exists(int(pid)):
                ended.append((facts.st_mtime, folder))
    for _, folder in sorted(ended, reverse=True)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_ray_folders_of_killed_runs(since: float) -> None:
    """A driver that a test has killed leaves Ray's folder, which the next run would remove after two minutes."""
    for folder in Path("/tmp").glob("h2b-*-*"):
        pid = folder.name.split("-")[1]
        with suppress(OSError):
            facts = folder.stat()
            is_ours = facts.st_uid == os.getuid() and facts.st_ctime >= since and pid.isdigit()
            if is_ours and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)
