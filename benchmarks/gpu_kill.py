"""Step of the GPU benchmark: a model worker is killed in the middle of an ingest, which must give the same bytes.

usage: gpu_kill.py SCRATCH OUT [--cpu]

With --cpu a worker of Ray is killed, as no process holds a GPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
from gpu_ingest import uni_weights
from gpu_record import Row, StepRecord, step_record

LIMIT_S = 200
"""Seconds after which an ingest of this step has failed."""


def command(scratch: Path, out: Path, small: bool) -> list[str]:
    """Return the command of an ingest of the small slides with a network."""
    encoder, weights = uni_weights(scratch, small)
    words = ["ingest", scratch / "small", "--out", out, "--encoder", encoder, "--weights", weights, "--workers", 2]
    return [sys.executable, "-m", "her2batch.cli", *map(str, words)]


def model_workers(run: int) -> list[int]:
    """Return the processes of a run that hold a GPU, or, where none does, its Ray actors."""
    family = psutil.Process(run).children(recursive=True)
    on_gpu = [one.pid for one in family if holds_gpu(one.pid)]
    return on_gpu or [one.pid for one in family if is_actor(one)]


def holds_gpu(pid: int) -> bool:
    """Return whether a process has opened the device file of a GPU."""
    try:
        return any("/dev/nvidia0" in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def is_actor(process: psutil.Process) -> bool:
    """Return whether a process is an actor of the ingest, by the title that Ray gives it."""
    try:
        return "ray::Actor" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def contents(cohort: Path) -> dict[str, bytes]:
    """Return all files whose bytes must be the same in every run."""
    files = [path for path in cohort.rglob("*") if path.is_file() and "runs" not in path.parts and path.name != ".lock"]
    return {str(path.relative_to(cohort)): path.read_bytes() for path in files}


def run_to_end(words: list[str], kill: Path | None = None) -> float:
    """Run an ingest; returns its seconds. kill: cohort after whose first finished slide a model worker is killed."""
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while kill is not None and not list(kill.glob("tables/slides/*.parquet")):
            if run.poll() is not None or time.perf_counter() - started > LIMIT_S:
                run.kill()
                raise RuntimeError("the ingest ended before a worker could be killed")
            time.sleep(0.01)
        if kill is not None:
            workers = model_workers(run.pid)
            if not workers:
                raise RuntimeError("no process of the ingest holds a GPU, and none is an actor")
            os.kill(workers[0], signal.SIGKILL)
        _, errors = run.communicate(timeout=LIMIT_S)
    if run.returncode:
        raise RuntimeError(f"exit code {run.returncode}: {errors.decode(errors='replace')[-300:]}")
    return time.perf_counter() - started


def measure_kill(record: StepRecord, scratch: Path) -> None:
    """Add the row: seconds that the killed worker costs. Raises RuntimeError when a byte differs."""
    outs = {name: scratch / f"kill-{name}" for name in ("whole", "killed")}
    for out in outs.values():
        shutil.rmtree(out, ignore_errors=True)
    whole = run_to_end(command(scratch, outs["whole"], record.cpu))
    killed = run_to_end(command(scratch, outs["killed"], record.cpu), outs["killed"])
    reference, found = (contents(out) for out in outs.values())
    different = sorted(name for name in reference.keys() | found.keys() if reference.get(name) != found.get(name))
    if different:
        raise RuntimeError(f"{len(different)} files differ, first {different[0]}")
    note = f"same bytes in {len(found)} files; undisturbed {whole:.1f} s"
    what = f"ingest with a killed {'worker' if record.cpu else 'model worker'}"
    record.add(Row("kill.seconds", what, killed, "s", killed / whole, "the undisturbed run", note))


def main() -> None:
    """Add the row of the killed worker."""
    record, scratch = step_record(__doc__.splitlines()[0])
    record.attempt("kill.seconds", "ingest with a killed worker", "s", partial(measure_kill, record, scratch))


if __name__ == "__main__":
    main()
