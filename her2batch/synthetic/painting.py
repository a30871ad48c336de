"""Paint stained tissue, with cells, stroma and artefacts given as arrays, in optical-density space.

The functions are pure: the layout is given as arrays (`Cells`, `Fields`), and pixels are returned, one block of a slide
at a time. The cells form a jittered lattice, each with the px nearest to it (Voronoi); membranes run along the borders.
The result resembles immunohistochemistry closely enough to test software. It is not a model of a disease: results
measured on it do not describe medicine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.cell_sums import CellSums
from her2batch.synthetic.noise import NOISE_PX, Map, NoiseFields
from her2batch.synthetic.optics import blur_and_sharpen, soft_edge, to_rgb

Warp = tuple[Map, Map]
Vector = tuple[float, float, float]

RIM_CELLS = 3
"""Extra cells around the slide, so that every px of a margin has all its neighbours."""

BLOCK_PX = 640
"""Approximate edge of the block that is painted at once: 0.5 MP fits into the processor's cache."""

MARGIN = 24
"""Px painted around a block and cropped again, for the blurs: three σ of the widest."""

INNER = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
"""A block without its margin."""

NEIGHBOURS = tuple((dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1))

WARP_UM = 1.6
"""σ of the displacement of cells and fibres from straight lines."""

BEND_UM = 600.0
"""Bending of fibres with the section's thickness, so that they are not straight across the slide."""

FRAY_UM = 5.0
"""Fraying of the tissue's outline."""

DEFOCUS_UM = 1.6
"""σ of the blur of areas out of focus."""

BLUR_EDGE_UM = 20.0
"""Half width of the transition between sharp and blurred areas."""

RIM_UM = 5.0
"""Half width of a bubble's rim."""

FIBRE_DENSITY = (0.09 * np.clip((np.arange(256) - 76) / 64, 0, 1.6)).astype(np.float32)
"""Haematoxylin density of a fibre by its level in the fibre noise: the lowest third are gaps."""

FOLD_DENSITY = 0.9
"""Density of a fold's second layer, as a share of the first."""

CHROMATIN_PROFILE = np.interp(np.arange(256) / 128, [0, 0.45, 0.85, 1.0, 1.25], [0.55, 0.65, 1.0, 0.75, 0]).astype(
    np.float32
)
"""Chromatin from the centre of a nucleus outwards, by (distance / radius)² · 128: vesicular, with a darker rim."""

NUCLEUS_EDGE = 0.5
"""Share of the density from which a px belongs to the nucleus: half of the density at its rim."""


@dataclass(frozen=True)
class Cells:
    """All cells of a slide, (rows, cols) float32 each; the outermost RIM_CELLS are outside the slide.

    pitch: edge of a lattice square, px, at least MARGIN / 2.  x, y: position of the cell, level-0 px.
    ellipse: (rows, cols, 3), the nucleus as a·x² + b·x·y + c·y² < 1, px⁻².
    nucleus_h, nucleus_d: density of haematoxylin and DAB in the nucleus.  body_h, body_d: in the cytoplasm.
    ring_d: DAB density of the membrane; ring_share: stained share of its length; ring_px: its width on this side.
    fibre: 1 for stroma, 0 for tumour and empty space.
    """

    pitch: int
    x: Map
    y: Map
    ellipse: Map
    nucleus_h: Map
    nucleus_d: Map
    ring_d: Map
    ring_share: Map
    ring_px: Map
    body_h: Map
    body_d: Map
    fibre: Map


@dataclass(frozen=True)
class Fields:
    """Slowly varying properties on a coarse grid over the slide: (h, w) float32 each; None for an absent artefact.

    px: level-0 px per field px.  tissue, pen, fold, blur, bubble: µm inside the outline, negative outside.
    thickness: factor on all densities.  shade: optical density of the background itself (uneven illumination).
    dab_factor: factor on DAB alone.
    """

    px: int
    tissue: Map
    thickness: Map
    shade: Map
    pen: Map | None = None
    fold: Map | None = None
    blur: Map | None = None
    bubble: Map | None = None
    dab_factor: Map | None = None


