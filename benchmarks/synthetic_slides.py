"""Synthetic slides of laboratories in memory, as an ingest reads them at 0.5 µm/px, with their true cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from numpy.typing import NDArray

from her2batch.synthetic.cohort import draw_mix, draw_nuclei, paint_truth
from her2batch.synthetic.outlines import rng_for
from her2batch.synthetic.specimen import CellMix, SlideKind, SlideTruth
from her2batch.vision.cells.detection import CellReference, Cells, Marker, detect_cells, fit_cell_reference
from her2batch.vision.membrane import MEMBRANE_COLUMNS, measure_tiles
from her2batch.vision.stain import Stains, fit_stain_vectors, guess_stain, white_point
from her2batch.vision.tile_grid import spread_evenly
from her2batch.vision.tissue import segment_tissue, tile_fractions

TILE, MPP = 224, 0.5
WIDTH, HEIGHT = 2400, 2000
SAMPLED = 32
SCORES = ("0", "1+", "2+", "3+")
UNSCORABLE: tuple[SlideKind, ...] = ("cytoplasmic", "nuclear", "sparse", "he", "glass", "noise", "grey")


@dataclass
class Measured:
    """A slide and what was measured on it. cells: the true cells with a nucleus.  membrane: the area rule's table."""

    truth: SlideTruth
    mix: CellMix
    stains: Stains
    stain: str
    reference: CellReference
    found: Cells
    cells: pa.Table
    membrane: dict[str, NDArray[np.float32]]


Job = tuple[int, str, Literal["her2", "er"], SlideKind, int]
"""Laboratory, score or sign, stain, kind, seed."""


def plan_jobs(laboratories: Iterable[int], seed: int, further: bool = True) -> list[Job]:
    """Return two HER2 slides of every laboratory, so that two of them have all scores, and, unless `further` is false,
    one ER slide and a slide that cannot be scored."""
    jobs: list[Job] = []
    for k, lab in enumerate(laboratories):
        first = 2 * (k % 2)
        jobs += [(lab, SCORES[first], "her2", "usual", seed), (lab, SCORES[first + 1], "her2", "usual", seed)]
        if further:
            jobs.append((lab, "-" if k % 4 == 3 else "+", "er", "usual", seed))
            jobs.append((lab, "2+", "her2", UNSCORABLE[k % len(UNSCORABLE)], seed))
            if k % 4 == 0:
                jobs.append((lab, "2+", "her2", "weak-complete", seed))
    return jobs


def read_slide(job: Job) -> tuple[SlideTruth, CellMix, NDArray[np.uint8], pa.Table]:
    """Paint a slide, compress it as its laboratory does, and return it at 0.5 µm/px with its nucleated cells."""
    lab, score, stain, kind, seed = job
    name = f"lab{lab}-{score}-{stain}-{kind}"
    rng = rng_for(seed, name, "mix")
    mix = draw_mix(score, rng) if stain == "her2" else draw_nuclei(score == "+", rng)
    truth = SlideTruth(name, mix, stain, site=f"lab-{lab}", width=WIDTH, height=HEIGHT, kind=kind)
    painted = paint_truth(truth, seed)
    scanner = painted.laboratory
    coded = simplejpeg.encode_jpeg(np.ascontiguousarray(painted.rgb), scanner.jpeg_quality, "RGB", scanner.subsampling)
    half = cv2.resize(simplejpeg.decode_jpeg(coded), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    nucleated = pc.not_equal(painted.cells["kind"], "erythrocyte")
    return truth, painted.specimen.mix, np.asarray(half, np.uint8), painted.cells.filter(nucleated)


def cut_tiles(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Stains]:
    """Return the tissue's tiles and the stains that an ingest fits to some of them."""
    overview = cv2.resize(pixels, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    mask = segment_tissue(overview, 8.0).mask
    rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    grid = np.array([(x * TILE, y * TILE, TILE) for y in range(rows) for x in range(columns)], np.int32)
    kept = grid[tile_fractions(mask, pixels.shape[1], pixels.shape[0], grid) >= 0.25]
    tiles = np.stack([pixels[y : y + TILE, x : x + TILE] for x, y, _ in (kept if len(kept) else grid)])
    return tiles, fit_stain_vectors(sampled(tiles), white_point(overview, ~mask), MPP)


def sampled(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the tiles to which stains are fitted."""
    return spread_evenly(tiles, SAMPLED)


def measure_slide(job: Job) -> Measured:
    """Paint a slide and measure its cells and membranes."""
    cv2.setNumThreads(1)
    truth, mix, pixels, cells = read_slide(job)
    tiles, stains = cut_tiles(pixels)
    reference = fit_cell_reference(sampled(tiles), MPP, stains)
    marker: Marker = "membrane" if truth.stain == "her2" else "nuclear"
    found = detect_cells(pixels, MPP, stains, reference, marker)
    features = measure_tiles(tiles, MPP, stains)
    membrane = {name: features[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)}
    return Measured(truth, mix, stains, guess_stain(sampled(tiles), stains), reference, found, cells, membrane)


def measure_slides(jobs: list[Job], workers: int) -> Iterator[Measured]:
    """Yield the measured slides in order."""
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(measure_slide, jobs)
