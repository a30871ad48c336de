"""The cells of a synthetic slide: a jittered lattice, the kind of each cell, and its staining and shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.laboratory import Laboratory
from her2batch.synthetic.noise import Map
from her2batch.synthetic.outlines import smooth_noise
from her2batch.synthetic.painting import MARGIN, RIM_CELLS, Cells

Stain = Literal["her2", "er", "pr", "ki67"]
CellPattern = Literal["usual", "cytoplasmic", "weak-complete"]
"""Staining of tumour cells: usual; DAB only in the cytoplasm; complete membranes as pale as faint ones."""

EMPTY, STROMA, FIBROBLAST, LYMPHOCYTE, TUMOUR, ERYTHROCYTE = range(6)
KIND_NAMES = ("empty", "stroma", "fibroblast", "lymphocyte", "tumour", "erythrocyte")
"""Names of the kinds of cells, by their number."""


class Lattice(NamedTuple):
    """Cells and their kinds, (rows, cols) each.

    pitch: edge of a lattice square, px.  x, y: position of the cell, level-0 px.  row, column: field px of the cell.
    kind: EMPTY, STROMA (matrix, without a nucleus), FIBROBLAST, LYMPHOCYTE, TUMOUR or ERYTHROCYTE.
    """

    pitch: int
    x: Map
    y: Map
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    kind: NDArray[np.uint8]


def make_lattice(
    rng: np.random.Generator, size: tuple[int, int], mpp: float, px: int, tissue: Map, islands: Map
) -> Lattice:
    """Return a jittered lattice of cells over the slide; the kind of a cell depends on its position.

    size: width, height, level-0 px at `mpp` µm/px.  tissue, islands: positive inside tissue and tumour, on a grid of
    `px` level-0 px.
    """
    width, height = size
    pitch = max(round(rng.uniform(9.5, 12.5) / mpp), MARGIN // 2)
    rows, cols = -(-height // pitch) + 2 * RIM_CELLS, -(-width // pitch) + 2 * RIM_CELLS
    jitter = rng.uniform(-0.36, 0.36, (2, rows, cols)).astype(np.float32)
    y = ((np.arange(rows)[:, None] - RIM_CELLS + 0.5 + jitter[0]) * pitch).astype(np.float32)
    x = ((np.arange(cols)[None, :] - RIM_CELLS + 0.5 + jitter[1]) * pitch).astype(np.float32)
    h, w = tissue.shape
    row, column = np.clip(y // px, 0, h - 1).astype(np.intp), np.clip(x // px, 0, w - 1).astype(np.intp)
    on_slide = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    um = px * mpp
    inflamed, lumen = smooth_noise(rng, tissue.shape, 30 / um), smooth_noise(rng, tissue.shape, 14 / um)
    draw = rng.random((rows, cols))
    kind = np.full((rows, cols), STROMA, np.uint8)
    kind[draw < 0.30] = FIBROBLAST
    kind[draw < np.clip(0.25 * (inflamed[row, column] - 0.8), 0.02, 0.8)] = LYMPHOCYTE
    kind[islands[row, column] > 0] = TUMOUR
    kind[(lumen[row, column] > 2.0) | (draw > 0.985)] = EMPTY
    kind[(tissue[row, column] <= 0) | ~on_slide] = EMPTY
    return Lattice(pitch, x, y, row, column, kind)


def add_blood(rng: np.random.Generator, lattice: Lattice, share: float, um: float, shape: tuple[int, int]) -> Lattice:
    """Return the lattice with erythrocytes, in patches, in a share of the places outside tumour.

    um, shape: µm/px and extent of the grid over the slide to which the lattice's rows and columns refer.
    """
    if share <= 0:
        return lattice
    patches = smooth_noise(rng, shape, 12 / um)[lattice.row, lattice.column]
    outside = np.isin(lattice.kind, (STROMA, FIBROBLAST, LYMPHOCYTE))
    if not outside.any():
        return lattice
    limit = np.quantile(patches[outside], 1 - share)
    return lattice._replace(kind=np.where(outside & (patches > limit), ERYTHROCYTE, lattice.kind).astype(np.uint8))


def assign_staining(
    rng: np.random.Generator, lattice: Lattice, mix: Sequence[float], um: float, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return 0 (none) … 3 (intense) per tumour cell, in exactly the shares of the mix, in patches of similar cells."""
    patches = smooth_noise(rng, shape, 60 / um)[lattice.row, lattice.column]
    order = 0.8 * patches + 0.6 * rng.standard_normal(patches.shape)
    tumour = lattice.kind == TUMOUR
    ranks = order[tumour].argsort(kind="stable").argsort(kind="stable")
    ends = np.round(np.cumsum(mix)[:3] * tumour.sum())
    out = np.zeros(tumour.shape, np.uint8)
    out[tumour] = np.searchsorted(ends, ranks, side="right")
    return out


