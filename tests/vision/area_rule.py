"""The area rule on a picture in memory: every step of an ingest from the overview to the class, without files."""

from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from her2batch.models.membrane_rule import RuleResult, apply_rule, rule_predictions
from her2batch.vision.membrane import FEATURES, MEMBRANE_COLUMNS, feature_index, measure_tiles
from her2batch.vision.quality import Quality, assess_quality
from her2batch.vision.stain import Stains, fit_stain_vectors, guess_stain, white_point
from her2batch.vision.tile_grid import plan_tiles
from her2batch.vision.tissue import Tissue, segment_tissue, tile_fractions

Image = NDArray[np.uint8]

TILE, TILE_MPP, OVERVIEW_MPP, MIN_TISSUE = 224, 0.5, 8.0, 0.25


class Scored(NamedTuple):
    """A scored picture.

    tiles: (n, TILE, TILE, 3) uint8.  features: (n, len(FEATURES)).  review: a pathologist should look at the slide.
    """

    result: RuleResult
    review: bool
    quality: Quality
    tissue: Tissue
    stains: Stains
    tiles: Image
    features: NDArray[np.float32]

    def mean(self, name: str) -> float:
        """Return the mean of a feature over the tiles."""
        return float(self.features[:, feature_index(name)].mean())


def shrink_to(rgb: Image, width: int, height: int) -> Image:
    """Return the picture at another size, averaged where it becomes smaller."""
    method = cv2.INTER_AREA if width < rgb.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=method), np.uint8)


def encode_again(rgb: Image, quality: int, subsampling: str) -> Image:
    """Return the picture written as JPEG and read again."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality, "RGB", subsampling)
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)


def score_picture(rgb: Image, mpp: float) -> Scored:
    """Score a picture (H, W, 3) uint8 that has `mpp` µm/px, as the file says, or as is assumed."""
    height, width = rgb.shape[:2]
    overview = shrink_to(rgb, round(width * mpp / OVERVIEW_MPP), round(height * mpp / OVERVIEW_MPP))
    tissue = segment_tissue(overview, OVERVIEW_MPP)
    quality = assess_quality(overview, tissue)
    grid = plan_tiles(width, height, mpp, TILE_MPP, TILE)
    grid = grid[tile_fractions(tissue.mask, width, height, grid) >= MIN_TISSUE]
    tiles = np.empty((len(grid), TILE, TILE, 3), np.uint8)
    for tile, (x, y, size) in zip(tiles, grid.tolist(), strict=True):
        part = rgb[y : y + size, x : x + size]
        part = np.pad(part, ((0, size - part.shape[0]), (0, size - part.shape[1]), (0, 0)), constant_values=255)
        tile[:] = shrink_to(part, TILE, TILE)
    stains = fit_stain_vectors(tiles, white_point(overview, ~tissue.mask & ~tissue.pen), TILE_MPP)
    features = measure_tiles(tiles, TILE_MPP, stains)
    names = [feature.name for feature in FEATURES]
    table = {name: features[:, names.index(name)] for name in MEMBRANE_COLUMNS}
    quality = quality.with_tiles(features[:, names.index("blur")], features[:, names.index("ink")])
    result = apply_rule(table)
    review = any(row["review"] for row in rule_predictions(result, False, quality.flags) if row["task"] == "her2-4way")
    assert guess_stain(tiles, stains) in ("he", "ihc")
    return Scored(result, review, quality, tissue, stains, tiles, features)
