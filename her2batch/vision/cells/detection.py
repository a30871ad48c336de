"""Cells of a block of a slide: where they are, how large, how stained, and whether they belong to the tumour.

The functions are pure and work on whole arrays. A block may have any size; cells within CELL_MARGIN_UM of its border
may be cut or lack neighbours. Cells of a slide are therefore measured on blocks with that margin, and each cell belongs
to the block in which its centre lies (`Cells.within`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.vision.cells.compartment import CellFeatures, model_inputs, tumour_likelihood
from her2batch.vision.cells.density import DensityMaps, Mask, density_maps
from her2batch.vision.cells.membranes import outline_radii, ray_angles, stained_shares, trace_rays
from her2batch.vision.cells.nuclei import Marker, NucleusGrid, find_nuclei
from her2batch.vision.cells.reference import CellReference, fit_cell_reference
from her2batch.vision.stain import Stains

Map = NDArray[np.float32]

__all__ = ["CELL_MARGIN_UM", "CellReference", "Cells", "Marker", "cell_contours", "detect_cells", "fit_cell_reference"]

CELL_MARGIN_UM = 48.0
"""Margin of a block within which cells are not measured as in the whole slide: the neighbourhood of a cell by which it
is told whether it belongs to the tumour, and the neighbourhood of those cells."""

NUCLEUS_AREA_UM2 = (10.0, 400.0)
"""Least and greatest area of a nucleus: QuPath's defaults for cell detection at 0.5 µm/px."""

MIN_HOLE_SHARE = 0.5
"""Share of the circumference with moderate membranes from which a hole in a net is a cell."""

INTENSE_SHARE = 0.6
"""Share of the circumference with intense membranes from which a cell is intense and complete. A ring round a nucleus
misses parts of the membrane; with 0.6, intense cells are neither more nor fewer than painted on synthetic slides."""

COMPLETE_SHARE = 0.8
"""Share of the circumference with membranes of any intensity from which a cell is completely stained. Painted complete
membranes show 0.88 (median), incomplete ones 0.5."""

INCOMPLETE_SHARE = 0.35
"""Share of the circumference with membranes from which a cell is stained; less may be a neighbour's. Six of the 16 rays
of a cell must meet a membrane; with five, the shares of 160 synthetic slides are 0.7 points further off."""

POSITIVE_EXCESS = 0.07
"""DAB of a nucleus above that of its own cytoplasm, OD, from which it is stained: brown tissue is no staining."""

NUCLEAR_LEVELS = (0.29, 0.58)
"""DAB of a stained nucleus above that of unstained ones, OD, from which it is moderate and strong, on a slide of usual
contrast (`CellReference.contrast`). With 0.25 and 0.50 on every slide, nuclei of contrasty laboratories count as too
dark: the Allred score of 65 % of the ER slides of laboratories 1 to 80 is exact, with these limits that of 78 %."""


