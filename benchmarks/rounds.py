"""Measurement and drawing for the benchmarks: all sides in turn on the same cores, with medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
from threadpoolctl import threadpool_limits


def load_pyplot() -> Any:
    """Import matplotlib, set up to write SVG. Only where something is drawn: a machine that measures may lack it."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "her2batch"  # the same values give the same file
    import matplotlib.pyplot as plt

    return plt


def median_seconds(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each side, measured in turn (A B A B …), so that other load affects all sides.

    The first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            took = run()
            if number:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def warm_processes(workers: int) -> ProcessPoolExecutor:
    """Start processes of one thread each, like the ingest's workers.

    They are spawned: nvImageCodec, torch and OpenCV leave threads behind, and a process forked beside threads may hang.
    """
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread)
    list(pool.map(abs, range(workers)))
    return pool


def _use_one_thread() -> None:
    """Limit this process to one thread."""
    cv2.setNumThreads(1)
    threadpool_limits(1)


def run_on_cores(pool: ProcessPoolExecutor, function: Callable[..., float], parts: Sequence[tuple[Any, ...]]) -> float:
    """Return the wall seconds of a function over parts in warm processes, without the preparation of each part.

    The function returns its own measured seconds. With more parts than processes, the total wall time is returned.
    """
    started = time.perf_counter()
    took = [future.result() for future in [pool.submit(function, *part) for part in parts]]
    wall = time.perf_counter() - started
    return max(took) if len(parts) <= pool._max_workers else wall  # type: ignore[attr-defined]


def draw_bars(path: Path, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a chart of horizontal bars. groups: group → side → value."""
    plt, sides = load_pyplot(), list(next(iter(groups.values())))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.28 * len(groups) * (len(sides) + 0.7)))
    colours = plt.colormaps["viridis"]
    for k, side in enumerate(sides):
        positions = [g * (len(sides) + 0.7) + k for g in range(len(groups))]
        values = [group[side] for group in groups.values()]
        axes.barh(positions, values, height=0.92, label=side, color=colours(0.15 + 0.7 * k / max(1, len(sides) - 1)))
        for position, value in zip(positions, values, strict=True):
            axes.text(value, position, f" {value:,.{0 if value >= 100 else 1}f}", va="center", fontsize=8)
    axes.set_yticks([g * (len(sides) + 0.7) + (len(sides) - 1) / 2 for g in range(len(groups))], list(groups))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
