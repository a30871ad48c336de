"""What an ingest will need, from sizes alone: arithmetic for --dry-run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from her2batch.errors import Her2BatchError
from her2batch.flow.census import Census, Todo
from her2batch.flow.session import cores
from her2batch.flow.stages import check_mpp
from her2batch.settings import Plan, Resources
from her2batch.slides.readers import open_slide
from her2batch.tables.store import Row

TISSUE_SHARE = 0.35
"""Typical share of a glass slide under tissue; the true one is known only after reading it."""

DECODE_PX_S = 250e6
"""JPEG px a core decodes in a second (field measurements: 270–390 million bare)."""

RATES = {"stain": 400.0, "uni": 1.3, "uni2-h": 0.5, "virchow2": 0.5, "h-optimus-0": 0.3}
"""Tiles a CPU core embeds in a second; a GPU does hundreds to thousands."""

START_S = 6.0
"""Ray's start."""


def estimate(census: Census, plan: Plan, resources: Resources, out: Path) -> tuple[list[Row], dict[str, Any]]:
    """A row for every slide to do, and the totals: about how many tiles, bytes on disk and seconds."""
    workers = cores() if resources.workers is None else max(1, resources.workers)
    rows = [_row(todo, plan) for todo in census.todo]
    seconds = sum(row["seconds"] for row in rows) / workers + (START_S if resources.workers != 0 and rows else 0)
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    total = {
        "todo": len(census.todo),
        "current": len(census.current),
        "duplicate": census.duplicates,
        "ignored": census.ignored,
        "bytes": sum(row["bytes"] for row in rows),
        "seconds": seconds,
        "free_bytes": shutil.disk_usage(there).free,
        "workers": workers,
    }
    return rows, total


def _row(todo: Todo, plan: Plan) -> Row:
    common = {"slide_id": todo.slide_id, "file": str(todo.source.path)}
    try:
        with open_slide(todo.source.path, plan.reader) as slide:
            info = check_mpp(slide.info.with_mpp(plan.mpp_override), plan.mpp)
    except Her2BatchError as error:
        what = f"will fail: {getattr(error, 'code', error.what)}"
        return {**common, "what": what, "tiles": 0, "bytes": 0, "seconds": 0.0}
    assert info.mpp is not None
    area = info.width * info.height * TISSUE_SHARE
    tiles = round(area * (info.mpp / plan.mpp / plan.tile) ** 2)
    seconds = area / DECODE_PX_S + sum(tiles / RATES.get(name, 30.0) for name in plan.encoders)
    size = round(todo.source.bytes * 0.6 + tiles * 1200)
    return {
        **common,
        "what": f"ingest ({info.format}, {info.mpp:.3g} µm/px)",
        "tiles": tiles,
        "bytes": size,
        "seconds": seconds,
    }
