"""Real pixels for the tests of this package: HER2 cores and H&E slides, at any µm/px."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from her2batch.vision.membrane import TileBatch
from her2batch.vision.stain import fit_stain_vectors, white_point
from her2batch.vision.tissue import segment_tissue, tile_fractions

CORES = {
    "0": "0_9b0f64d1-6785-49d9-b279-004b2deb8478.jpg",
    "1+": "1_fb95908d-1b06-4e32-b422-134b23154c8a.jpg",
    "2+ a": "2_726fa489-3deb-4d06-ae5c-8f20bd3f3025.jpg",
    "2+ b": "2_a5593c5e-5c9c-4499-bfab-3aebe3ef4b7f.jpg",
    "3+": "3_a1f1510c-b91e-4995-ba59-596ca7ebb019.jpg",
}

HE = {"CMU-1-Small-Region.svs": 0.499, "tcga-cr-7395-01a-01-ts1.svs": 0.25, "HE_example.tif": 0.5}
"""Slide → µm/px."""

TILE = 224


@lru_cache(maxsize=8)
def load_core(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return a core at 0.5 µm/px."""
    rgb = cv2.cvtColor(cv2.imread(str(folder / "her2_cores" / CORES[name])), cv2.COLOR_BGR2RGB)
    return shrink(rgb, 0.5)


@lru_cache(maxsize=8)
def load_he_slide(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return an H&E slide at its own µm/px."""
    path = folder / "slides" / name
    if name.endswith(".tif"):
        return tifffile.imread(path)
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def shrink(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    return cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def tissue_tile_batch(rgb: NDArray[np.uint8]) -> TileBatch:
    """Return the tissue tiles of a slide at 0.5 µm/px as the ingest cuts them, with the slide's own stains."""
    overview = shrink(rgb, 1 / 16)
    tissue = segment_tissue(overview, 8.0)
    rows, columns = rgb.shape[0] // TILE, rgb.shape[1] // TILE
    grid = np.array([(x * TILE, y * TILE, TILE) for y in range(rows) for x in range(columns)], np.int32)
    tiles = grid[tile_fractions(tissue.mask, rgb.shape[1], rgb.shape[0], grid) >= 0.25]
    pixels = np.stack([rgb[y : y + TILE, x : x + TILE] for x, y, _ in tiles])
    sample = np.unique(np.linspace(0, len(pixels) - 1, 32).round().astype(int))
    return TileBatch(pixels, 0.5, fit_stain_vectors(pixels[sample], white_point(overview, ~tissue.mask), 0.5))