@dataclass(frozen=True)
class Cells:
    """Cells, one entry of each array a cell: (n,) float32, and category uint8.

    x, y: centre of the nucleus, px of the block.  area: of the nucleus, µm².  elongation: long over short axis.
    haematoxylin, nuclear_dab, membrane_dab, cytoplasm_dab: mean OD.  faint, moderate, intense: share of the
    circumference with membrane staining of at least that intensity.  tumour: likelihood, 0–1.  category: 0–3.
    """

    x: Map
    y: Map
    area: Map
    elongation: Map
    haematoxylin: Map
    nuclear_dab: Map
    membrane_dab: Map
    cytoplasm_dab: Map
    faint: Map
    moderate: Map
    intense: Map
    tumour: Map
    category: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.x)

    def select(self, which: NDArray[np.bool_]) -> Cells:
        """Return the cells where `which` (n,) is true."""
        return Cells(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def within(self, box: tuple[float, float, float, float]) -> Cells:
        """Return the cells whose centre lies in a box (left, top, right, bottom), px; right and bottom are excluded."""
        left, top, right, bottom = box
        return self.select((self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom))


def detect_cells(
    pixels: NDArray[np.uint8],
    mpp: float,
    stains: Stains,
    reference: CellReference,
    marker: Marker,
    excluded: Mask | None = None,
) -> Cells:
    """Return the cells of a block.

    pixels: (H, W, 3) uint8 at mpp µm/px; its origin is a multiple of `nuclei.coarse_scale(mpp)` px of the slide.
    marker: where the stain lies.  excluded: (H, W) bool, px without cells.
    """
    maps, grid = _find(pixels, mpp, stains, reference, marker, excluded)
    return _measure(maps, grid, mpp, reference, marker)[0]


def _find(
    pixels: NDArray[np.uint8],
    mpp: float,
    stains: Stains,
    reference: CellReference,
    marker: Marker,
    excluded: Mask | None,
) -> tuple[DensityMaps, NucleusGrid]:
    maps = density_maps(pixels, mpp, stains, excluded)
    typical = reference.nuclei if marker == "membrane" else reference.nuclei_and_dab
    return maps, find_nuclei(maps, marker, typical, (reference.faint, reference.background + reference.moderate), mpp)


class _Shapes(NamedTuple):
    """Nuclei as measured on the coarse grid, (n,) each: number on the grid, centre in px of the grid, area and axes."""

    number: NDArray[np.int32]
    x: Map
    y: Map
    area: Map
    elongation: Map


def _shapes(grid: NucleusGrid) -> _Shapes:
    """Return the shapes of the nuclei of plausible area."""
    px = grid.px
    y = px.place // grid.labels.shape[1]
    x = px.place - y * grid.labels.shape[1]
    mx, my = px.mean(x), px.mean(y)
    dx, dy = x - mx[px.label], y - my[px.label]
    xx, yy, xy = px.mean(dx * dx) + 1 / 12, px.mean(dy * dy) + 1 / 12, px.mean(dx * dy)  # 1/12: of a square px itself
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    elongation = np.sqrt((xx + yy + spread) / np.maximum(xx + yy - spread, 1e-6))
    area = px.count * grid.um**2
    fits = (area >= NUCLEUS_AREA_UM2[0]) & (area <= NUCLEUS_AREA_UM2[1])
    fits[0] = False
    number = np.flatnonzero(fits).astype(np.int32)
    return _Shapes(number, *(one[number].astype(np.float32) for one in (mx, my, area, elongation)))


def _measure(
    maps: DensityMaps, grid: NucleusGrid, mpp: float, reference: CellReference, marker: Marker
) -> tuple[Cells, NDArray[np.int32]]:
    """Measure the nuclei of a block and the membranes around them; return the cells and their labels on the grid."""
    shapes, px, scale = _shapes(grid), grid.px, grid.scale
    number = shapes.number

    def mean(values: Map) -> Map:
        return np.asarray(px.mean(values)[number], np.float32)

    stain = px.at(grid.density)
    haematoxylin, nuclear_dab, density = mean(px.at(maps.h)), mean(px.at(maps.d)), mean(stain)
    texture = np.sqrt(np.maximum(mean(stain * stain) - density**2, 0)) / np.maximum(density, np.float32(0.01))
    x, y = ((one + np.float32(0.5)) * scale - np.float32(0.5) for one in (shapes.x, shapes.y))
    rays = trace_rays(maps, grid, x, y, number, mpp)
    levels = reference.faint, reference.moderate, reference.intense
    faint, moderate, intense = stained_shares(rays, levels, reference.background)
    typical = reference.nuclei if marker == "membrane" else reference.nuclei_and_dab
    features = CellFeatures(shapes.area, shapes.elongation, density / np.float32(typical), texture)
    middle = np.round(shapes.y).astype(np.intp) * grid.labels.shape[1] + np.round(shapes.x).astype(np.intp)
    inputs = model_inputs(features, middle, (grid.labels.shape[0], grid.labels.shape[1]), grid.um)
    category = (
        _membrane_category(faint, intense)
        if marker == "membrane"
        else _nuclear_category(nuclear_dab, rays.cytoplasm, reference)
    )
    cells = Cells(
        x, y, shapes.area, shapes.elongation, haematoxylin, nuclear_dab,
        rays.dab.mean(axis=1), rays.cytoplasm, faint, moderate, intense,
        tumour_likelihood(inputs, marker), category,
    )  # fmt: skip
    kept = ~grid.hole[number - 1] | (moderate >= MIN_HOLE_SHARE)
    return cells.select(kept), number[kept]


def _membrane_category(faint: Map, intense: Map) -> NDArray[np.uint8]:
    """Return the category of each cell by its membrane, 0 to 3."""
    steps = [intense >= INTENSE_SHARE, faint >= COMPLETE_SHARE, faint >= INCOMPLETE_SHARE]
    return np.select(steps, [3, 2, 1], 0).astype(np.uint8)


def _nuclear_category(nuclear_dab: Map, cytoplasm_dab: Map, reference: CellReference) -> NDArray[np.uint8]:
    """Return the category of each cell by its nucleus, 0 to 3."""
    levels = np.asarray(NUCLEAR_LEVELS, np.float32) * np.float32(reference.contrast)
    grade = 1 + np.searchsorted(levels, nuclear_dab - np.float32(reference.negative), "right")
    stained = nuclear_dab - np.maximum(cytoplasm_dab, reference.negative) >= POSITIVE_EXCESS
    return np.where(stained, grade, 0).astype(np.uint8)


def cell_contours(
    pixels: NDArray[np.uint8],
    mpp: float,
    stains: Stains,
    reference: CellReference,
    marker: Marker,
    excluded: Mask | None = None,
) -> tuple[Cells, Map]:
    """Return the cells of a small block and the outlines of their nuclei, for display.

    The outlines are (n, SECTORS, 2) float32: x and y, px of the block, clockwise from the right.  Arguments as of
    `detect_cells`.
    """
    maps, grid = _find(pixels, mpp, stains, reference, marker, excluded)
    cells, number = _measure(maps, grid, mpp, reference, marker)
    radii = outline_radii(grid, cells.x, cells.y, number) / np.float32(mpp)
    radii = (np.roll(radii, 1, axis=1) + 2 * radii + np.roll(radii, -1, axis=1)) / 4
    cos, sin = ray_angles()
    return cells, np.stack([cells.x[:, None] + radii * cos, cells.y[:, None] + radii * sin], axis=2).astype(np.float32)
