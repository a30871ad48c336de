"""The stages of the ingest, as one list: what runs, in which order, what each takes, gives and writes.

A stage works on the whole slide, on the tiles of one of the slide's grids, which are decoded once for all stages that
share the grid, or on the results of the others. It names its own table. Ray is unknown here; torch is imported where a
stage is made, so that a worker without networks starts 2 s sooner and takes 200 MB less.

A new stage is a function, a row in STAGES and, for a table of its own, a row in `store.schemas.TABLES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.cells import cell_stage
from her2batch.pipeline.cells.scoring import AREA_TABLE, both_rules
from her2batch.pipeline.pieces.piece_results import PieceResult, piece_table
from her2batch.pipeline.predict import (
    N_PATCH_CLASSES,
    load_networks,
    patch_table,
    predict_slide,
    rule_table,
    thumbnail_tables,
)
from her2batch.pipeline.slide_state import (
    ASIDE,
    RESULTS,
    WHOLE_SLIDE,
    Overview,
    SlideState,
    Stage,
    StageContext,
    StainFit,
    Tables,
    TileColumns,
    TissueTiles,
    Work,
    always,
)
from her2batch.pipeline.tile_reader import read_overview
from her2batch.pipeline.whole_slide.find_tissue import make_find_tissue
from her2batch.settings import Plan
from her2batch.slides import pyramid
from her2batch.slides.slide import DISAGREE, Box, Slide, SlideInfo, resample
from her2batch.store import schemas
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import PATCH_INPUTS
from her2batch.vision.cells.density import coarse_scale
from her2batch.vision.cells.detection import CELL_MARGIN_UM, fit_cell_reference
from her2batch.vision.membrane import MEMBRANE_COLUMNS, TileBatch, feature_index
from her2batch.vision.patches import apply_clahe, usable_patches
from her2batch.vision.quality import Quality, assess_quality
from her2batch.vision.stain import Vector, fit_stain_vectors, guess_stain, white_point
from her2batch.vision.thumbnail import encode_jpeg
from her2batch.vision.tile_grid import MAX_UPSAMPLING, spread_evenly
from her2batch.vision.tissue import Tissue

if TYPE_CHECKING:
    from her2batch.models.encoders import Encoder

OVERVIEW_MPP = 8.0
"""µm/px at which tissue is found (methods.md §2)."""

SAMPLE_TILES = 32
"""Tiles that a slide's stain vectors are fitted on, spread evenly over its tissue."""

THUMBNAIL_EDGE = 2048
"""Long edge of the stored thumbnail, px."""

BLANK_RANGE = 2
"""A tile whose grey values span no more than this holds no image: glass has noise, tissue has structure."""


def check_mpp(info: SlideInfo, target: float) -> SlideInfo:
    """The slide's facts, if it was scanned finely enough for tiles at `target` µm/px. Raises SlideError too-coarse."""
    if info.mpp is not None and info.mpp > MAX_UPSAMPLING * target:
        what = f"scanned at {info.mpp:.3g} µm/px, the target is {target:.3g}"
        if DISAGREE in info.notes:
            remedy = "its file contradicts itself about the resolution: pass --mpp-force with the true µm/px"
            raise SlideError("too-coarse", info.path, what, remedy)
        raise SlideError("too-coarse", info.path, what)
    return info


# -- over the slide --------------------------------------------------------------------------------------------


def _make_overview(context: StageContext) -> Work:
    def work(slide: Slide) -> Overview:
        mpp = check_mpp(slide.info, context.plan.mpp).mpp
        assert mpp is not None
        overview, missing, filled = read_overview(slide, max(OVERVIEW_MPP, mpp))
        longest = max(slide.info.width, slide.info.height)
        fine = longest * mpp / THUMBNAIL_EDGE  # µm/px of a thumbnail of full size
        complete = missing is None and fine >= OVERVIEW_MPP
        thumbnail = (
            overview if complete else slide.overview(max(fine, mpp) if fine < OVERVIEW_MPP else max(OVERVIEW_MPP, mpp))
        )
        scale = THUMBNAIL_EDGE / max(thumbnail.shape[:2])
        if scale < 1:
            thumbnail = resample(thumbnail, round(thumbnail.shape[1] * scale), round(thumbnail.shape[0] * scale))
        return Overview(overview, max(OVERVIEW_MPP, mpp), encode_jpeg(thumbnail), missing, filled)

    return work