class MembraneStain(NamedTuple):
    """The staining of one class of HER2 cells.

    ring: DAB of the membrane (mean, σ).  share: stained share of the membrane's length (least, most).  width_um: width
    on each side of the border.  body: DAB of the cytoplasm.
    """

    ring: tuple[float, float]
    share: tuple[float, float]
    width_um: float
    body: float


MEMBRANE_STAINS = (
    MembraneStain((0.0, 0.0), (0.0, 0.0), 0.40, 0.0),
    MembraneStain((0.22, 0.03), (0.40, 0.60), 0.50, 0.01),
    MembraneStain((0.42, 0.07), (0.85, 1.00), 0.50, 0.03),
    MembraneStain((1.10, 0.20), (0.97, 1.10), 0.65, 0.10),
)
"""None, faint, moderate, intense: DAB density along its unit vector; 1 absorbs about 72 % of green light."""

NUCLEAR_DAB = (0.0, 0.22, 0.50, 1.0)
"""DAB density of ER or PR nuclei: negative, weak, moderate, strong."""

MAX_CYTOPLASM_DAB = 0.02
"""Greatest DAB density in the cytoplasm of tumour cells without HER2, in patches. In a thumbnail it resembles 1+."""

NUCLEUS_SIZES = {FIBROBLAST: (0.40, 0.10), LYMPHOCYTE: (0.27, 0.24), TUMOUR: (0.35, 0.28), ERYTHROCYTE: (0.32, 0.29)}
"""Half axes of nuclei, and of erythrocytes, as shares of the cell's diameter."""

NUCLEUS_DARKNESS = {FIBROBLAST: 1.2, LYMPHOCYTE: 1.5, TUMOUR: 1.0, ERYTHROCYTE: 0.1}
"""Haematoxylin density of nuclei relative to the slide's usual density."""

ERYTHROCYTE_DAB = (0.12, 0.30)
"""DAB density of erythrocytes, whose peroxidase turns the chromogen: least, most."""

CYTOPLASMIC_DAB = (0.25, 0.55)
"""DAB density of the cytoplasm of the pattern `cytoplasmic`: least, most."""

BACKGROUND_SHARES = (0.0, 0.5, 0.5, 0.7, 1.0, 0.0)
"""Cytoplasmic background of each kind of cell, as a share of the laboratory's."""


class CellStaining(NamedTuple):
    """What decides how cells are drawn, apart from their lattice and categories.

    fibre_angle: direction of fibroblasts, radians.
    """

    stain: Stain
    pattern: CellPattern
    mpp: float
    fibre_angle: float
    laboratory: Laboratory


