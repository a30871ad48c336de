"""The stages of the ingest: one list. What runs, in which order, and what each takes and gives, is said here only.

A stage is a function from named values to named values, made once in each worker. It works on a whole slide, or on the
tiles of one of the slide's grids, which are decoded once for all stages that share the grid. Neither knows Ray.

torch is imported where a stage is made, so that a worker without nets starts 2 s sooner and 200 MB lighter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.models.membrane_rule import apply_rule as judge_membrane
from her2batch.models.membrane_rule import rule_predictions
from her2batch.pipeline.patch_grid import patch_grid
from her2batch.settings import Plan
from her2batch.slides import pyramid
from her2batch.slides.slide import Box, Slide, SlideInfo, resample
from her2batch.tasks import PATCH_INPUTS, RESOLUTIONS
from her2batch.vision import tile_grid
from her2batch.vision.membrane import MEMBRANE, TileBatch, feature_index
from her2batch.vision.patches import clahe, usable_patches
from her2batch.vision.quality import assess_quality as judge_quality
from her2batch.vision.stain import fit_stain_vectors, guess_stain, white_point
from her2batch.vision.thumbnail import crop_to_tissue, decode_jpeg, encode_jpeg
from her2batch.vision.tile_grid import MAX_UPSAMPLING, TileGrid
from her2batch.vision.tissue import Tissue, segment_tissue, tile_fractions

if TYPE_CHECKING:
    from her2batch.models.bundle import Bundle

OVERVIEW_MPP = 8.0
"""µm/px at which tissue is found (methods.md §2)."""

SAMPLE = 32
"""Tiles that a slide's stain vectors are fitted on, spread evenly over its tissue."""

THUMBNAIL_EDGE = 2048

State = dict[str, Any]
Work = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class StageContext:
    """What a worker needs to make its stages."""

    plan: Plan
    bundle: Bundle | None = None
    weights: Path | None = None
    device: str = "cpu"
    dims: Mapping[str, int] = field(default_factory=dict)  # length of each encoder's embedding


@dataclass(frozen=True)
class Stage:
    """One step of the way.

    over: 'slide'; 'aside', a whole slide too, but only the commit waits for it; or the grid whose tiles it gets.
    takes, gives: names in the state.  gpu: uses one where there is one.  make: called once in each worker, returns the
    work: keyword arguments named as in `takes` (over a grid: one TileBatch), and a mapping with the names of `gives`
    (over a grid: arrays of one row a tile).
    """

    name: str
    over: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    make: Callable[[StageContext], Work]
    gpu: bool = False


def check_stages(stages: Iterable[Stage], given: Iterable[str]) -> None:
    """Refuse a chain with a gap. Raises ValueError."""
    have = set(given)
    for stage in stages:
        if missing := set(stage.takes) - have:
            raise ValueError(f"stage {stage.name} needs {sorted(missing)}; nothing before it gives that")
        have |= set(stage.gives)


def check_mpp(info: SlideInfo, target: float) -> SlideInfo:
    """The slide's facts, if it was scanned finely enough for tiles at `target` µm/px. Raises SlideError too-coarse."""
    if info.mpp is not None and info.mpp > MAX_UPSAMPLING * target:
        raise SlideError("too-coarse", info.path, f"scanned at {info.mpp:.3g} µm/px, the target is {target:.3g}")
    return info


# -- over the slide --------------------------------------------------------------------------------------------


