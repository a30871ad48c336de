"""The content of a synthetic slide: its ground truth, and the layout of tissue, cells and artefacts.

A slide's score is derived from the mix of its cells by the wording of ASCO/CAP 2018 (affirmed 2023), never the other
way round, so that label and pixels agree. All random numbers come from generators seeded by the slide. Results on these
slides describe the software, not medicine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.painting import (
    MARGIN,
    RIM_CELLS,
    Appearance,
    Cells,
    Fields,
    Map,
    NoiseFields,
    Vector,
    make_noise_fields,
)

FIELD_UM = 8.0
"""µm/px of the ground-truth masks."""

RULE_SHARE, STRAY_SHARE, POSITIVE_SHARE = 0.10, 0.01, 0.01
"""The 10 % of tumour cells of the HER2 guideline; the share from which intense cells are more than incidental; the 1 %
of nuclei from which ER and PR are positive (ASCO/CAP 2020)."""

Stain = Literal["her2", "er", "pr"]
Artefact = Literal["pen", "fold", "blur", "bubble"]
ARTEFACTS: tuple[Artefact, ...] = ("pen", "fold", "blur", "bubble")


class CellMix(NamedTuple):
    """Shares of the tumour cells by their staining; they add up to 1.

    HER2: no membrane staining · faint, incomplete · weak to moderate, complete · intense, complete.
    ER, PR: nuclei that are negative · weak · moderate · strong.
    """

    none: float
    faint: float
    moderate: float
    intense: float


TYPICAL_MIXES: dict[str, CellMix] = {
    "0": CellMix(0.98, 0.02, 0.0, 0.0),
    "1+": CellMix(0.50, 0.48, 0.02, 0.0),
    "2+": CellMix(0.25, 0.35, 0.38, 0.02),
    "3+": CellMix(0.08, 0.10, 0.22, 0.60),
}
"""A mix of each score that is far from the adjacent scores."""


def ihc_score(mix: CellMix) -> str:
    """Return the score, '0' … '3+', by the 10 % rule.  Source: ASCO/CAP 2018, affirmed 2023."""
    if mix.intense > RULE_SHARE:
        return "3+"
    if mix.moderate > RULE_SHARE or mix.intense > STRAY_SHARE:
        return "2+"
    return "1+" if mix.faint + mix.moderate > RULE_SHARE else "0"


@dataclass(frozen=True)
class Site:
    """A site that stains and scans slides.

    haematoxylin, dab: unit vectors of its stains.  white: R, G, B of the background.  jpeg_quality: of its scanner.
    gain: strength of its DAB.
    """

    haematoxylin: Vector
    dab: Vector
    white: Vector
    jpeg_quality: int
    gain: float


SITES: dict[str, Site] = {
    "north": Site((0.650, 0.704, 0.286), (0.269, 0.568, 0.778), (243.0, 243.0, 244.0), 85, 1.0),
    "south": Site((0.628, 0.655, 0.420), (0.345, 0.575, 0.742), (234.0, 233.0, 242.0), 75, 0.9),
}
"""`north` has the vectors of Ruifrok & Johnston 2001; `south` is closer to real cores of a TMA."""

PEN_DENSITIES: tuple[Vector, ...] = ((0.75, 0.18, 0.55), (0.95, 0.62, 0.12), (0.95, 0.95, 0.90), (0.10, 0.85, 0.70))
"""Optical density of green, blue, black and red pen in R, G, B."""


@dataclass(frozen=True)
class SlideTruth:
    """The ground truth of a slide, known before it is painted. Sizes in level-0 px, mpp in µm/px.

    ish: '+', '-' or None, of a 2+ slide.  patient_name: invented, printed on label and macro and in the metadata.
    """

    slide_id: str
    mix: CellMix = TYPICAL_MIXES["2+"]
    stain: Stain = "her2"
    ish: str | None = None
    patient_id: str = "P001"
    patient_name: str = "Muster, Erika"
    site: str = "north"
    artefacts: tuple[Artefact, ...] = ()
    pieces: int = 1
    width: int = 1500
    height: int = 1200
    mpp: float = 0.25

    @property
    def her2(self) -> str | None:
        """The HER2 IHC score; None for another stain."""
        return ihc_score(self.mix) if self.stain == "her2" else None

    def receptor(self, stain: str) -> str | None:
        """Return '+' or '-' for ER or PR; None when the slide is not stained for it."""
        if stain != self.stain:
            return None
        return "+" if 1 - self.mix.none >= POSITIVE_SHARE else "-"


@dataclass(frozen=True)
class SyntheticTissue:
    """A slide ready to be painted, and its ground truth.

    masks: name → (h, w) bool on a grid of `fields.px` level-0 px: tissue, tumour and each artefact.  regions: (h, w)
    uint8, 1 + the score of the tumour around each px (position in IHC_SCORES), 0 without tumour or for another stain.
    mix: the mix of the tumour cells as placed.  n_cells: their number.
    """

    cells: Cells
    fields: Fields
    noise: NoiseFields
    appearance: Appearance
    masks: dict[str, NDArray[np.bool_]]
    regions: NDArray[np.uint8]
    mix: CellMix
    n_cells: int


def rng_for(seed: int, *key: str | int) -> np.random.Generator:
    """Return the random generator of a key (a slide, a patient), independent of the order of calls."""
    digest = hashlib.sha256(repr(key).encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])


def make_tissue(truth: SlideTruth, seed: int = 0) -> SyntheticTissue:
    """Lay out a slide's tissue, cells and artefacts.

    The keys of the random generators are part of the data: another key gives other slides.
    """
    px = max(1, round(FIELD_UM / truth.mpp))
    shape = -(-truth.height // px), -(-truth.width // px)
    um = px * truth.mpp
    tissue = tissue_outline(rng_for(seed, truth.slide_id, "outline"), shape, um, truth.pieces)
    rng = rng_for(seed, truth.slide_id, "look")
    site = SITES[truth.site]
    pen, fibre_angle = PEN_DENSITIES[rng.integers(len(PEN_DENSITIES))], rng.uniform(0, np.pi)
    appearance = Appearance(truth.mpp, site.haematoxylin, site.dab, site.white, pen, fibre_angle)
    names = truth.artefacts
    artefacts = {name: artefact_outline(name, rng_for(seed, truth.slide_id, name), tissue, um) for name in names}
    thickness, shade = 1 + 0.07 * smooth_noise(rng, shape, 150 / um), 0.004 * smooth_noise(rng, shape, 400 / um)
    fields = Fields(px, tissue, thickness, shade, **artefacts)
    islands = smooth_noise(rng, shape, 55 / um)
    islands -= np.quantile(islands[tissue > 0], rng.uniform(0.25, 0.45))
    lattice = _make_lattice(rng_for(seed, truth.slide_id, "lattice"), truth, px, tissue, islands)
    staining = _assign_staining(rng_for(seed, truth.slide_id, "staining"), lattice, truth.mix, um, shape)
    cells = _make_cells(rng_for(seed, truth.slide_id, "cells"), lattice, staining, truth, appearance)
    counts = np.bincount(staining[lattice.kind == TUMOUR], minlength=4)
    n_cells = int(counts.sum())
    masks = {"tissue": tissue > 0, "tumour": (islands > 0) & (tissue > 0)}
    masks |= {name: field > 0 for name, field in artefacts.items()}
    noise = make_noise_fields(rng_for(seed, truth.slide_id, "sheets"), truth.mpp)
    mix = CellMix(*(counts / max(n_cells, 1)).tolist())
    regions = _score_regions(lattice, staining, masks["tumour"] & (truth.stain == "her2"), um)
    return SyntheticTissue(cells, fields, noise, appearance, masks, regions, mix, n_cells)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Map:
    """Return smooth noise: (h, w) float32, mean 0, σ 1."""
    noise = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), np.float32)


def tissue_outline(rng: np.random.Generator, shape: tuple[int, int], um: float, pieces: int) -> Map:
    """Return one to three adjacent pieces of tissue: (h, w) float32, approximate distance inside the outline in µm.

    Each piece is an ellipse whose radius varies with the angle (harmonics 2 to 7).
    """
    h, w = shape
    y, x = np.mgrid[:h, :w].astype(np.float32)
    wide = w >= h
    long, across = (x, y) if wide else (y, x)
    length, breadth = (w, h) if wide else (h, w)
    ends = np.cumsum(np.r_[0.0, rng.dirichlet([12.0] * pieces)]) * length
    out = np.full(shape, -np.inf, np.float32)
    for start, end in pairwise(ends):
        radii = (end - start) * rng.uniform(0.38, 0.43), breadth * rng.uniform(0.36, 0.42)
        dx = (long - (start + end) / 2) / radii[0]
        dy = (across - breadth / 2 - rng.uniform(-0.03, 0.03) * breadth) / radii[1]
        angle, radius = np.arctan2(dy, dx), np.ones(shape)
        for k in range(2, 8):
            radius += rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        out = np.maximum(out, ((radius - np.hypot(dx, dy)) * min(radii) * um).astype(np.float32))
    return out


def artefact_outline(name: Artefact, rng: np.random.Generator, tissue: Map, um: float) -> Map:
    """Return the extent of an artefact: (h, w) float32, µm inside its outline, on the tissue's grid of `um` µm/px."""
    h, w = tissue.shape
    inside = np.argwhere(tissue > 0.3 * tissue.max())
    cy, cx = inside[rng.integers(len(inside))].astype(float)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    if name in ("blur", "bubble"):
        radius = um * min(h, w) * (rng.uniform(0.16, 0.24) if name == "blur" else rng.uniform(0.07, 0.12))
        return np.asarray(radius - um * np.hypot((x - cx) * rng.uniform(0.8, 1.25), y - cy), np.float32)
    if name == "fold":
        angle, half = rng.uniform(0, np.pi), rng.uniform(14, 26)
        along = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) * um
        off = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) * um + 25 * np.sin(along / rng.uniform(80, 160))
        return np.asarray(np.minimum(half - np.abs(off), 0.35 * um * min(h, w) - np.abs(along)), np.float32)
    return _pen_stroke(rng, (cx, cy), tissue.shape, um)


