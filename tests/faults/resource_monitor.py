"""Memory, open files and CPU time of a command, measured from its start to its end."""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.fault_fixtures import process_tree

log = logging.getLogger(__name__)
EVERY_S = 0.5


@dataclass
class ResourceUsage:
    """Output of a command, and the most that it took.

    leader: bytes that the leading process held at its peak (VmHWM).  tree: the same of all processes together (PSS:
    what they share counts once).  files: most files that one process had open.  cpu: seconds of all that have ended.
    """

    code: int = -1
    said: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    leader: int = 0
    tree: int = 0
    files: int = 0
    cpu: float = 0.0
    wall: float = 0.0

    def figures(self) -> str:
        """Return one line for the log (--log-cli-level=INFO)."""
        return (
            f"code {self.code}, leader {self.leader / 1e6:.0f} MB, all {self.tree / 1e6:.0f} MB, {self.files} files, "
            f"{self.cpu:.1f} s of CPU, {self.wall:.1f} s"
        )


def run_monitored(*command: str, first: str = "", files: int = 0) -> ResourceUsage:
    """Run `her2batch COMMAND --json`. first: a line of Python before it.  files: limit of open files per process."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))" if files else ""
    program = f"{limit}\n{first}\nfrom her2batch.cli.app import main\nmain()"
    found, begun, spent = ResourceUsage(), time.monotonic(), os.times()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        run = subprocess.Popen([sys.executable, "-c", program, *command, "--json"], stdout=out, stderr=err)
        while run.poll() is None:
            _sample(found, run.pid)
            with suppress(subprocess.TimeoutExpired):
                run.wait(EVERY_S)
        out.seek(0)
        err.seek(0)
        said, found.words = out.read(), err.read()
    now = os.times()
    found.cpu = now.children_user + now.children_system - spent.children_user - spent.children_system
    found.code, found.wall = run.returncode, time.monotonic() - begun
    found.said = json.loads(said) if said else {}
    log.info("%s: %s", " ".join(command), found.figures())
    return found


def _sample(found: ResourceUsage, pid: int) -> None:
    total = 0
    for process in process_tree(pid):
        with suppress(OSError, psutil.Error):
            total += _kilobytes(Path(f"/proc/{process.pid}/smaps_rollup"), "Pss") * 1024
            found.files = max(found.files, process.num_fds())
    found.tree = max(found.tree, total)
    with suppress(OSError):
        found.leader = max(found.leader, _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM") * 1024)


def _kilobytes(file: Path, name: str) -> int:
    figure = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    return int(figure[1]) if figure else 0