def _look(context: StageContext) -> Work:
    """The overview, and the picture that is kept of it."""

    def work(slide: Slide) -> State:
        mpp = check_mpp(slide.info, context.plan.mpp).mpp
        assert mpp is not None
        overview = slide.overview(max(OVERVIEW_MPP, mpp))
        longest = max(slide.info.width, slide.info.height)
        fine = longest * mpp / THUMBNAIL_EDGE  # µm/px of a picture of full size
        picture = overview if fine >= OVERVIEW_MPP else slide.overview(max(fine, mpp))
        scale = THUMBNAIL_EDGE / max(picture.shape[:2])
        if scale < 1:
            picture = resample(picture, round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        return {"overview": overview, "overview_mpp": max(OVERVIEW_MPP, mpp), "picture": encode_jpeg(picture)}

    return work


def _find_tissue(context: StageContext) -> Work:
    def work(slide: Slide, overview: NDArray[np.uint8], overview_mpp: float) -> State:
        tissue = segment_tissue(overview, overview_mpp)
        plan, info = context.plan, slide.info
        assert info.mpp is not None
        tiles = tile_grid.plan_tiles(info.width, info.height, info.mpp, plan.mpp, plan.tile)
        share = tile_fractions(tissue.mask, info.width, info.height, tiles)
        kept = share >= max(plan.min_tissue, 1e-6)
        tiles, fractions = tiles[kept], share[kept]
        grids = {"tiles": TileGrid(plan.mpp, plan.tile, tiles)}
        for name in _patch_inputs(context):
            grids[name] = patch_grid(info, plan, tiles, fractions, PATCH_INPUTS[name])
        return {"tissue": tissue, "grids": grids, "fractions": fractions}

    return work


def _patch_inputs(context: StageContext) -> list[str]:
    """Resolutions for which the bundle has a net."""
    models = context.bundle.info.models if context.bundle is not None else ()
    wanted = {entry.input for entry in models if entry.kind == "patch"}
    return [name for name in PATCH_INPUTS if name in wanted]


def _judge_quality(_: StageContext) -> Work:
    def work(overview: NDArray[np.uint8], tissue: Tissue) -> State:
        return {"quality": judge_quality(overview, tissue)}

    return work


def _fit_stains(context: StageContext) -> Work:
    def work(slide: Slide, overview: NDArray[np.uint8], tissue: Tissue, grids: Mapping[str, TileGrid]) -> State:
        white = white_point(overview, ~tissue.mask)
        tiles = grids["tiles"].tiles
        chosen = tiles[np.unique(np.linspace(0, len(tiles) - 1, SAMPLE).round().astype(int))] if len(tiles) else tiles
        edge, mpp = context.plan.tile, context.plan.mpp
        sample = np.empty((len(chosen), edge, edge, 3), np.uint8)
        for k, (x, y, size) in enumerate(chosen.tolist()):
            sample[k] = resample(slide.region(Box(x, y, size, size), mpp), edge, edge)
        stains = fit_stain_vectors(sample, white)
        return {"stains": stains, "marker": guess_stain(sample, stains)}

    return work


def _write_pyramid(context: StageContext) -> Work:
    def work(slide: Slide, tissue: Tissue, grids: Mapping[str, TileGrid], draft_pyramid: Path) -> State:
        wanted = _painted(tissue.mask, slide, grids["tiles"].tiles)
        pyramid.write(slide, wanted, draft_pyramid, context.plan.jpeg_quality, context.plan.lossless)
        return {}

    return work


def _painted(mask: NDArray[np.bool_], slide: Slide, tiles: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tissue with every kept tile whole, so that the tiles can be cut from the pyramid again, pixel by pixel."""
    painted = mask.copy()
    fy, fx = mask.shape[0] / slide.info.height, mask.shape[1] / slide.info.width
    for x, y, size in tiles:
        top, bottom = int(y * fy), int(np.ceil((y + size) * fy))
        left, right = int(x * fx), int(np.ceil((x + size) * fx))
        painted[top:bottom, left:right] = True
    return painted


def _classify_thumbnail(context: StageContext) -> Work:
    from her2batch.models.bundle import load

    entries = [one for one in context.bundle.info.models if one.kind == "thumbnail"] if context.bundle else []
    nets = [load(context.bundle, entry, context.device) for entry in entries] if context.bundle else []

    def work(slide: Slide, picture: bytes, grids: Mapping[str, TileGrid]) -> State:
        rows = []
        for entry, net in zip(entries, nets, strict=True):
            shown = decode_jpeg(picture)
            pixels, _ = crop_to_tissue(shown, grids["tiles"].tiles, slide.info.width, slide.info.height, entry.edge)
            p = net(pixels[None])[0]
            rows.append({"task": entry.task, "p": p.tolist(), "method": entry.method, "input": entry.input})
        return {"thumbnails": rows}

    return work


def _apply_rule(_: StageContext) -> Work:
    def work(marker: str, tiles_membrane: NDArray[np.float32], stain: str | None) -> State:
        if not len(tiles_membrane) or (stain or marker) not in ("her2", "ihc"):
            return {"predictions": []}
        table = {name: tiles_membrane[:, k] for k, name in enumerate(MEMBRANE)}
        verdict = judge_membrane(table)
        return {"predictions": rule_predictions(verdict, presumed=stain is None)}

    return work


# -- over tiles ------------------------------------------------------------------------------------------------


def _measure(_: StageContext) -> Work:
    """What every tile is measured for; the figures are shared with the stain encoder."""

    def work(batch: TileBatch) -> dict[str, NDArray[Any]]:
        figures = batch.figures
        return {
            "tiles_dab": figures[:, feature_index("dab")],
            "tiles_blur": figures[:, feature_index("blur")],
            "tiles_membrane": figures[:, [feature_index(name) for name in MEMBRANE]],
        }

    return work


def _embed(context: StageContext) -> Work:
    from her2batch.models.encoders import load_encoder

    encoders = {name: load_encoder(name, context.device, context.weights) for name in context.plan.encoders}

    def work(batch: TileBatch) -> dict[str, NDArray[Any]]:
        return {f"embeddings/{name}": encoder(batch) for name, encoder in encoders.items()}

    return work


def _classify_patches(name: str) -> Callable[[StageContext], Work]:
    def make(context: StageContext) -> Work:
        from her2batch.models.bundle import load

        models = context.bundle.info.models if context.bundle else []
        entry = next((one for one in models if one.kind == "patch" and one.input == name), None)
        net = load(context.bundle, entry, context.device) if context.bundle and entry else None

        def work(batch: TileBatch) -> dict[str, NDArray[Any]]:
            if net is None:
                raise ValueError(f"the bundle holds no net for {name}")
            return {name: net(clahe(batch.pixels)), f"{name}_usable": usable_patches(batch.pixels)}

        return work

    return make


STAGES: tuple[Stage, ...] = (
    Stage("look", "slide", ("slide",), ("overview", "overview_mpp", "picture"), _look),
    Stage("tissue", "slide", ("slide", "overview", "overview_mpp"), ("tissue", "grids", "fractions"), _find_tissue),
    Stage("quality", "slide", ("overview", "tissue"), ("quality",), _judge_quality),
    Stage("stains", "slide", ("slide", "overview", "tissue", "grids"), ("stains", "marker"), _fit_stains),
    Stage("pyramid", "aside", ("slide", "tissue", "grids", "draft_pyramid"), (), _write_pyramid),
    Stage("membrane", "tiles", ("stains", "grids"), ("tiles_dab", "tiles_blur", "tiles_membrane"), _measure),
    Stage("embed", "tiles", ("stains", "grids"), ("embeddings",), _embed, gpu=True),
    *(
        Stage(name, name, ("stains", "grids"), (name,), _classify_patches(name), gpu=True)
        for name in (f"patches-{one}" for one in RESOLUTIONS)
    ),
    Stage("thumbnail", "aside", ("slide", "picture", "grids"), ("thumbnails",), _classify_thumbnail, gpu=True),
    Stage("rule", "slide", ("marker", "tiles_membrane", "stain"), ("predictions",), _apply_rule),
)
"""The way of a slide. The order is the order of the plain loop; Ray must give the same bytes."""


def active_stages(context_bundle: Bundle | None) -> tuple[Stage, ...]:
    """The stages that run: those of a net only where the bundle has one."""
    inputs = {one.input for one in context_bundle.info.models} if context_bundle else set()
    kinds = {one.kind for one in context_bundle.info.models} if context_bundle else set()
    return tuple(
        stage
        for stage in STAGES
        if (not stage.name.startswith("patches-") or stage.name in inputs)
        and (stage.name != "thumbnail" or "thumbnail" in kinds)
    )


GIVEN = ("slide", "draft_pyramid", "stain")
"""What the state holds before the first stage."""