def make_cells(rng: np.random.Generator, lattice: Lattice, staining: NDArray[np.uint8], recipe: CellStaining) -> Cells:
    """Draw the densities and shapes of all cells.  staining: (rows, cols), 0 … 3 per tumour cell."""
    kind, shape = lattice.kind, lattice.kind.shape
    tumour, laboratory = kind == TUMOUR, recipe.laboratory
    gain = laboratory.dab_strength * rng.uniform(0.9, 1.1)
    usual_h = rng.uniform(0.18, 0.32) * laboratory.counterstain
    cytoplasm_d = rng.uniform(0.0, MAX_CYTOPLASM_DAB) * np.maximum(1 + 0.7 * smooth_noise(rng, shape, 6.0), 0)
    variation = np.clip(rng.normal(1, 0.18, shape), 0.5, 1.6)
    stains = _membrane_stains(recipe.pattern)
    means, sigmas = np.array([stain.ring for stain in stains]).T
    shares = np.array([stain.share for stain in stains])[staining]
    ring = gain * (means[staining] + sigmas[staining] * rng.standard_normal(shape)).clip(0)
    nuclear = gain * np.array(NUCLEAR_DAB)[staining] * np.clip(rng.normal(1, 0.15, shape), 0.5, 1.5)
    body = gain * np.array([stain.body for stain in stains])[staining] * rng.uniform(0.5, 1.5, shape) + cytoplasm_d
    her2 = recipe.stain == "her2"
    darkness = np.array([0.0, 0.0, *(NUCLEUS_DARKNESS[k] for k in (FIBROBLAST, LYMPHOCYTE, TUMOUR, ERYTHROCYTE))])[kind]
    fields = {
        "nucleus_h": usual_h * variation * darkness,
        "nucleus_d": tumour * nuclear * (not her2),
        "ring_d": tumour * ring * her2,
        "ring_share": rng.uniform(shares[..., 0], shares[..., 1]),
        "ring_px": np.array([stain.width_um for stain in stains])[staining] / recipe.mpp,
        "body_h": (tumour * rng.uniform(0.03, 0.06, shape) + 0.05 * (kind == LYMPHOCYTE)) * laboratory.counterstain,
        "body_d": tumour * (body if her2 else cytoplasm_d),
        "fibre": np.isin(kind, (STROMA, FIBROBLAST, LYMPHOCYTE)) * rng.uniform(0.8, 1.2, shape)
        * laboratory.counterstain,
    }  # fmt: skip
    ellipse = _nucleus_ellipses(rng, kind, lattice.pitch, recipe.fibre_angle)
    _add_background(rng, fields, kind, gain, recipe)
    arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in fields.items()}
    return Cells(lattice.pitch, lattice.x, lattice.y, ellipse, **arrays)


def _membrane_stains(pattern: CellPattern) -> tuple[MembraneStain, ...]:
    """Return the membrane staining of the four categories in a pattern."""
    none, faint, moderate, intense = MEMBRANE_STAINS
    if pattern == "weak-complete":
        return none, faint, moderate._replace(ring=faint.ring, body=faint.body), intense
    return (none,) * 4 if pattern == "cytoplasmic" else MEMBRANE_STAINS


def _add_background(
    rng: np.random.Generator,
    fields: dict[str, NDArray[np.float64]],
    kind: NDArray[np.uint8],
    gain: float,
    recipe: CellStaining,
) -> None:
    """Add DAB outside membranes and nuclei of tumour: background, erythrocytes, cytoplasmic staining. In place.

    The generator is used last, so that slides without any of these have the same cells as slides with them.
    """
    if (kind == ERYTHROCYTE).any():
        fields["nucleus_d"] = np.where(
            kind == ERYTHROCYTE, gain * rng.uniform(*ERYTHROCYTE_DAB, kind.shape), fields["nucleus_d"]
        )
    if recipe.pattern == "cytoplasmic":
        fields["body_d"] = fields["body_d"] + (kind == TUMOUR) * gain * rng.uniform(*CYTOPLASMIC_DAB, kind.shape)
    if recipe.laboratory.cytoplasm > 0:
        patches = np.maximum(1 + 0.5 * smooth_noise(rng, kind.shape, 4.0), 0)
        fields["body_d"] = fields["body_d"] + recipe.laboratory.cytoplasm * np.array(BACKGROUND_SHARES)[kind] * patches


def _nucleus_ellipses(rng: np.random.Generator, kind: NDArray[np.uint8], pitch: int, fibre_angle: float) -> Map:
    """Return nuclei as quadratic forms: (rows, cols, 3) float32, px⁻². Fibroblast nuclei follow the fibres."""
    sizes = np.array([NUCLEUS_SIZES.get(k, (0.1, 0.1)) for k in range(6)])[kind] * pitch
    long, short = np.moveaxis(sizes * np.clip(rng.normal(1, 0.12, sizes.shape), 0.7, 1.4), -1, 0)
    angle = np.where(
        kind == FIBROBLAST, fibre_angle + rng.normal(0, 0.25, kind.shape), rng.uniform(0, np.pi, kind.shape)
    )
    cos, sin = np.cos(angle), np.sin(angle)
    a, c = (cos / long) ** 2 + (sin / short) ** 2, (sin / long) ** 2 + (cos / short) ** 2
    b = 2 * sin * cos * (long**-2 - short**-2)
    return np.ascontiguousarray(np.stack([a, b, c], axis=2), np.float32)
