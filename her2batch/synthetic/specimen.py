"""The content of a synthetic slide: its ground truth, and the layout of tissue, cells and artefacts.

A slide's score is derived from the mix of its cells by the wording of ASCO/CAP 2018 (affirmed 2023), never the other
way round, so that label and pixels agree. All random numbers come from generators seeded by the slide. Results on these
slides describe the software, not medicine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.cell_layout import (
    TUMOUR,
    CellPattern,
    CellStaining,
    Lattice,
    Stain,
    add_blood,
    assign_staining,
    make_cells,
    make_lattice,
)
from her2batch.synthetic.laboratory import Laboratory, laboratory_of
from her2batch.synthetic.noise import Map, NoiseFields, make_noise_fields
from her2batch.synthetic.outlines import Artefact, artefact_outline, rng_for, smooth_noise, tissue_outline
from her2batch.synthetic.painting import Appearance, Cells, Fields, Vector

FIELD_UM = 8.0
"""µm/px of the ground-truth masks."""

RULE_SHARE, STRAY_SHARE, POSITIVE_SHARE = 0.10, 0.01, 0.01
"""The 10 % of tumour cells of the HER2 guideline; the share from which intense cells are more than incidental; the 1 %
of nuclei from which ER and PR are positive (ASCO/CAP 2020)."""

SlideKind = Literal["usual", "weak-complete", "sparse", "cytoplasmic", "nuclear", "he", "glass", "noise", "grey"]
"""Kinds of slides; usual: a slide that can be scored.

weak-complete: the complete membranes of the third category are as pale as faint ones; the score is that of the mix.
All others cannot be scored for HER2, whatever their label says. sparse: 1 % of the nucleated cells are tumour.
cytoplasmic: DAB in the cytoplasm alone. nuclear: nuclei are stained as for ER. he: haematoxylin and eosin, no DAB.
glass: no tissue. noise: random colours. grey: a grey copy.
"""

UNSCORABLE: tuple[SlideKind, ...] = ("sparse", "cytoplasmic", "nuclear", "he", "glass", "noise", "grey")
"""Kinds of slides that have no HER2 score."""

SPARSE_TUMOUR_SHARE = 0.0035
"""Share of the tissue's area that is tumour on a sparse slide: there are three times as many cells in tumour."""

PEN_DENSITIES: tuple[Vector, ...] = ((0.75, 0.18, 0.55), (0.95, 0.62, 0.12), (0.95, 0.95, 0.90), (0.10, 0.85, 0.70))
"""Optical density of green, blue, black and red pen in R, G, B."""

EDGE_UM = 60.0
"""Distance over which the edge artefact fades."""


class CellMix(NamedTuple):
    """Shares of the tumour cells by their staining; they add up to 1.

    HER2: no membrane staining · faint, incomplete · weak to moderate, complete · intense, complete.
    ER, PR, Ki-67: nuclei that are negative · weak · moderate · strong.
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


def positive_share(mix: CellMix) -> float:
    """Return the share of nuclei that are stained, 0–1, without the rounding errors of the sum."""
    return round(1 - mix.none, 9)


def h_score(mix: CellMix) -> float:
    """Return the H-score, 0–300: percentages of nuclei times their intensity.  Source: McCarty et al. 1985."""
    return 100 * (mix.faint + 2 * mix.moderate + 3 * mix.intense)


def allred_score(mix: CellMix) -> int:
    """Return the Allred score, 0 or 2–8: proportion 1–5 plus mean intensity 1–3.  Source: Allred et al. 1998."""
    positive = positive_share(mix)
    if positive == 0:
        return 0
    proportion = 1 + sum(positive >= limit for limit in (0.01, 0.10, 1 / 3, 2 / 3))
    return proportion + int(h_score(mix) / 100 / positive + 0.5)


@dataclass(frozen=True)
class SlideTruth:
    """The ground truth of a slide, known before it is painted. Sizes in level-0 px, mpp in µm/px.

    ish: '+', '-' or None, of a 2+ slide.  patient_name: invented, printed on label and macro and in the metadata.
    site: name of its laboratory: `north`, `south` or `lab-NUMBER`.
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
    kind: SlideKind = "usual"

    @property
    def her2(self) -> str | None:
        """The HER2 IHC score; None for another stain, and where nothing can be scored."""
        return ihc_score(self.mix) if self.stain == "her2" and self.kind not in UNSCORABLE else None

    def receptor(self, stain: str) -> str | None:
        """Return '+' or '-' for ER or PR; None when the slide is not stained for it, or has nothing to score."""
        if stain != self.stain or self.kind in UNSCORABLE:
            return None
        return "+" if positive_share(self.mix) >= POSITIVE_SHARE else "-"


