"""A simulated slide scanner, and a nightly run during which it writes slides."""

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
    """Writes 12 slides during a night: one truncated, one slow, one twice, one replaced after it was ingested.

    Meanwhile another file grows and is never finished, so that a night without `linger` does not end; it is removed in
    the end.
    """

    def __init__(self, slides: list[Path], scans: Path, cohort: Cohort) -> None:
        super().__init__(daemon=True)
        self.slides, self.scans, self.cohort = slides, scans, cohort
        self.truncated, self.slow, self.twice, self.replaced = (
            slides[3].name,
            slides[5].name,
            slides[7].name,
            slides[0].name,
        )
        self._working = threading.Event()

    def run(self) -> None:
        slow, growing = threading.Thread(target=self._write_slowly), threading.Thread(target=self._grow_file)
        while not self.cohort.settings.exists():  # slides appear only after the night has begun
            time.sleep(0.05)
        self._working.set()
        growing.start()
        for k, path in enumerate(self.slides[: SLIDES - 1]):
            if path.name == self.slow:
                slow.start()
            elif path.name == self.truncated:
                (self.scans / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                shutil.copy(path, self.scans / f".{path.name}.part")
                (self.scans / f".{path.name}.part").rename(self.scans / path.name)
            time.sleep(0.1)
            if k == 9:
                shutil.copy(self.scans / self.twice, self.scans / f"copy-{self.twice}")  # the twelfth
        while self.replaced.removesuffix(".svs") not in self.cohort.rows():
            time.sleep(0.2)
        shutil.copy(self.slides[SLIDES], self.scans / ".new.part")
        (self.scans / ".new.part").rename(self.scans / self.replaced)
        slow.join()
        time.sleep(2)  # until the night has seen all files
        self._working.clear()
        growing.join()

    def _write_slowly(self) -> None:
        data = next(path for path in self.slides if path.name == self.slow).read_bytes()
        with (self.scans / self.slow).open("wb") as file:
            for at in range(0, len(data), len(data) // 20 + 1):
                file.write(data[at : at + len(data) // 20 + 1])
                file.flush()
                time.sleep(0.15)

    def _grow_file(self) -> None:
        path = self.scans / "being-scanned.svs"
        while self._working.is_set():
            with path.open("ab") as file:
                file.write(b"II*\0")
            time.sleep(0.15)
        path.unlink()


def write_toml(folder: Path, **more: str) -> Path:
    """Write night.toml of a folder with `scans` and `cohort`; by default the night ends when nothing is left to do."""
    lines = [f'scans = "{folder / "scans"}"', f'cohort = "{more.pop("cohort", folder / "cohort")}"']
    lines += more.pop("top", "").splitlines()
    for name, body in {"window": "settle = 1.0\nlinger = false", **more}.items():
        lines += [f"[{name}]", *body.splitlines()]
    (folder / "night.toml").write_text("\n".join(lines))
    return folder / "night.toml"


@dataclass
class NightRun:
    """A finished nightly run. folder: scans, cohort, bundle, night.toml.  slides: the files that the scanner copies."""

    folder: Path
    slides: list[Path]
    bundle: str
    top: str
    scanner: Scanner
    exit_code: int
    night: dict[str, Any]
    stderr: str

    @property
    def cohort(self) -> Cohort:
        return Cohort(self.folder / "cohort")


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "her2batch.cli", "overnight", str(path)]


def run_night(folder: Path, slides: list[Path], bundle: str, top: str) -> NightRun:
    """Do a nightly run while the scanner writes slides."""
    (folder / "scans").mkdir()
    scanner = Scanner(slides, folder / "scans", Cohort(folder / "cohort"))
    scanner.start()
    run = subprocess.run(command(write_toml(folder, top=top)), capture_output=True, text=True, timeout=200)
    scanner.join(60)
    return NightRun(folder, slides, bundle, top, scanner, run.returncode, json.loads(run.stdout or "{}"), run.stderr)
