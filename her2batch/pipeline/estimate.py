"""Estimates what an ingest will need, from file sizes and metadata: --dry-run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from her2batch.errors import Her2BatchError
from her2batch.files.locations import free_bytes
from her2batch.files.parquet import read_parquet
from her2batch.models.encoders import embedding_dim
from her2batch.pipeline.cost_model import (
    Cluster,
    Costs,
    SlideLoad,
    available_cores,
    bottleneck,
    fit_to_run_times,
    slide_seconds,
)
from her2batch.pipeline.inventory import Inventory, SlideJob
from her2batch.pipeline.stages import OVERVIEW_MPP, check_mpp
from her2batch.settings import Plan, Resources
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide, SlideInfo
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer

TISSUE_SHARE = 0.35
"""Typical share of a glass slide that is tissue, used where the file does not show it."""

FULL_TILE = 0.4
"""Compressed bytes of a tile, as a share of the 99th percentile, from which it has tissue; background is smaller.
On 19 of 20 slides (tissue cores, synthetic, H&E) the share of such tiles was within 0.1 of the share that is kept."""

FEW_TILES = 64
"""Least tiles of a level whose sizes are used."""

MIN_FINISHED = 5
"""Least finished slides for which a cohort's own run times are used."""

START_S = 6.0
"""Seconds that Ray takes to start and stop."""

BYTES_PER_VALUE = 2
"""Of an embedding, float16."""

CELL_BYTES = 900
"""Of the table of cells, per tile of 224 px at 0.5 µm/px: 70 cells of 12 to 13 bytes."""

CELL_TILE_UM = 112.0
"""Edge of that tile."""

NO_LOAD = SlideLoad(0, 0, 0, 0)


def estimate_ingest(
    inventory: Inventory, plan: Plan, resources: Resources, cohort: Cohort
) -> tuple[list[Row], dict[str, Any]]:
    """A row for every slide to process, and the totals: tiles, bytes on disk, seconds, and the slowest resource."""
    workers = available_cores() if resources.workers is None else max(1, resources.workers)
    cluster = Cluster(workers, resources.gpus or 0.0)
    costs = _costs_of(cohort, plan)
    new = [job for job in inventory.jobs if not job.encoders]
    finished = cohort.rows() if len(new) < len(inventory.jobs) else {}
    rows = [_row(job, inventory.pseudonymizer, plan, cluster, costs) for job in new]
    rows += [_added_row(job, finished[job.slide_id], plan, cluster, costs) for job in inventory.jobs if job.encoders]
    parts = {name: sum(row["parts"].get(name, 0.0) for row in rows) for name in slide_seconds(NO_LOAD, (), cluster)}
    start = START_S if resources.workers != 0 and rows else 0.0
    total = {
        "todo": len(inventory.jobs),
        "current": len(inventory.current),
        "duplicate": inventory.duplicates,
        "ignored": inventory.ignored,
        "bytes": sum(row["bytes"] for row in rows),
        "seconds": max(parts.values()) + start,
        "bound": bottleneck(parts),
        "seconds_with_a_gpu": _with_a_gpu(rows, plan, cluster, costs) + start,
        "free_bytes": free_bytes(cohort.root),
        "workers": workers,
    }
    return [{key: value for key, value in row.items() if key not in ("parts", "load")} for row in rows], total


def _row(job: SlideJob, pseudonymizer: Pseudonymizer, plan: Plan, cluster: Cluster, costs: Costs) -> Row:
    common = {"slide_id": job.slide_id, "file": pseudonymizer.display_name(job.source.path, job.slide_id)}
    try:
        with open_slide(job.source.path, plan.reader, job.source.members) as slide:
            slide.info = check_mpp(slide.info.with_mpp(plan.mpp_override, plan.mpp_force), plan.mpp)
            load = slide_load(slide, job.source.bytes, plan)
            info = slide.info
    except Her2BatchError as error:
        what = f"will fail: {getattr(error, 'code', error.message)}"
        return {**common, "what": what, "tiles": 0, "bytes": 0, "seconds": 0.0, "parts": {}, "load": NO_LOAD}
    parts = slide_seconds(load, plan.encoders, cluster, costs)
    return {
        **common,
        "what": f"ingest ({info.format}, {info.mpp:.3g} µm/px)",
        "tiles": round(load.tiles),
        "bytes": round(load.written_bytes),
        "seconds": max(parts.values()) * (cluster.cores if bottleneck(parts) == "cores" else 1.0),
        "parts": parts,
        "load": load,
    }


