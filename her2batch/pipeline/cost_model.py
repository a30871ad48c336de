"""Cost model of an ingest: seconds of a slide on cores, GPUs, the store's network link and its disk.

The resources work in parallel, so the slowest one decides (see docs/sizing.md). The figures are those of
docs/performance.md, from one machine. Where a cohort has run times of its own, `fit_to_run_times` scales the time of
the cores to them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CPU_TILES_S = {
    "stain": 1000.0,
    "efficientnet-lite0": 30.0,
    "uni": 1.3,
    "uni2-h": 0.5,
    "virchow2": 0.5,
    "h-optimus-0": 0.3,
}
"""Tiles that a CPU core embeds in a second. stain: benchmarks/encoder.py. efficientnet-lite0, uni: float32, one core,
measured. The others: by their size relative to uni."""

GPU_TILES_S = {"uni": 3500.0, "uni2-h": 1300.0, "virchow2": 1300.0, "h-optimus-0": 750.0}
"""Tiles that an H200 embeds in a second. Estimates, not measured: 55 % of its bf16 peak for ViT-L, others by size."""

OTHER_ENCODER = (30.0, 5000.0)
"""Tiles a second of an encoder that is not listed (a ResNet-50), on a core and on a GPU."""


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Costs:
    """Cost figures.  decode: px that a core decodes in a second, by codec.  core_factor: on the time of the cores."""

    decode: Mapping[str, float] = field(default_factory=lambda: {"jpeg": 620e6, "jpeg2000": 38e6, "other": 35e6})
    cut_tiles_s: float = 15_000.0
    measure_tiles_s: float = 1_000.0  # every tile is measured for the membrane rule, whatever the encoder
    cell_tiles_s: float = 350.0  # 500 without the margin around a block, see docs/cells.md
    cpu_tiles_s: Mapping[str, float] = field(default_factory=lambda: CPU_TILES_S)
    gpu_tiles_s: Mapping[str, float] = field(default_factory=lambda: GPU_TILES_S)
    slide_s: float = 0.35  # open, tissue, stain fit, commit
    overview_px_s: float = 1_000e6  # a level decoded at an eighth, where there is no small one
    hash_bytes_s: float = 1.2e9  # the source once, and what is written once
    core_factor: float = 1.0


@dataclass(frozen=True)
class SlideLoad:
    """What one slide requires.

    px: to decode for its tiles.  flat_px: to decode for its overview.  cells: its cells are measured.
    """

    tiles: float
    px: float
    read_bytes: float
    written_bytes: float
    flat_px: float = 0.0
    codec: str = "jpeg"
    cells: bool = False


@dataclass(frozen=True)
class Cluster:
    """The hardware of a run.  link_bytes_s, disk_bytes_s: rates of the store, for all nodes together."""

    cores: float
    gpus: float = 0.0
    link_bytes_s: float = 1e9
    disk_bytes_s: float = 390e6


def slide_seconds(
    load: SlideLoad, encoders: tuple[str, ...], cluster: Cluster, costs: Costs | None = None
) -> dict[str, float]:
    """Seconds of a slide on each resource of a cluster: 'cores', 'GPUs', 'link', 'disk'."""
    costs = costs or Costs()
    cores = costs.slide_s + load.px / costs.decode[load.codec] + load.tiles / costs.cut_tiles_s
    cores += load.tiles / costs.measure_tiles_s + load.flat_px / costs.overview_px_s
    cores += load.tiles / costs.cell_tiles_s if load.cells else 0.0
    cores += (load.read_bytes + load.written_bytes) / costs.hash_bytes_s
    gpus = 0.0
    for name in encoders:
        if name == "stain":
            continue  # its features are measured for the membrane rule already
        if cluster.gpus > 0:
            gpus += load.tiles / costs.gpu_tiles_s.get(name, OTHER_ENCODER[1]) / cluster.gpus
        else:
            cores += load.tiles / costs.cpu_tiles_s.get(name, OTHER_ENCODER[0])
    return {
        "cores": cores * costs.core_factor / max(cluster.cores, 1e-9),
        "GPUs": gpus,
        "link": (load.read_bytes + load.written_bytes) / cluster.link_bytes_s,
        "disk": load.written_bytes / cluster.disk_bytes_s,
    }


def bottleneck(parts: Mapping[str, float]) -> str:
    """Name of the slowest resource."""
    return max(parts, key=lambda name: parts[name])


def fit_to_run_times(costs: Costs, predicted: float, measured: float) -> Costs:
    """The costs with the time of the cores scaled to that of past runs.  predicted, measured: core-seconds."""
    if min(predicted, measured) <= 0:
        return costs
    return replace(costs, core_factor=costs.core_factor * measured / predicted)


def typical_slide(tissue_mm2: float = 100.0, mpp: float = 0.25, target: float = 0.5, tile: int = 224) -> SlideLoad:
    """The load of a slide by its tissue: 1 mm² is (1000 / mpp)² px, JPEG of 0.25 bytes a px, 10 % more at the rim."""
    px = tissue_mm2 * (1000 / mpp) ** 2 * 1.1
    tiles = tissue_mm2 * 1e6 / (tile * target) ** 2
    return SlideLoad(tiles, px, px * 0.25 * 1.4, px * 0.25 * 1.1 + tiles * 1_500)
