"""What a slide costs, and what then binds: cores, GPUs, the store's link or its disk. Arithmetic, for sizing.

Each resource does its share while the others do theirs, so the slowest decides (see docs/sizing.md). The figures are
those of docs/performance.md, from one machine; where a cohort has run times of its own, `fitted` draws the cores' share
to them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CPU_TILES_S = {"stain": 1000.0, "uni": 1.3, "uni2-h": 0.5, "virchow2": 0.5, "h-optimus-0": 0.3}
"""Tiles a CPU core embeds in a second. stain: benchmarks/encoder.py; uni: float32, one core, measured; the others by
their size against it."""

GPU_TILES_S = {"uni": 3500.0, "uni2-h": 1300.0, "virchow2": 1300.0, "h-optimus-0": 750.0}
"""Tiles an H200 embeds in a second. Estimates, unmeasured: 55 % of its bf16 peak for ViT-L, the others by size."""

OTHER_NET = (30.0, 5000.0)
"""Tiles a second of an encoder that isn't listed (a ResNet-50), on a core and on a GPU."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Costs:
    """decode: px a core decodes in a second, by codec.  others: factor on the cores' time (1: as measured here)."""

    decode: Mapping[str, float] = field(default_factory=lambda: {"jpeg": 620e6, "jpeg2000": 38e6, "other": 35e6})
    cut_tiles_s: float = 15_000.0
    measure_tiles_s: float = 1_000.0  # every tile is measured for the rule, whatever the encoder
    cpu_tiles_s: Mapping[str, float] = field(default_factory=lambda: CPU_TILES_S)
    gpu_tiles_s: Mapping[str, float] = field(default_factory=lambda: GPU_TILES_S)
    slide_s: float = 0.35  # open, tissue, stain fit, commit
    overview_px_s: float = 1_000e6  # a level decoded at an eighth, where there is no small one
    hash_bytes_s: float = 1.2e9  # once the source, once what is written
    others: float = 1.0


@dataclass(frozen=True)
class Load:
    """One slide. px: decoded for its tiles.  flat_px: of a level that must be decoded for the overview too."""

    tiles: float
    px: float
    read_bytes: float
    written_bytes: float
    flat_px: float = 0.0
    codec: str = "jpeg"


@dataclass(frozen=True)
class Cluster:
    """link_bytes_s, disk_bytes_s: what the store gives and takes, all nodes together."""

    cores: float
    gpus: float = 0.0
    link_bytes_s: float = 1e9
    disk_bytes_s: float = 390e6


def seconds(load: Load, encoders: tuple[str, ...], cluster: Cluster, costs: Costs | None = None) -> dict[str, float]:
    """Seconds of a slide on each resource of a cluster: 'cores', 'GPUs', 'link', 'disk'. The largest is the bound."""
    costs = costs or Costs()
    cores = costs.slide_s + load.px / costs.decode[load.codec] + load.tiles / costs.cut_tiles_s
    cores += load.tiles / costs.measure_tiles_s + load.flat_px / costs.overview_px_s
    cores += (load.read_bytes + load.written_bytes) / costs.hash_bytes_s
    gpus = 0.0
    for name in encoders:
        if name == "stain":
            continue  # its figures are measured for the rule already
        if cluster.gpus > 0:
            gpus += load.tiles / costs.gpu_tiles_s.get(name, OTHER_NET[1]) / cluster.gpus
        else:
            cores += load.tiles / costs.cpu_tiles_s.get(name, OTHER_NET[0])
    return {
        "cores": cores * costs.others / max(cluster.cores, 1e-9),
        "GPUs": gpus,
        "link": (load.read_bytes + load.written_bytes) / cluster.link_bytes_s,
        "disk": load.written_bytes / cluster.disk_bytes_s,
    }


def bound(parts: Mapping[str, float]) -> str:
    """The resource that a run waits for."""
    return max(parts, key=lambda name: parts[name])


def fitted(costs: Costs, predicted: float, measured: float) -> Costs:
    """The same costs with the cores' time drawn to what runs took: core-seconds predicted and measured, over slides."""
    return replace(costs, others=costs.others * measured / predicted) if min(predicted, measured) > 0 else costs


def typical(tissue_mm2: float = 100.0, mpp: float = 0.25, target: float = 0.5, tile: int = 224) -> Load:
    """A slide by its tissue: a square mm is (1000 / mpp)² px; JPEG of 0.25 bytes a px, chunks on the rim 10 % more."""
    px = tissue_mm2 * (1000 / mpp) ** 2 * 1.1
    tiles = tissue_mm2 * 1e6 / (tile * target) ** 2
    return Load(tiles, px, px * 0.25 * 1.4, px * 0.25 * 1.1 + tiles * 1_500)
