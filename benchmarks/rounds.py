"""How the benchmarks measure: both sides in turn, on the same cores, medians; and how they draw."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
from threadpoolctl import threadpool_limits

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "her2batch"  # the same picture for the same figures
import matplotlib.pyplot as plt  # noqa: E402


def medians(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Seconds of each side, A B A B …: what else the machine does, both see. A first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            took = run()
            if number:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processes(workers: int) -> ProcessPoolExecutor:
    """Warm processes of one thread each, as the ingest's workers are."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_single)
    list(pool.map(abs, range(workers)))
    return pool


def _single() -> None:
    cv2.setNumThreads(1)
    threadpool_limits(1)


def on_cores(pool: ProcessPoolExecutor, function: Callable[..., float], parts: Sequence[tuple[Any, ...]]) -> float:
    """Wall seconds of a function over parts in warm processes, less what each spends before its own clock starts.

    The function returns the seconds that count; a process that had several parts counts their sum.
    """
    started = time.perf_counter()
    took = [future.result() for future in [pool.submit(function, *part) for part in parts]]
    wall = time.perf_counter() - started
    return max(took) if len(parts) <= pool._max_workers else wall  # type: ignore[attr-defined]


def bars(path: Path, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A chart of horizontal bars: group → side → figure."""
    sides = list(next(iter(groups.values())))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.28 * len(groups) * (len(sides) + 0.7)))
    colours = plt.colormaps["viridis"]
    for k, side in enumerate(sides):
        places = [g * (len(sides) + 0.7) + k for g in range(len(groups))]
        values = [group[side] for group in groups.values()]
        axes.barh(places, values, height=0.92, label=side, color=colours(0.15 + 0.7 * k / max(1, len(sides) - 1)))
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:,.{0 if value >= 100 else 1}f}", va="center", fontsize=8)
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