def _assess_quality(_: StageContext) -> Work:
    def work(overview: Overview, tissue_tiles: TissueTiles) -> Quality:
        return assess_quality(overview.rgb, tissue_tiles.tissue, overview.missing)

    return work


def _fit_stains(context: StageContext) -> Work:
    def work(slide: Slide, overview: Overview, tissue_tiles: TissueTiles) -> StainFit:
        white = white_point(overview.rgb, overview.background(tissue_tiles.tissue))
        tiles, own = tissue_tiles.grids["tiles"].tiles, tissue_tiles.patient_rows
        return fit_stains(slide, white, tiles[own] if len(own) else tiles, context.plan, cell_stage.is_needed(context))

    return work


def fit_stains(slide: Slide, white: Vector, tiles: NDArray[np.int32], plan: Plan, with_cells: bool = False) -> StainFit:
    """Fit the slide's stains, and the figures of its cells, to some of its tiles, (n, 3) x, y, size. white: R, G, B."""
    sampled = spread_evenly(tiles, SAMPLE_TILES)
    pixels = np.empty((len(sampled), plan.tile, plan.tile, 3), np.uint8)
    for k, (x, y, size) in enumerate(sampled.tolist()):
        pixels[k] = resample(slide.region(Box(x, y, size, size), plan.mpp), plan.tile, plan.tile)
    stains = fit_stain_vectors(pixels, white, plan.mpp)
    cells = fit_cell_reference(pixels, plan.mpp, stains) if with_cells else None
    return StainFit(stains, guess_stain(pixels, stains), cells)


def _write_pyramid(context: StageContext) -> Work:
    def work(slide: Slide, tissue_tiles: TissueTiles, pyramid_path: Path) -> None:
        stored = _stored_area(tissue_tiles.tissue, slide, tissue_tiles.grids["tiles"].tiles)
        pyramid.write_pyramid(slide, stored, pyramid_path, context.plan.jpeg_quality, context.plan.lossless)

    return work


