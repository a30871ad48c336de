"""Scores a slide of a cohort again as other scanners and stainings would show it, from its pyramid and its thumbnail.

A shift changes the pixels of a sample of the slide's tiles and of its thumbnail. White point, stain vectors and
membranes are then measured as an ingest does, so that a shift which the ingest corrects has no effect. The score of the
unchanged sample is the reference: that of the whole slide differs from it by the sampling. Where the plan measures
cells, those of each tile are found and scored too; a tile is a block of its own, so cells at its border are cut, alike
under every shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from her2batch.models.guideline.cell_rule import score_cells
from her2batch.models.membrane_rule import apply_rule
from her2batch.pipeline.stages import OVERVIEW_MPP, SAMPLE_TILES
from her2batch.settings import Plan
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box, Slide, resample
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.patient_tiles import read_patient_tiles
from her2batch.vision.background import fill_missing, filled_tiles
from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD
from her2batch.vision.cells.detection import detect_cells, fit_cell_reference
from her2batch.vision.membrane import MEMBRANE_COLUMNS, TileBatch, feature_index
from her2batch.vision.shifts.scanner_shifts import UNCHANGED, ScannerShift, shift_image
from her2batch.vision.stain import Stains, fit_stain_vectors, white_point
from her2batch.vision.thumbnail import decode_jpeg
from her2batch.vision.tile_grid import spread_evenly
from her2batch.vision.tissue import segment_tissue

DEFAULT_TILES: Final = 96
"""Tiles of a slide that are measured; all where a slide has fewer."""

TilePixels = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pixels of the measured tiles, and of those to which stains are fitted: (n, t, t, 3) each."""


@dataclass(frozen=True)
class ShiftResult:
    """The result of a slide under one shift.

    predicted, score: by the membrane rule.  cells, cells_score: by the tumour cells; None without any, or without cells
    in the plan.
    """

    shift: str
    predicted: str
    score: float
    cells: str | None = None
    cells_score: float | None = None


@dataclass(frozen=True)
class StressedSlide:
    """A slide under all shifts. tiles: number of measured tiles.  n_tiles: of the slide.  unchanged: the reference."""

    slide_id: str
    tiles: int
    n_tiles: int
    unchanged: ShiftResult
    shifted: tuple[ShiftResult, ...]

    @property
    def flips(self) -> tuple[ShiftResult, ...]:
        """The shifts that change the class."""
        return tuple(result for result in self.shifted if result.predicted != self.unchanged.predicted)

    @property
    def cell_flips(self) -> tuple[ShiftResult, ...]:
        """The shifts that change the class by the cells."""
        return tuple(result for result in self.shifted if result.cells != self.unchanged.cells)


@dataclass(frozen=True)
class _SlideSample:
    """The background of a slide and the places of its tiles, (n, 3) x, y, size, level-0 px.

    tiles: that are measured.  fit_tiles: to which stains are fitted, spread evenly over the slide as in an ingest.
    """

    overview: NDArray[np.uint8]
    overview_mpp: float
    background: NDArray[np.bool_]
    tiles: NDArray[np.int32]
    fit_tiles: NDArray[np.int32]
    n_tiles: int


def rescore_slide(
    cohort: Cohort, plan: Plan, row: Row, shifts: tuple[ScannerShift, ...], n_tiles: int = DEFAULT_TILES, seed: int = 0
) -> StressedSlide | None:
    """Score a slide under each shift; None for a slide without tiles that count.

    row: of the table slides.  n_tiles: largest number of tiles that are measured.  seed: of their choice.
    Raises SlideError for a pyramid that can't be read, OSError and pa.ArrowInvalid for tables.
    """
    with Pyramid(cohort.pyramid(row["slide_id"])) as slide:
        sample = _sample_slide(cohort, row, slide, n_tiles, seed)
        if not len(sample.tiles):
            return None
        pixels = {
            scale: (
                _read_tiles(slide, sample.tiles, plan, scale, measured=True),
                _read_tiles(slide, sample.fit_tiles, plan, scale, measured=False),
            )
            for scale in _scales(shifts)
        }
    own = fit_stain_vectors(pixels[1.0][1], white_point(sample.overview, sample.background), plan.mpp)
    results = [_score(sample, pixels, shift, own, plan) for shift in (UNCHANGED, *shifts)]
    return StressedSlide(row["slide_id"], len(sample.tiles), sample.n_tiles, results[0], tuple(results[1:]))


