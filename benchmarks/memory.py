"""What is the peak memory of all processes of an ingest, and does it grow with the number of slides?

usage: memory.py CORES SCRATCH [--case CASE ...] [--plot SVG]

Runs the command line in separate processes and sums, five times per second, the proportional set size (PSS, in which
shared pages count once) of all its processes. Cases: one slide of 43,008 px with three levels and one with a single
level; 200 slides of 2,048 px; 10, 100 and 1,000 slides of 896 px.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import psutil
import tifffile
from rounds import load_pyplot
from slides import MPP, make_slide

LIMIT_GB = 3.0
INTERVAL_S = 0.2
LARGE_EDGE_PX = 43_008
CASES = ("large", "one-level", "small", "tiny")
TINY_COUNTS = (10, 100, 1000)


def make_small_slides(cores: Path, out: Path, count: int, edge: int) -> Path:
    """Make a folder of small slides, each a different piece of a core."""
    if out.exists() and len(list(out.glob("*.tiff"))) == count:
        return out
    out.mkdir(parents=True, exist_ok=True)
    cores_rgb = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted(cores.glob("*.jpg"))]
    rng = np.random.default_rng(edge)
    for number in range(count):
        core = cores_rgb[number % len(cores_rgb)]
        y, x = rng.integers(600, min(core.shape[:2]) - 600 - edge, 2) if edge < 3000 else (0, 0)
        tifffile.imwrite(
            out / f"s{number:04}.tiff", core[y : y + edge, x : x + edge], tile=(256, 256), photometric="rgb",
            compression="jpeg", compressionargs={"level": 80}, subsampling=(2, 2), metadata=None,
            resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER",
        )  # fmt: skip
    return out


def process_kind(process: psutil.Process, driver: int) -> str:
    """Return 'driver', 'workers' or 'Ray'."""
    if process.pid == driver:
        return "driver"
    return "workers" if "ray::" in " ".join(process.cmdline()[:1]) else "Ray"


def memory_by_kind(driver: psutil.Process) -> Counter[str]:
    """Return the current memory of each kind of process, GB."""
    memory: Counter[str] = Counter()
    for process in [driver, *driver.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            memory[process_kind(process, driver.pid)] += kilobytes / 1e6
        except (OSError, StopIteration, psutil.NoSuchProcess, IndexError):
            continue
    return memory


def run_ingest(slides: Path) -> tuple[list[float], list[float], Counter[str], float]:
    """Run one ingest. Returns times (s), memory at each (GB), memory by kind at the peak, and the wall time (s)."""
    with tempfile.TemporaryDirectory(dir=slides.parent) as folder:
        command = [sys.executable, "-c", "from her2batch.cli.app import main; main()", "ingest", str(slides)]
        started = time.monotonic()
        run = subprocess.Popen([*command, "--out", f"{folder}/c"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        driver = psutil.Process(run.pid)
        times, totals, peak = [], [], Counter[str]()
        while run.poll() is None:
            kinds = memory_by_kind(driver)
            times.append(time.monotonic() - started)
            totals.append(kinds.total())
            peak = max(peak, kinds, key=Counter.total)
            time.sleep(INTERVAL_S)
        if run.returncode:
            raise SystemExit(run.stderr.read().decode() if run.stderr else "failed")
        return times, totals, peak, time.monotonic() - started


def draw_chart(path: Path, peaks: dict[int, float], times: list[float], totals: list[float]) -> None:
    """Draw the peak against the number of slides, and the course of the largest run."""
    plt = load_pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(list(peaks), list(peaks.values()), "o-", color="#31688e")
    left.set_xscale("log")
    left.set_xticks(list(peaks), [f"{count:,}" for count in peaks])
    left.set_xlabel("slides of 896 px in one ingest")
    left.set_title("Peak of all processes", loc="left", fontsize=11)
    right.plot(times, totals, color="#31688e", linewidth=1)
    right.set_xlabel("seconds")
    right.set_title(f"{max(peaks):,} slides, from start to end", loc="left", fontsize=11)
    for axes in (left, right):
        axes.axhline(LIMIT_GB, color="#b5367a", linestyle="--", linewidth=1)
        axes.text(0.98, LIMIT_GB - 0.2, "limit", transform=axes.get_yaxis_transform(), ha="right", fontsize=8)
        axes.set_ylim(0, LIMIT_GB * 1.1)
        axes.set_ylabel("GB (PSS)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cores", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    cases: dict[str, Path] = {}
    if "large" in args.case:
        cases["one slide of 43,008 px"] = make_slide(
            args.cores, args.scratch / "large", "jpeg420", 3, LARGE_EDGE_PX
        ).parent
    if "one-level" in args.case:
        flat = make_slide(args.cores, args.scratch / "flat", "one-level", 3, LARGE_EDGE_PX)
        cases["one slide of 43,008 px, one level"] = flat.parent
    if "small" in args.case:
        cases["200 slides of 2,048 px"] = make_small_slides(args.cores, args.scratch / "small", 200, 2048)
    if "tiny" in args.case:
        cases |= {
            f"{n:,} slides of 896 px": make_small_slides(args.cores, args.scratch / f"tiny-{n}", n, 896)
            for n in TINY_COUNTS
        }
    peaks: dict[int, float] = {}
    times: list[float] = []
    totals: list[float] = []
    for name, slides in cases.items():
        times, totals, peak, wall = run_ingest(slides)
        parts = " · ".join(f"{kind} {gb:.2f}" for kind, gb in sorted(peak.items()))
        print(f"{name}: peak {max(totals):.2f} GB ({parts}) of {LIMIT_GB:.0f} · {wall:.0f} s", flush=True)
        if "896" in name:
            peaks[int(name.split()[0].replace(",", ""))] = max(totals)
    if args.plot and peaks:
        draw_chart(args.plot, peaks, times, totals)


if __name__ == "__main__":
    main()