@dataclass(frozen=True)
class SyntheticTissue:
    """A slide ready to be painted, and its ground truth.

    masks: name → (h, w) bool on a grid of `fields.px` level-0 px: tissue, tumour and each artefact.  regions: (h, w)
    uint8, 1 + the score of the tumour around each px (position in IHC_SCORES), 0 without tumour or for another stain.
    mix: the mix of the tumour cells as placed.  n_cells: their number.  lattice: places and kinds of all cells, and
    staining: the category, 0 … 3, of the tumour cells among them, (rows, cols).
    """

    cells: Cells
    fields: Fields
    noise: NoiseFields
    appearance: Appearance
    masks: dict[str, NDArray[np.bool_]]
    regions: NDArray[np.uint8]
    mix: CellMix
    n_cells: int
    lattice: Lattice
    staining: NDArray[np.uint8]


def make_tissue(truth: SlideTruth, seed: int = 0, laboratory: Laboratory | None = None) -> SyntheticTissue:
    """Lay out a slide's tissue, cells and artefacts.

    laboratory: by default that of the slide's site.  The keys of the random generators are part of the data: another
    key gives other slides.
    """
    laboratory = laboratory or laboratory_of(truth.site)
    px = max(1, round(FIELD_UM / truth.mpp))
    shape = -(-truth.height // px), -(-truth.width // px)
    um = px * truth.mpp
    tissue = tissue_outline(rng_for(seed, truth.slide_id, "outline"), shape, um, truth.pieces)
    if truth.kind == "glass":
        tissue = np.full_like(tissue, -1000.0)
    rng = rng_for(seed, truth.slide_id, "look")
    pen, fibre_angle = PEN_DENSITIES[rng.integers(len(PEN_DENSITIES))], rng.uniform(0, np.pi)
    names = () if truth.kind == "glass" else truth.artefacts
    artefacts = {name: artefact_outline(name, rng_for(seed, truth.slide_id, name), tissue, um) for name in names}
    fields = _draw_fields(rng, tissue, px, um, artefacts, laboratory)
    islands = smooth_noise(rng, shape, 55 / um)
    rest = rng.uniform(0.25, 0.45) if truth.kind != "sparse" else 1 - SPARSE_TUMOUR_SHARE
    islands -= np.quantile(islands[tissue > 0], rest) if (tissue > 0).any() else np.inf
    size = truth.width, truth.height
    lattice = make_lattice(rng_for(seed, truth.slide_id, "lattice"), size, truth.mpp, px, tissue, islands)
    lattice = add_blood(rng_for(seed, truth.slide_id, "blood"), lattice, laboratory.blood, um, shape)
    staining = assign_staining(rng_for(seed, truth.slide_id, "staining"), lattice, _painted_mix(truth), um, shape)
    recipe = CellStaining(_painted_stain(truth), _cell_pattern(truth.kind), truth.mpp, fibre_angle, laboratory)
    cells = make_cells(rng_for(seed, truth.slide_id, "cells"), lattice, staining, recipe)
    counts = np.bincount(staining[lattice.kind == TUMOUR], minlength=4)
    n_cells = int(counts.sum())
    masks = {"tissue": tissue > 0, "tumour": (islands > 0) & (tissue > 0)}
    masks |= {name: field > 0 for name, field in artefacts.items()}
    noise = make_noise_fields(rng_for(seed, truth.slide_id, "sheets"), truth.mpp)
    mix = CellMix(*(counts / max(n_cells, 1)).tolist())
    regions = _score_regions(lattice, staining, masks["tumour"] & (truth.her2 is not None), um)
    appearance = _make_appearance(truth, laboratory, pen, fibre_angle)
    tissue_of_slide = SyntheticTissue(cells, fields, noise, appearance, masks, regions, mix, n_cells, lattice, staining)
    return stain_with_eosin(tissue_of_slide) if truth.kind == "he" else tissue_of_slide


def _painted_stain(truth: SlideTruth) -> Stain:
    """Return the marker whose staining is painted, which is not the labelled one on a slide of the kind `nuclear`."""
    return "er" if truth.kind == "nuclear" else truth.stain


def _painted_mix(truth: SlideTruth) -> CellMix:
    """Return the mix of the painted cells: none is stained where there is no DAB in membranes or nuclei."""
    return CellMix(1.0, 0.0, 0.0, 0.0) if truth.kind in ("cytoplasmic", "he") else truth.mix


def _cell_pattern(kind: SlideKind) -> CellPattern:
    """Return how the tumour cells of a kind of slide are stained."""
    return kind if kind == "cytoplasmic" or kind == "weak-complete" else "usual"


def _make_appearance(truth: SlideTruth, laboratory: Laboratory, pen: Vector, fibre_angle: float) -> Appearance:
    """Return the appearance of a slide from its laboratory."""
    colours = laboratory.haematoxylin, laboratory.dab, laboratory.white
    scanner = laboratory.blur_um, laboratory.black, laboratory.gamma
    return Appearance(truth.mpp, *colours, pen, fibre_angle, *scanner)


def _draw_fields(
    rng: np.random.Generator, tissue: Map, px: int, um: float, artefacts: dict[Artefact, Map], laboratory: Laboratory
) -> Fields:
    """Draw thickness and illumination of a slide, and apply what its laboratory does to both."""
    shape = tissue.shape[0], tissue.shape[1]
    thickness, shade = 1 + 0.07 * smooth_noise(rng, shape, 150 / um), 0.004 * smooth_noise(rng, shape, 400 / um)
    thickness = thickness * np.float32(laboratory.thickness)
    if laboratory.vignetting > 0:
        y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
        shade = np.asarray(shade + laboratory.vignetting * (x * x + y * y) / 2, np.float32)
    fields = Fields(px, tissue, thickness, shade, **artefacts)
    if laboratory.edge > 0:
        darker = 1 + laboratory.edge * np.exp(-np.maximum(tissue, 0) / EDGE_UM)
        fields = replace(fields, dab_factor=np.asarray(darker, np.float32))
    return fields


EOSIN: Vector = (0.07, 0.99, 0.11)
"""Optical density of eosin in R, G, B, a unit vector.  Source: Ruifrok & Johnston 2001."""

EOSIN_STROMA, EOSIN_CYTOPLASM = 0.30, 0.22
"""Density of eosin in stroma and in the cytoplasm of tumour."""


def stain_with_eosin(specimen: SyntheticTissue) -> SyntheticTissue:
    """Return the tissue as haematoxylin and eosin stain it: eosin in stroma and cytoplasm, no membranes, no DAB."""
    cells = specimen.cells
    eosin = np.where(cells.fibre > 0, EOSIN_STROMA, np.where(cells.body_h > 0, EOSIN_CYTOPLASM, 0)).astype(np.float32)
    nothing = np.zeros_like(cells.ring_d)
    return replace(
        specimen,
        cells=replace(cells, body_d=eosin, nucleus_d=nothing, ring_d=nothing),
        appearance=replace(specimen.appearance, dab=EOSIN),
    )


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