def _sample_slide(cohort: Cohort, row: Row, slide: Slide, n_tiles: int, seed: int) -> _SlideSample:
    """Choose tiles of the patient's tissue by a seed and the content of the slide, and read the thumbnail."""
    table = read_patient_tiles(cohort, row["slide_id"])
    tiles = np.stack([table.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
    chosen = tiles
    if len(tiles) > n_tiles:
        rng = np.random.default_rng([seed, int(row["sha256"][:8], 16)])
        chosen = tiles[np.sort(rng.choice(len(tiles), n_tiles, replace=False))]
    image = decode_jpeg(cohort.thumbnail(row["slide_id"]).read_bytes())
    mpp = row["width"] * row["mpp"] / image.shape[1]
    shrink = max(1.0, OVERVIEW_MPP / mpp)
    overview = resample(image, max(1, round(image.shape[1] / shrink)), max(1, round(image.shape[0] / shrink)))
    base = slide.info.levels[0]
    scale = base.width / overview.shape[1]
    unscanned = filled_tiles(overview, (base.chunk_height / scale, base.chunk_width / scale))
    tissue = segment_tissue(fill_missing(overview, unscanned), mpp * shrink)
    fit_tiles = spread_evenly(tiles, SAMPLE_TILES)
    return _SlideSample(overview, mpp * shrink, ~tissue.mask & ~unscanned, chosen, fit_tiles, len(tiles))


def _scales(shifts: tuple[ScannerShift, ...]) -> set[float]:
    return {1.0, *(shift.value for shift in shifts if shift.kind == "scale")}


def _read_tiles(slide: Slide, tiles: NDArray[np.int32], plan: Plan, scale: float, measured: bool) -> NDArray[np.uint8]:
    """Read tiles as a scanner would give them whose true µm/px is `scale` times the stated: (n, t, t, 3) uint8.

    measured: from the level, and with the shrinking, by which an ingest reads the tiles that it measures; else as it
    reads those to which it fits stains.
    """
    pixels = np.empty((len(tiles), plan.tile, plan.tile, 3), np.uint8)
    for k, (x, y, size) in enumerate(tiles.tolist()):
        edge = round(size * scale)
        left = min(max(0, x - (edge - size) // 2), max(0, slide.info.width - edge))
        top = min(max(0, y - (edge - size) // 2), max(0, slide.info.height - edge))
        box = Box(left, top, edge, edge)
        region = _read_from_source(slide, box, plan) if measured else slide.region(box, plan.mpp * scale)
        pixels[k] = resample(region, plan.tile, plan.tile)
    return pixels


def _read_from_source(slide: Slide, box: Box, plan: Plan) -> NDArray[np.uint8]:
    """Read a box in level-0 px from the level and with the factor that tiles of the plan are read with."""
    assert slide.info.mpp is not None
    level, shrink = slide.tile_source(plan.mpp / slide.info.mpp)
    size = slide.info.levels[level].downscale(shrink)
    across, down = slide.info.width / size.width, slide.info.height / size.height
    width, height = max(1, round(box.width / across)), max(1, round(box.height / down))
    left, top = min(round(box.x / across), size.width - width), min(round(box.y / down), size.height - height)
    return slide.read(Box(max(0, left), max(0, top), width, height), level, shrink)


def _score(
    sample: _SlideSample, pixels: dict[float, TilePixels], shift: ScannerShift, own: Stains, plan: Plan
) -> ShiftResult:
    """Score the sampled tiles under one shift. own: stains of the unchanged slide."""
    tiles, fit_tiles = pixels[shift.value if shift.kind == "scale" else 1.0]
    white = own.white
    if shift.kind not in ("none", "scale"):
        tiles, fit_tiles = (
            np.stack([shift_image(tile, shift, plan.mpp, own) for tile in part]) for part in (tiles, fit_tiles)
        )
    if shift.changes_colour:
        overview = shift_image(sample.overview, shift, sample.overview_mpp, own)
        white = white_point(overview, sample.background)
    stains = fit_stain_vectors(fit_tiles, white, plan.mpp)
    features = TileBatch(tiles, plan.mpp, stains).features
    result = apply_rule({name: features[:, feature_index(name)] for name in MEMBRANE_COLUMNS})
    by_cells = _score_cells(tiles, fit_tiles, stains, plan.mpp) if plan.cells == "all" else (None, None)
    return ShiftResult(shift.name, result.category, result.score, *by_cells)


def _score_cells(
    tiles: NDArray[np.uint8], fit_tiles: NDArray[np.uint8], stains: Stains, mpp: float
) -> tuple[str | None, float | None]:
    """Return class and score by the tumour cells of the tiles; None where there are none."""
    reference = fit_cell_reference(fit_tiles, mpp, stains)
    found = [detect_cells(tile, mpp, stains, reference, "membrane") for tile in tiles]
    category, tumour = (np.concatenate([getattr(one, name) for one in found]) for name in ("category", "tumour"))
    if not (tumour >= TUMOUR_LIKELIHOOD).any():
        return None, None
    result = score_cells(category, tumour)
    return result.category, result.score
