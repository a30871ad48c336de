"""No name, date, barcode, path or label image of the source is in anything that a pseudonymised cohort makes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import marked
from tests.faults.marked import leaks, mark, marks

KEEP_RAYS_FOLDER = """
import os, shutil, sys
from pathlib import Path
away, rmtree = sys.argv.pop(1), shutil.rmtree
def keep(path, *args, **more):
    if Path(path).name.startswith(f"h2b-{os.getpid()}-"):
        sockets = lambda folder, names: [one for one in names if Path(folder, one).is_socket()]
        shutil.copytree(path, away, ignore=sockets, dirs_exist_ok=True)
    rmtree(path, *args, **more)
shutil.rmtree = keep
"""
MAIN = "\nfrom her2batch.cli import main\nmain()\n"


@dataclass
class Place:
    """A folder with scans that bear marks, and what commands leave: cohort, logs, temporary files, Ray's session."""

    root: Path
    labels: list[bytes] = field(default_factory=list)

    def run(self, name: str, *arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own; what it says is kept, and so is Ray's folder."""
        away = self.root / "made" / "ray" / name
        (self.root / "made" / "tmp").mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "TMPDIR": str(self.root / "made" / "tmp"), "COLUMNS": "300"}
        command = [sys.executable, "-c", KEEP_RAYS_FOLDER + fault + MAIN, str(away), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, cwd=self.root)
        for kind, text in (("stdout", run.stdout), ("stderr", run.stderr)):
            (self.root / "made" / f"{name}.{kind}").write_text(text)
        return run

    def ingest(self, name: str, *more: str, cohort: str = "cohort", fault: str = "") -> subprocess.CompletedProcess:
        given = ("--out", f"made/{cohort}", "--pseudonymize", "key", "--tile", "64", "--labels", "labels.csv")
        return self.run(name, "ingest", "scans", *given, *more, fault=fault)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("marked"))
    made.labels = marked.make(made.root / "scans")
    marked.labels_csv(made.root / "labels.csv")
    key = made.root / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    return made


def test_the_search_finds_what_is_there(place: Place, tmp_path: Path) -> None:
    """Else its silence would say nothing: the source is full of marks, and so is a cohort that keeps its names."""
    found = set().union(*leaks(place.root / "scans", tuple(place.labels)).values())
    assert len(found) > 45
    assert repr(place.labels[0]) in found
    assert marks("QXJwideZYK".encode("utf-16-le")) == {"QXJwideZYK"} == marks("QXJwideZYK".encode("utf-16-be"))
    run = place.run("open", "ingest", "scans", "--out", str(tmp_path / "c"), "--workers", "0", "--tile", "64", "--json")
    assert run.returncode == 3
    (place.root / "made" / "open.stdout").unlink()
    (place.root / "made" / "open.stderr").unlink()
    named = set().union(*leaks(tmp_path / "c").values())
    assert {mark("aperio"), mark("folder"), mark("nompp")} <= named
    assert not named & {mark("user"), mark("artist"), mark("comment"), mark("exif"), mark("profile"), "label image"}


def test_an_ingest_and_its_failures_name_nothing(place: Place) -> None:
    run = place.ingest("ingest", "--json", "--workers", "2")
    found = json.loads(run.stdout)
    assert run.returncode == 3
    assert (found["done"], found["duplicate"]) == (4, 1)
    assert {one["error_code"] for one in found["failures"]} >= {"truncated", "no-mpp", "unreadable"}
    assert (place.root / "made" / "ray" / "ingest" / "session_latest" / "logs").is_dir()
    for name, command in (("status", "status"), ("verify", "verify")):
        assert place.run(name, command, "made/cohort", "--json").returncode == 0
        assert place.run(f"{name}-screen", command, "made/cohort").returncode == 0
    assert place.ingest("dry", "--dry-run", "--retry-failed").returncode == 0
    assert leaks(place.root / "made", tuple(place.labels)) == {}
