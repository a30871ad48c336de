"""Tissue patches of a slide at the paper's three resolutions, and their pixels from its pyramid.

They follow from the tiles table alone, so that ingest, training and scoring use the same patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from her2batch.pipeline.tile_reader import Batch, plan_reads, read_tiles
from her2batch.settings import Plan
from her2batch.slides.slide import Slide, SlideInfo
from her2batch.tasks import PATCH_PX
from her2batch.vision import tile_grid
from her2batch.vision.tile_grid import MAX_UPSAMPLING, TileGrid
from her2batch.vision.tissue import tile_fractions


def plan_patches(
    info: SlideInfo,
    plan: Plan,
    tiles: NDArray[np.int32],
    tissue: NDArray[np.float32],
    mpp: float,
    per_edge: int = 1,
) -> TileGrid:
    """Patches of PATCH_PX px at `mpp` µm/px with at least plan.min_tissue of tissue; none if the slide is too coarse.

    per_edge: patches that begin within the edge of one; more than 1 overlap.  tiles: (n, 3) x, y, size in level-0 px.
    tissue: (n,) share of tissue of each tile.  Both as in the tiles table.
    """
    assert info.mpp is not None
    if info.mpp > MAX_UPSAMPLING * mpp or not len(tiles):
        return TileGrid(mpp, PATCH_PX, np.empty((0, 3), np.int32))
    step = plan.tile * plan.mpp / info.mpp  # of the tiles' grid, level-0 px
    cells = np.round(tiles[:, :2] / step).astype(np.int64)
    shape = np.ceil(np.array([info.height, info.width]) / step).astype(np.int64) + 1
    shares = np.zeros(shape, np.float64)
    shares[cells[:, 1], cells[:, 0]] = tissue
    patches = tile_grid.plan_overlapping_tiles(info.width, info.height, info.mpp, mpp, PATCH_PX, per_edge)
    found = tile_fractions(shares, shape[1] * step, shape[0] * step, patches)
    return TileGrid(mpp, PATCH_PX, patches[found >= max(plan.min_tissue, 1e-6)])


def read_patches(slide: Slide, grid: TileGrid) -> Iterator[Batch]:
    """Read the patches of a grid batch by batch: (n, 224, 224, 3) uint8. Raises SlideError."""
    yield from read_tiles(slide, plan_reads(slide, grid), 0, "auto")