@dataclass(frozen=True)
class Appearance:
    """The appearance of a slide.

    mpp: µm/px.  haematoxylin, dab: unit vectors.  white: R, G, B of the background.  pen: optical density of the pen in
    R, G, B.  fibre_angle: direction of the fibres, radians.  blur_um, black, gamma: of the scanner (`Laboratory`).
    """

    mpp: float
    haematoxylin: Vector
    dab: Vector
    white: Vector
    pen: Vector
    fibre_angle: float
    blur_um: float = 0.0
    black: float = 0.0
    gamma: float = 1.0


class Block(NamedTuple):
    """A rectangle of lattice squares: first row and column (not counting RIM_CELLS), and number of rows and columns."""

    row: int
    column: int
    rows: int
    columns: int


class PaintWindow(NamedTuple):
    """The px to paint: a block and its margin, level-0 px. Resamples fields and crops noise to this area."""

    x: int
    y: int
    w: int
    h: int

    def resample(self, field: Map, px: int) -> Map:
        """Return a field of `px` level-0 px per field px in this window: (h, w) float32, interpolated."""
        k = 1 / px
        matrix = np.array([[k, 0, (self.x + 0.5) * k - 0.5], [0, k, (self.y + 0.5) * k - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out = cv2.warpAffine(field, matrix, (self.w, self.h), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(out, np.float32)

    def crop(self, noise: Map) -> Map:
        """Return the noise in this window as a view, (h, w) or (h, w, 3)."""
        x, y = self.x % NOISE_PX, self.y % NOISE_PX
        return noise[y : y + self.h, x : x + self.w]


def plan_paint_blocks(width: int, height: int, pitch: int) -> Iterator[Block]:
    """Yield the blocks that cover a slide of width × height px."""
    step = max(1, BLOCK_PX // pitch)
    rows, columns = -(-height // pitch), -(-width // pitch)
    for row in range(0, rows, step):
        for column in range(0, columns, step):
            yield Block(row, column, min(step, rows - row), min(step, columns - column))


def paint_slide(
    cells: Cells,
    fields: Fields,
    noise: NoiseFields,
    appearance: Appearance,
    size: tuple[int, int],
    sums: CellSums | None = None,
) -> NDArray[np.uint8]:
    """Paint level 0 of a slide. size: width, height, px. Returns (height, width, 3) uint8 RGB.

    sums: sums over the px of each cell, to which those of this slide are added.
    """
    width, height = size
    out = np.empty((height, width, 3), np.uint8)
    for block in plan_paint_blocks(width, height, cells.pitch):
        x, y = block.column * cells.pitch, block.row * cells.pitch
        target = out[y : y + block.rows * cells.pitch, x : x + block.columns * cells.pitch]
        target[:] = paint_block(cells, fields, noise, appearance, block, sums)[: target.shape[0], : target.shape[1]]
    return out


def paint_block(
    cells: Cells,
    fields: Fields,
    noise: NoiseFields,
    appearance: Appearance,
    block: Block,
    sums: CellSums | None = None,
) -> NDArray[np.uint8]:
    """Paint one block: (rows · pitch, columns · pitch, 3) uint8 RGB."""
    pitch = cells.pitch
    window = PaintWindow(
        block.column * pitch - MARGIN, block.row * pitch - MARGIN,
        block.columns * pitch + 2 * MARGIN, block.rows * pitch + 2 * MARGIN,
    )  # fmt: skip
    shade = window.resample(fields.shade, fields.px)
    od = cv2.merge([shade - np.float32(np.log10(value)) for value in appearance.white])
    inside = window.resample(fields.tissue, fields.px)
    if float(inside.max()) > -4 * FRAY_UM:
        thickness = window.resample(fields.thickness, fields.px)
        stain = _stain_densities(
            cells, noise, appearance, block, window, (thickness - 1) * np.float32(BEND_UM / appearance.mpp), sums
        )
        if fields.dab_factor is not None:
            stain[..., 1] *= window.resample(fields.dab_factor, fields.px)
        density = soft_edge(inside + FRAY_UM * window.crop(noise.drift_x), 2.0) * thickness
        stain *= _double_folds(density, fields, window)[..., None]
        od += cv2.transform(
            blur_and_sharpen(stain, appearance.blur_um / appearance.mpp),
            np.asarray([appearance.haematoxylin, appearance.dab], np.float32).T,
        )
    od = _add_artefacts(od, fields, appearance, window)
    rgb = to_rgb(od, window.crop(noise.sensor), appearance.black, appearance.gamma)
    return rgb[INNER]


def _stain_densities(
    cells: Cells,
    noise: NoiseFields,
    appearance: Appearance,
    block: Block,
    window: PaintWindow,
    bend: Map,
    sums: CellSums | None,
) -> Map:
    """Return haematoxylin and DAB density of a block: (h, w, 2) float32. bend: (h, w), bending of fibres, px."""
    reach = np.float32(WARP_UM / appearance.mpp)
    warp = reach * window.crop(noise.drift_x), reach * window.crop(noise.drift_y)
    index, edge, dx, dy = voronoi(cells, block, window, warp)
    grain, mottle = window.crop(noise.grain), window.crop(noise.mottle)

    def per_px(values: Map) -> Map:
        return np.asarray(values.reshape(-1).take(index), np.float32)

    a, b, c = (per_px(np.ascontiguousarray(cells.ellipse[..., k])) for k in range(3))
    chromatin = _chromatin(a, b, c, dx, dy)
    if sums is not None:
        sums.add_nuclei(index[INNER], chromatin[INNER] >= NUCLEUS_EDGE, (window.x + MARGIN, window.y + MARGIN))
    chromatin *= 1 + np.float32(0.16) * grain
    speckle = np.maximum(1 + np.float32(0.4) * grain, 0)
    h = per_px(cells.nucleus_h) * chromatin + per_px(cells.body_h) * speckle
    h += per_px(cells.fibre) * _fibres(noise, window, appearance, bend + warp[0])
    d = per_px(cells.body_d) * speckle
    if cells.nucleus_d.any():
        d += per_px(cells.nucleus_d) * chromatin
    if cells.ring_d.any():
        within, share = per_px(cells.ring_px) - edge, per_px(cells.ring_share)
        if sums is not None:
            sums.add_membranes(index[INNER], within[INNER] > 0, (share > mottle)[INNER])
        ring = per_px(cells.ring_d) * soft_edge(within, 2.0) * soft_edge(share - mottle, 0.12)
        d += ring * (np.float32(1.25) - np.float32(0.5) * mottle)
    return np.asarray(cv2.merge([h, d]), np.float32)


def voronoi(cells: Cells, block: Block, window: PaintWindow, warp: Warp) -> tuple[NDArray[np.intp], Map, Map, Map]:
    """Assign each px to its nearest cell.

    warp: displacement of every px before the assignment, which makes the cells irregular.  Returns (h, w) arrays: flat
    index of the cell, distance to the cell's border, and distance from the cell's centre along x and y, px.  The
    distance to the border is (d₂ − d₁) / 2, with d₁, d₂ to the nearest and the second-nearest cell: exact between the
    two, slightly too small at corners.
    """
    pitch, cols = cells.pitch, cells.x.shape[1]
    spare = -(-MARGIN // pitch)  # squares under the margin
    top, left = block.row + RIM_CELLS - spare, block.column + RIM_CELLS - spare
    off = spare * pitch - MARGIN
    rows, columns = block.rows + 2 * spare, block.columns + 2 * spare

    def enlarged(values: Map) -> Map:
        wide = values.repeat(pitch, axis=1)[:, off : off + window.w]  # cv2's INTER_NEAREST is 1 px off for some pitches
        return wide.repeat(pitch, axis=0)[off : off + window.h]

    x = np.arange(window.x, window.x + window.w, dtype=np.float32) + warp[0]
    y = np.arange(window.y, window.y + window.h, dtype=np.float32)[:, None] + warp[1]
    first = np.full(x.shape, 1e9, np.float32).view(np.int32)
    second = first.copy()
    for k, (dr, dc) in enumerate(NEIGHBOURS):
        near = np.s_[top + dr : top + dr + rows, left + dc : left + dc + columns]
        dx, dy = x - enlarged(cells.x[near]), y - enlarged(cells.y[near])
        dx *= dx
        dy *= dy
        dx += dy
        key = dx.view(np.int32)  # positive floats sort like their bits; the lowest four bits hold the neighbour
        key &= ~15
        key |= k
        np.minimum(second, np.maximum(first, key), out=second)
        np.minimum(first, key, out=first)
    edge = np.float32(0.5) * (cv2.sqrt(second.view(np.float32)) - cv2.sqrt(first.view(np.float32)))
    own_row, own_column = np.arange(off, off + window.h) // pitch + top, np.arange(off, off + window.w) // pitch + left
    first &= 15
    index = np.array([dr * cols + dc for dr, dc in NEIGHBOURS]).take(first)
    index += own_row[:, None] * cols + own_column
    return index, edge, x - cells.x.reshape(-1).take(index), y - cells.y.reshape(-1).take(index)


def _chromatin(a: Map, b: Map, c: Map, dx: Map, dy: Map) -> Map:
    """Return the share of a nucleus's density at each px: 1 at its rim, less inside, 0 outside. Changes a and c."""
    a *= dx
    a += b * dy
    a *= dx
    c *= dy
    c *= dy
    a += c
    level = cv2.convertScaleAbs(a, alpha=128)  # saturates at 255, outside of the nucleus
    return np.asarray(cv2.LUT(level, CHROMATIN_PROFILE), np.float32)


def _fibres(noise: NoiseFields, window: PaintWindow, appearance: Appearance, bend: Map) -> Map:
    """Return the haematoxylin density of fibres, as if the whole window were stroma: wavy streaks with gaps."""
    cos, sin = np.cos(appearance.fibre_angle), np.sin(appearance.fibre_angle)
    x, y = np.arange(window.w, dtype=np.float32), np.arange(window.h, dtype=np.float32)[:, None]
    start = (
        (window.x * cos + window.y * sin) % NOISE_PX + NOISE_PX,
        (window.y * cos - window.x * sin) % NOISE_PX + NOISE_PX,
    )
    along = x * np.float32(cos) + (y * np.float32(sin) + np.float32(start[0]))
    across = x * np.float32(-sin) + (y * np.float32(cos) + np.float32(start[1])) + bend
    streaks = cv2.remap(noise.fibre, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(cv2.LUT(streaks, FIBRE_DENSITY), np.float32)


def _double_folds(density: Map, fields: Fields, window: PaintWindow) -> Map:
    """Add the second layer of tissue in folds."""
    if fields.fold is None:
        return density
    fold = soft_edge(window.resample(fields.fold, fields.px), 3.0)
    return np.asarray(density * (1 + FOLD_DENSITY * fold), np.float32)


def _add_artefacts(od: Map, fields: Fields, appearance: Appearance, window: PaintWindow) -> Map:
    """Add artefacts over the tissue: a patch out of focus, a bubble's rim, pen. Changes `od` and returns it."""
    if fields.blur is not None and (field := window.resample(fields.blur, fields.px)).max() > -BLUR_EDGE_UM:
        share = soft_edge(field, 2 * BLUR_EDGE_UM)[..., None]
        od += share * (cv2.GaussianBlur(od, (0, 0), DEFOCUS_UM / appearance.mpp) - od)
    if fields.bubble is not None:
        rim = window.resample(fields.bubble, fields.px) / np.float32(RIM_UM)
        od += np.float32(0.25) * cv2.exp(-rim * rim)[..., None]
    if fields.pen is not None:
        od += soft_edge(window.resample(fields.pen, fields.px), 6.0)[..., None] * np.asarray(appearance.pen, np.float32)
    return od