def _added_row(job: SlideJob, row: Row, plan: Plan, cluster: Cluster, costs: Costs) -> Row:
    """A finished slide to which encoders are added, from its pyramid."""
    written = row["n_tiles"] * sum(embedding_dim(name) for name in job.encoders) * BYTES_PER_VALUE
    load = replace(_load_of_row(row, plan), written_bytes=written, flat_px=0.0, cells=False)
    parts = slide_seconds(load, job.encoders, cluster, costs)
    return {
        "slide_id": job.slide_id,
        "file": job.source.path.name,
        "what": f"add {', '.join(job.encoders)} from its pyramid",
        "tiles": row["n_tiles"],
        "bytes": written,
        "seconds": max(parts.values()) * (cluster.cores if bottleneck(parts) == "cores" else 1.0),
        "parts": parts,
        "load": load,
    }


def slide_load(slide: Slide, size: int, plan: Plan) -> SlideLoad:
    """The load of a slide, from the sizes of its compressed tiles.  size: bytes of its files."""
    info = slide.info
    assert info.mpp is not None
    whole = info.width * info.height * (info.mpp / plan.mpp / plan.tile) ** 2
    share = _tissue_share(slide)
    level, _ = slide.tile_source(plan.mpp / info.mpp)
    px = info.levels[level].width * info.levels[level].height * share * 1.1  # chunks at the rim
    codec = slide.table(0).compression if isinstance(slide, TiledTiffSlide) else "other"
    written = size * share * 1.2 + whole * share * 1_500
    known = codec if codec in Costs().decode else "other"
    cells = plan.cells == "all"
    if cells:
        written += whole * share * CELL_BYTES * (plan.mpp * plan.tile / CELL_TILE_UM) ** 2
    return SlideLoad(whole * share, px, size, written, _flat_px(info), known, cells)


def _tissue_share(slide: Slide) -> float:
    """Approximate share of a slide that is tissue, without decoding it."""
    if not isinstance(slide, TiledTiffSlide) or len(slide.table(0).byte_counts) < FEW_TILES:
        return TISSUE_SHARE
    counts = slide.table(0).byte_counts
    return float((counts > FULL_TILE * np.percentile(counts, 99)).mean())


def _flat_px(info: SlideInfo) -> float:
    """Px that must be decoded for the overview."""
    assert info.mpp is not None
    fitting = [k for k, factor in enumerate(info.level_downsamples) if factor <= OVERVIEW_MPP / info.mpp]
    smallest = info.levels[fitting[-1] if fitting else 0]
    return float(smallest.width * smallest.height)


def _costs_of(cohort: Cohort, plan: Plan) -> Costs:
    """The costs as measured for the project, scaled to this cohort's own run times where it has enough of them."""
    costs = Costs()
    run_seconds = _run_times(cohort)
    done = [row for row in cohort.rows().values() if row["status"] == "done" and row["slide_id"] in run_seconds]
    if len(done) < MIN_FINISHED:
        return costs
    predicted = sum(slide_seconds(_load_of_row(row, plan), plan.encoders, Cluster(1), costs)["cores"] for row in done)
    return fit_to_run_times(costs, predicted, sum(run_seconds[row["slide_id"]] for row in done))


def _run_times(cohort: Cohort) -> dict[str, float]:
    """Seconds of work of each slide that runs of this cohort have finished; of several runs, the last."""
    run_seconds: dict[str, float] = {}
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        table = read_parquet(path).select(["slide_id", "status", "seconds"])
        run_seconds |= {row["slide_id"]: row["seconds"] for row in table.to_pylist() if row["status"] == "done"}
    return run_seconds


def _load_of_row(row: Row, plan: Plan) -> SlideLoad:
    """The load of a finished slide, from its row."""
    factors = row["level_downsamples"]
    finest = max((factor for factor in factors if factor <= plan.mpp / row["mpp"] / 2 * 1.01), default=1.0)
    px = row["n_tiles"] * (plan.mpp * plan.tile / row["mpp"] / finest) ** 2 * 1.1
    small = max((factor for factor in factors if factor <= OVERVIEW_MPP / row["mpp"]), default=1.0)
    flat = row["width"] * row["height"] / small**2
    written = sum(file["bytes"] for file in row["files"])
    codec = "jpeg" if row["reader"] == "tiff" else "other"
    return SlideLoad(row["n_tiles"], px, row["bytes"], written, flat, codec, plan.cells == "all")


def _with_a_gpu(rows: list[Row], plan: Plan, cluster: Cluster, costs: Costs) -> float:
    """Seconds of the same slides with one GPU at least."""
    other = Cluster(cluster.cores, max(1.0, cluster.gpus))
    parts = [slide_seconds(row["load"], plan.encoders, other, costs) for row in rows if row["parts"]]
    return max((sum(part[name] for part in parts) for name in parts[0]), default=0.0) if parts else 0.0