def _pen_stroke(rng: np.random.Generator, centre: tuple[float, float], shape: tuple[int, ...], um: float) -> Map:
    """Return the extent of a pen stroke, an arc around the centre: (h, w) float32, µm inside its outline."""
    h, w = shape
    radius, start = min(h, w) * rng.uniform(0.2, 0.35), rng.uniform(0, 2 * np.pi)
    angles = start + np.linspace(0, rng.uniform(1.5, 4.5), 60)
    wobble = 1 + 0.12 * np.sin(2.3 * angles + start)
    points = np.stack([centre[0] + radius * wobble * np.cos(angles), centre[1] + radius * wobble * np.sin(angles)], 1)
    canvas = np.full((h, w), 255, np.uint8)
    cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, 0, 1)
    half = min(rng.uniform(60, 100), 0.09 * um * min(h, w))
    return np.asarray(half - um * cv2.distanceTransform(canvas, cv2.DIST_L2, 5), np.float32)


EMPTY, STROMA, FIBROBLAST, LYMPHOCYTE, TUMOUR = range(5)


class Lattice(NamedTuple):
    """Cells and their kinds, (rows, cols) each.

    pitch: edge of a lattice square, px.  x, y: position of the cell, level-0 px.  row, column: field px of the cell.
    kind: EMPTY, STROMA, FIBROBLAST, LYMPHOCYTE or TUMOUR.
    """

    pitch: int
    x: Map
    y: Map
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    kind: NDArray[np.uint8]


