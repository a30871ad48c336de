"""Stage: the tissue of a slide, its pieces, and the tiles on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.exchange.controls.control_file import ControlRegion
from her2batch.exchange.regions import SlideRegions
from her2batch.pipeline.patch_grid import plan_patches
from her2batch.pipeline.pieces.roles import ControlPlan, find_pieces
from her2batch.pipeline.results import check_missing
from her2batch.pipeline.slide_state import Overview, StageContext, TissueTiles, Work
from her2batch.slides.slide import Slide
from her2batch.tasks import PATCH_INPUTS
from her2batch.vision import tile_grid
from her2batch.vision.background import Mask
from her2batch.vision.regions import region_mask
from her2batch.vision.tile_grid import TileGrid
from her2batch.vision.tissue import IncompleteTissue, segment_incomplete, segment_tissue, tile_fractions


def make_find_tissue(context: StageContext) -> Work:
    """Return the work of the stage `tissue`: from the overview to the tissue, its pieces and the tiles."""

    def work(
        slide: Slide,
        slide_id: str,
        overview: Overview,
        regions: SlideRegions | None,
        control_regions: tuple[ControlRegion, ...],
    ) -> TissueTiles:
        tissue, lost, cut = _segment(overview)
        plan, info = context.plan, slide.info
        assert info.mpp is not None
        tiles = tile_grid.plan_tiles(info.width, info.height, info.mpp, plan.mpp, plan.tile)
        used, region_mm2 = _restrict_to_regions(tissue.mask | lost | cut, slide, regions, overview.mpp)
        fractions = tile_fractions(used, info.width, info.height, tiles)
        kept = fractions >= max(plan.min_tissue, 1e-6)
        missing = kept & (tile_fractions((lost | cut) & used, info.width, info.height, tiles) > 0)
        for part in (lost, cut):  # apart, because the extent of what was cut off at the edge is an estimate
            check_missing(info, used, part & used, int(missing.sum()), int(kept.sum()))
        kept &= ~missing
        tiles, fractions = tiles[kept], fractions[kept]
        found = ControlPlan(plan.controls, control_regions)
        facts = slide_id, info.width, info.height, info.mpp
        pieces = find_pieces(tissue.mask, overview.rgb, overview.background(tissue), facts, found, tiles)
        result = TissueTiles(
            tissue, {"tiles": TileGrid(plan.mpp, plan.tile, tiles)}, fractions, region_mm2, int(missing.sum()), pieces
        )
        own, patches = result.patient_rows, {}
        for name, mpp in PATCH_INPUTS.items():
            if context.has_network("patch", name):
                per_edge = context.patches_per_edge(name)
                patches[name] = plan_patches(info, plan, tiles[own], fractions[own], mpp, per_edge)
        return replace(result, grids={**result.grids, **patches})

    return work


def _restrict_to_regions(
    tissue: Mask, slide: Slide, regions: SlideRegions | None, mpp: float
) -> tuple[NDArray[np.bool_], float | None]:
    """The tissue that is used, as a mask, and its area in mm²; None where all tissue is.

    mpp: of the mask, µm/px.  Raises SlideError `bad-regions` when the regions hold no tissue, but the slide does.
    """
    if regions is None or regions.is_empty:
        return tissue, None
    used, size = tissue, (slide.info.width, slide.info.height)
    if regions.included is not None:
        used = used & region_mask(regions.included, used.shape, *size)
    if regions.excluded is not None:
        used = used & ~region_mask(regions.excluded, used.shape, *size)
    if tissue.any() and not used.any():
        what = "its regions hold no tissue: they may be of another slide, or in other units than px of its level 0"
        raise SlideError("bad-regions", slide.info.path, what)
    return used, float(used.sum()) * mpp**2 / 1e6


def _segment(overview: Overview) -> IncompleteTissue:
    """The tissue of an overview, and the px of tissue that have no image."""
    if overview.missing is None or overview.filled is None:
        complete = np.zeros(overview.rgb.shape[:2], bool)
        return IncompleteTissue(segment_tissue(overview.rgb, overview.mpp), complete, complete)
    return segment_incomplete(overview.rgb, overview.mpp, overview.missing, overview.filled)
