"""A slide scanner in miniature, and a night it works in."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2batch.store.cohort import Cohort

SLIDES = 12


class Scanner(threading.Thread):
    """Writes 12 slides over a night: one cut, one slow, one twice, one replaced after it was done.

    While it works, one more grows and is never finished, so that a night that doesn't linger stays; in the end it goes.
    """

    def __init__(self, made: list[Path], scans: Path, cohort: Cohort) -> None:
        super().__init__(daemon=True)
        self.made, self.scans, self.cohort = made, scans, cohort
        self.cut, self.slow, self.twice, self.replaced = made[3].name, made[5].name, made[7].name, made[0].name
        self._working = threading.Event()

    def run(self) -> None:
        slow, held = threading.Thread(target=self._slowly), threading.Thread(target=self._hold)
        while not self.cohort.settings.exists():  # the night has begun: what comes now comes under its eyes
            time.sleep(0.05)
        self._working.set()
        held.start()
        for k, path in enumerate(self.made[: SLIDES - 1]):
            if path.name == self.slow:
                slow.start()
            elif path.name == self.cut:
                (self.scans / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                shutil.copy(path, self.scans / f".{path.name}.part")
                (self.scans / f".{path.name}.part").rename(self.scans / path.name)
            time.sleep(0.1)
            if k == 9:
                shutil.copy(self.scans / self.twice, self.scans / f"copy-{self.twice}")  # the twelfth
        while self.replaced.removesuffix(".svs") not in self.cohort.rows():
            time.sleep(0.2)
        shutil.copy(self.made[SLIDES], self.scans / ".new.part")
        (self.scans / ".new.part").rename(self.scans / self.replaced)
        slow.join()
        time.sleep(2)  # all of it has been seen
        self._working.clear()
        held.join()

    def _slowly(self) -> None:
        data = next(path for path in self.made if path.name == self.slow).read_bytes()
        with (self.scans / self.slow).open("wb") as file:
            for at in range(0, len(data), len(data) // 20 + 1):
                file.write(data[at : at + len(data) // 20 + 1])
                file.flush()
                time.sleep(0.15)

    def _hold(self) -> None:
        path = self.scans / "on-the-glass.svs"
        while self._working.is_set():
            with path.open("ab") as file:
                file.write(b"II*\0")
            time.sleep(0.15)
        path.unlink()


def write_toml(folder: Path, **more: str) -> Path:
    """night.toml of a folder with `scans` and `cohort`; by default the night leaves when nothing is left."""
    lines = [f'scans = "{folder / "scans"}"', f'cohort = "{more.pop("cohort", folder / "cohort")}"']
    lines += more.pop("top", "").splitlines()
    for name, body in {"window": "settle = 1.0\nlinger = false", **more}.items():
        lines += [f"[{name}]", *body.splitlines()]
    (folder / "night.toml").write_text("\n".join(lines))
    return folder / "night.toml"


@dataclass
class NightRun:
    """A night that is over. folder: scans, cohort, bundle, night.toml."""

    folder: Path
    made: list[Path]
    bundle: str
    top: str
    scanner: Scanner
    code: int
    night: dict[str, Any]
    stderr: str

    @property
    def cohort(self) -> Cohort:
        return Cohort(self.folder / "cohort")


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "her2batch.cli", "overnight", str(path)]


def run_night(folder: Path, made: list[Path], bundle: str, top: str) -> NightRun:
    """A night with the scanner at work."""
    (folder / "scans").mkdir()
    scanner = Scanner(made, folder / "scans", Cohort(folder / "cohort"))
    scanner.start()
    run = subprocess.run(command(write_toml(folder, top=top)), capture_output=True, text=True, timeout=200)
    scanner.join(60)
    return NightRun(folder, made, bundle, top, scanner, run.returncode, json.loads(run.stdout or "{}"), run.stderr)