def _make_lattice(rng: np.random.Generator, truth: SlideTruth, px: int, tissue: Map, islands: Map) -> Lattice:
    """Return a jittered lattice of cells over the slide; the kind of a cell depends on its position."""
    pitch = max(round(rng.uniform(9.5, 12.5) / truth.mpp), MARGIN // 2)
    rows, cols = -(-truth.height // pitch) + 2 * RIM_CELLS, -(-truth.width // pitch) + 2 * RIM_CELLS
    jitter = rng.uniform(-0.36, 0.36, (2, rows, cols)).astype(np.float32)
    y = ((np.arange(rows)[:, None] - RIM_CELLS + 0.5 + jitter[0]) * pitch).astype(np.float32)
    x = ((np.arange(cols)[None, :] - RIM_CELLS + 0.5 + jitter[1]) * pitch).astype(np.float32)
    h, w = tissue.shape
    row, column = np.clip(y // px, 0, h - 1).astype(np.intp), np.clip(x // px, 0, w - 1).astype(np.intp)
    on_slide = (x >= 0) & (y >= 0) & (x < truth.width) & (y < truth.height)
    um = px * truth.mpp
    inflamed, lumen = smooth_noise(rng, tissue.shape, 30 / um), smooth_noise(rng, tissue.shape, 14 / um)
    draw = rng.random((rows, cols))
    kind = np.full((rows, cols), STROMA, np.uint8)
    kind[draw < 0.30] = FIBROBLAST
    kind[draw < np.clip(0.25 * (inflamed[row, column] - 0.8), 0.02, 0.8)] = LYMPHOCYTE
    kind[islands[row, column] > 0] = TUMOUR
    kind[(lumen[row, column] > 2.0) | (draw > 0.985)] = EMPTY
    kind[(tissue[row, column] <= 0) | ~on_slide] = EMPTY
    return Lattice(pitch, x, y, row, column, kind)


def _assign_staining(
    rng: np.random.Generator, lattice: Lattice, mix: CellMix, um: float, shape: tuple[int, int]
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

NUCLEUS_SIZES = {FIBROBLAST: (0.40, 0.10), LYMPHOCYTE: (0.27, 0.24), TUMOUR: (0.35, 0.28)}
"""Half axes of nuclei, as shares of the cell's diameter."""

NUCLEUS_DARKNESS = {FIBROBLAST: 1.2, LYMPHOCYTE: 1.5, TUMOUR: 1.0}
"""Haematoxylin density of nuclei relative to the slide's usual density."""


def _make_cells(
    rng: np.random.Generator, lattice: Lattice, staining: NDArray[np.uint8], truth: SlideTruth, appearance: Appearance
) -> Cells:
    """Draw the densities and shapes of all cells."""
    kind, shape = lattice.kind, lattice.kind.shape
    tumour = kind == TUMOUR
    gain = SITES[truth.site].gain * rng.uniform(0.9, 1.1)
    usual_h = rng.uniform(0.18, 0.32)
    cytoplasm_d = rng.uniform(0.0, MAX_CYTOPLASM_DAB) * np.maximum(1 + 0.7 * smooth_noise(rng, shape, 6.0), 0)
    variation = np.clip(rng.normal(1, 0.18, shape), 0.5, 1.6)
    means, sigmas = np.array([stain.ring for stain in MEMBRANE_STAINS]).T
    shares = np.array([stain.share for stain in MEMBRANE_STAINS])[staining]
    ring = gain * (means[staining] + sigmas[staining] * rng.standard_normal(shape)).clip(0)
    nuclear = gain * np.array(NUCLEAR_DAB)[staining] * np.clip(rng.normal(1, 0.15, shape), 0.5, 1.5)
    body = (
        gain * np.array([stain.body for stain in MEMBRANE_STAINS])[staining] * rng.uniform(0.5, 1.5, shape)
        + cytoplasm_d
    )
    her2 = truth.stain == "her2"
    darkness = np.array([0.0, 0.0, *(NUCLEUS_DARKNESS[k] for k in (FIBROBLAST, LYMPHOCYTE, TUMOUR))])[kind]
    fields = {
        "nucleus_h": usual_h * variation * darkness,
        "nucleus_d": tumour * nuclear * (not her2),
        "ring_d": tumour * ring * her2,
        "ring_share": rng.uniform(shares[..., 0], shares[..., 1]),
        "ring_px": np.array([stain.width_um for stain in MEMBRANE_STAINS])[staining] / truth.mpp,
        "body_h": tumour * rng.uniform(0.03, 0.06, shape) + 0.05 * (kind == LYMPHOCYTE),
        "body_d": tumour * (body if her2 else cytoplasm_d),
        "fibre": np.isin(kind, (STROMA, FIBROBLAST, LYMPHOCYTE)) * rng.uniform(0.8, 1.2, shape),
    }
    arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in fields.items()}
    ellipse = _nucleus_ellipses(rng, kind, lattice.pitch, appearance.fibre_angle)
    return Cells(lattice.pitch, lattice.x, lattice.y, ellipse, **arrays)


def _nucleus_ellipses(rng: np.random.Generator, kind: NDArray[np.uint8], pitch: int, fibre_angle: float) -> Map:
    """Return nuclei as quadratic forms: (rows, cols, 3) float32, px⁻². Fibroblast nuclei follow the fibres."""
    sizes = np.array([NUCLEUS_SIZES.get(k, (0.1, 0.1)) for k in range(5)])[kind] * pitch
    long, short = np.moveaxis(sizes * np.clip(rng.normal(1, 0.12, sizes.shape), 0.7, 1.4), -1, 0)
    angle = np.where(
        kind == FIBROBLAST, fibre_angle + rng.normal(0, 0.25, kind.shape), rng.uniform(0, np.pi, kind.shape)
    )
    cos, sin = np.cos(angle), np.sin(angle)
    a, c = (cos / long) ** 2 + (sin / short) ** 2, (sin / long) ** 2 + (cos / short) ** 2
    b = 2 * sin * cos * (long**-2 - short**-2)
    return np.ascontiguousarray(np.stack([a, b, c], axis=2), np.float32)


REGION_WINDOW_UM = 240.0
"""Edge of the window for a region's score: about the field of view at 20×."""


def _score_regions(
    lattice: Lattice, staining: NDArray[np.uint8], tumour: NDArray[np.bool_], um: float
) -> NDArray[np.uint8]:
    """Return the score around each px of tumour: (h, w) uint8, 1 + position in IHC_SCORES, 0 elsewhere."""
    is_tumour = lattice.kind == TUMOUR
    position = np.ravel_multi_index((lattice.row[is_tumour], lattice.column[is_tumour]), tumour.shape)
    edge = 2 * round(REGION_WINDOW_UM / um / 2) + 1
    counts = []
    for k in range(4):
        count = np.bincount(position[staining[is_tumour] == k], minlength=tumour.size).reshape(tumour.shape)
        counts.append(cv2.boxFilter(count.astype(np.float32), -1, (edge, edge), borderType=cv2.BORDER_CONSTANT))
    _, faint, moderate, intense = counts / np.maximum(np.sum(counts, axis=0), 1e-6)
    cases = [intense > RULE_SHARE, (moderate > RULE_SHARE) | (intense > STRAY_SHARE), faint + moderate > RULE_SHARE]
    return np.asarray(np.select(cases, [4, 3, 2], 1) * tumour, np.uint8)