def _stored_area(tissue: Tissue, slide: Slide, tiles: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tissue with every kept tile whole, so that the tiles can be cut from the pyramid again, pixel by pixel."""
    stored = tissue.mask.copy()
    fy, fx = stored.shape[0] / slide.info.height, stored.shape[1] / slide.info.width
    for x, y, size in tiles:
        top, bottom = int(y * fy), int(np.ceil((y + size) * fy))
        left, right = int(x * fx), int(np.ceil((x + size) * fx))
        stored[top:bottom, left:right] = True
    return stored


def _classify_thumbnail(context: StageContext) -> Work:
    assert context.bundle is not None
    networks, bundle_id = load_networks(context.bundle, context.device, "thumbnail"), context.bundle.id

    def work(slide: Slide, slide_id: str, overview: Overview, tissue_tiles: TissueTiles) -> Tables:
        tiles, info = tissue_tiles.grids["tiles"].tiles[tissue_tiles.patient_rows], slide.info
        return thumbnail_tables(slide_id, bundle_id, networks, overview.jpeg, tiles, info.width, info.height)

    return work


# -- over tiles ------------------------------------------------------------------------------------------------


def _measure(_: StageContext) -> Work:
    """Measurements of every tile; `TileBatch.features` are shared with the stain encoder."""

    def work(batch: TileBatch) -> Mapping[str, NDArray[Any]]:
        figures = batch.features
        return {
            "dab": figures[:, feature_index("dab")],
            "blur": figures[:, feature_index("blur")],
            "ink": figures[:, feature_index("ink")],
            "membrane": figures[:, [feature_index(name) for name in MEMBRANE_COLUMNS]],
            "blank": batch.grey_range <= BLANK_RANGE,
        }

    return work


def _measurement_tables(_: StageContext, state: SlideState) -> Tables:
    tiles, n, keys = _keys(state)
    measured = state.measurements
    dab, blur = (measured.in_tile_order(name, n).astype(np.float32) for name in ("dab", "blur"))
    membrane = measured.in_tile_order("membrane", n, len(MEMBRANE_COLUMNS)).astype(np.float32)
    corners = {name: tiles[:, k].astype(np.int32) for k, name in enumerate(("x", "y", "size"))}
    tissue, pieces = state.tissue_tiles.fractions.astype(np.float32), state.tissue_tiles.pieces.of_tiles
    shares = {name: membrane[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)}
    return {
        "tiles": pa.table(
            {**keys, **corners, "tissue": tissue, "dab": dab, "blur": blur, "piece": pieces},
            schemas.table_schema("tiles"),
        ),
        "membrane": pa.table({**keys, **shares}, schemas.table_schema("membrane")),
    }


def _keys(state: SlideState) -> tuple[NDArray[np.int32], int, dict[str, pa.Array]]:
    """Tiles of the slide, (n, 3) x, y, size; their number; the key columns of a table with one row a tile."""
    tiles = state.tissue_tiles.grids["tiles"].tiles
    n = len(tiles)
    ids, numbers = pa.array([state.slide_id] * n, pa.string()), pa.array(np.arange(n, dtype=np.int32))
    return tiles, n, {"slide_id": ids, "tile": numbers}


class EmbeddingWork:
    """Vectors of every tile by each encoder. An encoder is loaded when it is first needed, and only once."""

    def __init__(self, load: Callable[[str], Encoder], names: tuple[str, ...]) -> None:
        """load: returns the loaded encoder of a name; `lru_cache` makes works share it."""
        self._load, self._names = load, names

    def __call__(self, batch: TileBatch) -> Mapping[str, NDArray[Any]]:
        """Columns of the vectors, (n, D) each, by encoder."""
        return {name: self._load(name)(batch) for name in self._names}

    def only(self, names: tuple[str, ...]) -> EmbeddingWork:
        """The same encoders, of which only these are applied."""
        return EmbeddingWork(self._load, names)


def _embed(context: StageContext) -> Work:
    from her2batch.models.encoders import load_encoder

    device, weights, plan, batches = context.device, context.weights, context.plan, context.batches
    load = lru_cache(maxsize=None)(partial(load_encoder, device=device, weights=weights, plan=plan, batches=batches))
    for name in context.plan.encoders if context.used_encoders is None else context.used_encoders:
        load(name)
    return EmbeddingWork(load, context.plan.encoders)


def _embedding_tables(context: StageContext, state: SlideState) -> Tables:
    tables = {}
    _, n, keys = _keys(state)
    for name in context.plan.encoders:
        vectors = state.embeddings.in_tile_order(name, n, context.dims[name])
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        tables[f"embeddings/{encoder_folder(name)}"] = schemas.embeddings_table(state.slide_id, keys["tile"], flat)
    return tables


def _embeds_with_network(context: StageContext) -> bool:
    return set(context.plan.encoders) != {"stain"}


def _patch_stage(name: str) -> Stage:
    """The stage of the patches of one resolution."""

    def make(context: StageContext) -> Work:
        assert context.bundle is not None
        (network,) = load_networks(context.bundle, context.device, "patch", name, context.batches)

        def work(batch: TileBatch) -> Mapping[str, NDArray[Any]]:
            return {"p": network.classify(apply_clahe(batch.pixels)), "usable": usable_patches(batch.pixels)}

        return work

    def tables(context: StageContext, state: SlideState) -> Tables:
        assert context.bundle is not None
        grid, columns = state.tissue_tiles.grids[name].tiles, state.get(name)
        usable = columns.in_tile_order("usable", len(grid)).astype(
            bool
        )  # white and black ones: left out of training too
        p = columns.in_tile_order("p", len(grid), N_PATCH_CLASSES)[usable].astype(np.float32)
        patches = grid[usable].astype(np.int32)
        return {f"patches/{context.bundle.id}": patch_table(state.slide_id, name, patches, p)}

    def needed(context: StageContext) -> bool:
        return context.has_network("patch", name)

    return Stage(name, name, TILES, name, make, tables, needed=needed, gpu=always)


# -- over results ----------------------------------------------------------------------------------------------


def _list_pieces(_: StageContext) -> Work:
    def work(slide_id: str, tissue_tiles: TissueTiles, piece_results: list[PieceResult], overview: Overview) -> Tables:
        return {"pieces": piece_table(slide_id, tissue_tiles.pieces, piece_results, overview.mpp**2 / 1e6)}

    return work


def _apply_rules(_: StageContext) -> Work:
    """Make the work of the stage that scores a slide by area and, where cells were measured, by them."""

    def work(
        row: Mapping[str, Any], stain: str | None, measurements: TileColumns, tissue_tiles: TissueTiles, tables: Tables
    ) -> Tables:
        membrane = measurements.column("membrane", len(MEMBRANE_COLUMNS)).astype(np.float32)
        membrane = membrane[np.isin(measurements.tiles, tissue_tiles.patient_rows)]
        columns = {name: membrane[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)}
        by_area = rule_table(row, columns, presumed=stain is None)
        if cell_stage.CELLS not in tables:
            return {AREA_TABLE: by_area}
        return both_rules(row, by_area, tables.__getitem__)

    return work


def _predict(context: StageContext) -> Work:
    assert context.bundle is not None
    predictor = BundlePredictor(context.bundle)

    def work(row: Mapping[str, Any], tables: Tables) -> Tables:
        return predict_slide(predictor, row, tables.__getitem__)

    return work


def _has_thumbnail_network(context: StageContext) -> bool:
    return context.has_network("thumbnail")


def _has_bundle(context: StageContext) -> bool:
    return context.bundle is not None


TISSUE_INPUTS = ("slide", "slide_id", "overview", "regions", "control_regions")
"""What the stage that finds tissue takes."""

TILES = ("tissue_tiles", "stain_fit")
"""What every stage over a grid takes: its tiles, and the stains of a TileBatch."""

EMBED = Stage("embed", "tiles", TILES, "embeddings", _embed, _embedding_tables, gpu=_embeds_with_network)
"""The stage that is also run alone, where an encoder is added to finished slides."""

STAGES: tuple[Stage, ...] = (
    Stage("look", WHOLE_SLIDE, ("slide",), "overview", _make_overview),
    Stage("tissue", WHOLE_SLIDE, TISSUE_INPUTS, "tissue_tiles", make_find_tissue),
    Stage("quality", WHOLE_SLIDE, ("overview", "tissue_tiles"), "quality", _assess_quality),
    Stage("stains", WHOLE_SLIDE, ("slide", "overview", "tissue_tiles"), "stain_fit", _fit_stains),
    Stage("pyramid", ASIDE, ("slide", "tissue_tiles", "pyramid_path"), None, _write_pyramid),
    Stage("membrane", "tiles", TILES, "measurements", _measure, _measurement_tables, measures=True),
    Stage(
        "cells", "tiles", TILES, "cells", cell_stage.detect, cell_stage.tables,
        needed=cell_stage.is_needed, margin_um=CELL_MARGIN_UM, step=coarse_scale,
    ),
    EMBED,
    *(_patch_stage(name) for name in PATCH_INPUTS),
    Stage(
        "thumbnail", ASIDE, ("slide", "slide_id", "overview", "tissue_tiles"), "tables", _classify_thumbnail,
        needed=_has_thumbnail_network, gpu=always,
    ),
    Stage("pieces", RESULTS, ("slide_id", "tissue_tiles", "piece_results", "overview"), "tables", _list_pieces),
    Stage("rules", RESULTS, ("row", "stain", "measurements", "tissue_tiles", "tables"), "tables", _apply_rules),
    Stage("predict", RESULTS, ("row", "tables"), "tables", _predict, needed=_has_bundle),
)  # fmt: skip
"""All stages. The order is that of the plain loop; Ray must give the same bytes."""


def active_stages(context: StageContext) -> tuple[Stage, ...]:
    """The stages that an ingest with these settings runs."""
    return tuple(stage for stage in STAGES if stage.needed(context))
