"""Rows of one step of the GPU benchmark, written to a file after each row, and the samples of the GPU's counters."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """A figure.  key: stable name, by which documents find it.  value: None: not measured, and `note` says why.

    ratio: of the value to its baseline, the larger the better, or None.  baseline: name of what the ratio refers to.
    """

    key: str
    what: str
    value: float | None
    unit: str
    ratio: float | None = None
    baseline: str = ""
    note: str = ""


@dataclass
class StepRecord:
    """The rows of a step.  path: JSON file, written anew after each row, so that a killed step keeps its rows."""

    path: Path
    cpu: bool
    rows: list[Row] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Device of the networks."""
        return "cpu" if self.cpu else "cuda"

    def add(self, row: Row) -> None:
        """Add a row, print it and write the file."""
        self.rows.append(row)
        value = "not measured" if row.value is None else f"{row.value:,.4g} {row.unit}"
        print(f"{row.what}: {value} {'' if row.ratio is None else f'({row.ratio:.2f} × {row.baseline})'} {row.note}")
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps([asdict(one) for one in self.rows], indent=1))
        part.replace(self.path)

    def attempt(self, key: str, what: str, unit: str, measure: Callable[[], None]) -> None:
        """Run a measurement that adds its own rows. An exception becomes a row without a value."""
        try:
            measure()
        except Exception as error:  # noqa: BLE001  # a missing package or a driver's error must not end the other measurements
            self.add(Row(key, what, None, unit, note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


def step_record(description: str) -> tuple[StepRecord, Path]:
    """Parse the arguments of a step: its record, and the scratch folder that the steps share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("scratch", type=Path, help="folder shared by the steps")
    parser.add_argument("out", type=Path, help="JSON file of the rows")
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU with tiny sizes")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --cpu tries the benchmark out")
    args.scratch.mkdir(parents=True, exist_ok=True)
    return StepRecord(args.out, args.cpu), args.scratch


def earlier_value(record: StepRecord, step: str, key: str) -> float | None:
    """Return a figure of an earlier step; None where it was not measured."""
    path = record.path.with_name(f"{step}.json")
    rows = json.loads(path.read_text()) if path.exists() else []
    return next((row["value"] for row in rows if row["key"] == key), None)


def synchronize(device: str) -> None:
    """Wait for the GPU's work."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass
class GpuSamples:
    """Utilization of the GPU, %, and its used memory, MiB, sampled while something ran."""

    utilization: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def busy_share(self) -> float | None:
        """Mean utilization, 0–1, from the first sample that is not 0 to the last; None without such a sample."""
        used = [k for k, value in enumerate(self.utilization) if value > 0]
        return statistics.mean(self.utilization[used[0] : used[-1] + 1]) / 100 if used else None


QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--id=0"]


@contextlib.contextmanager
def sample_gpu(cpu: bool, every_s: float = 0.25) -> Iterator[GpuSamples]:
    """Sample the GPU in a thread with nvidia-smi. No samples on a CPU or without nvidia-smi."""
    samples, ended = GpuSamples(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            started = time.monotonic()
            found = subprocess.run(QUERY, capture_output=True, text=True, check=False)
            with contextlib.suppress(ValueError):
                used, memory = (float(word) for word in found.stdout.split(","))
                samples.utilization.append(used)
                samples.memory.append(memory)
            ended.wait(max(0.0, every_s - (time.monotonic() - started)))

    def guarded() -> None:
        with contextlib.suppress(FileNotFoundError):
            watch()

    thread = threading.Thread(target=guarded, daemon=True)
    if not cpu:
        thread.start()
    try:
        yield samples
    finally:
        ended.set()
        if thread.is_alive():
            thread.join(timeout=5)
