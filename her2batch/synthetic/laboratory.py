"""Laboratories: how a synthetic slide is cut, stained and scanned.

Usage, from the command line and from Python:

    her2batch synth FOLDER --lab 7                    every slide is made by laboratory 7
    her2batch synth FOLDER --lab 1 --lab 2            patients are divided between two laboratories

    lab = laboratory(7)                               the figures of laboratory 7, always the same
    make_slide(path, SlideTruth("a", mix, site="lab-7"))
    make_slide(path, SlideTruth("a", mix), laboratory=replace(lab, dab_strength=1.4))

Seeds 1 to 99 are for development. Seeds from 100 are held out: acceptance figures are measured on them, and nothing may
be developed, tuned or fitted on them. A laboratory changes only the appearance: the same slide has the same cells, of
the same categories, in every laboratory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from her2batch.errors import InputError
from her2batch.synthetic.painting import Vector

HELD_OUT_SEED = 100
"""First seed that is held out for acceptance figures."""

Subsampling = Literal["420", "422", "444"]


@dataclass(frozen=True)
class Laboratory:
    """The figures of a laboratory and its scanner; FIGURES describes each. The defaults change nothing.

    haematoxylin, dab: unit vectors of its stains.  white: R, G, B of the background before the tone curve.
    """

    name: str
    haematoxylin: Vector
    dab: Vector
    white: Vector
    jpeg_quality: int
    dab_strength: float = 1.0
    counterstain: float = 1.0
    thickness: float = 1.0
    cytoplasm: float = 0.0
    blood: float = 0.0
    edge: float = 0.0
    blur_um: float = 0.0
    black: float = 0.0
    gamma: float = 1.0
    vignetting: float = 0.0
    subsampling: Subsampling = "420"


SITES: dict[str, Laboratory] = {
    "north": Laboratory("north", (0.650, 0.704, 0.286), (0.269, 0.568, 0.778), (243.0, 243.0, 244.0), 85),
    "south": Laboratory("south", (0.628, 0.655, 0.420), (0.345, 0.575, 0.742), (234.0, 233.0, 242.0), 75, 0.9),
}
"""`north` has the vectors of Ruifrok & Johnston 2001; `south` is closer to real cores of a TMA."""


class Figure(NamedTuple):
    """One figure of a laboratory: the ends of its range, its unit, description and source."""

    name: str
    low: float
    high: float
    unit: str
    description: str
    source: str


GUIDELINE = "ASCO/CAP 2018"
JUDGED = "chosen"

FIGURES: tuple[Figure, ...] = (
    Figure("dab_strength", 0.7, 1.4, "factor", "of all DAB: antibody, incubation and chromogen; logarithmically "
           "uniform", "laboratories' positive rates of 7.6–31.6 %, Choritz et al. 2011"),
    Figure("counterstain", 0.28, 1.6, "factor", "of all haematoxylin; logarithmically uniform. A slide's nuclei have "
           "0.05–0.5 OD", "ratios of stains of 0.57–0.89 between six laboratories of a region, Gray et al. 2015"),
    Figure("thickness", 0.85, 1.25, "factor", "of both stains: sections of 3.4–5 µm instead of 4 µm", GUIDELINE),
    Figure("cytoplasm", 0.0, 0.08, "OD", "DAB density of cytoplasm, in stroma half of it; most laboratories have "
           "little", JUDGED),
    Figure("blood", 0.0, 0.04, "share", "of the cells outside tumour that are erythrocytes, pale brown by their "
           "peroxidase; a third of laboratories has none", JUDGED),
    Figure("edge", 0.0, 0.8, "share", "of additional DAB at the tissue's edge, over 60 µm; half of laboratories has "
           "none", f"edge artefact, {GUIDELINE}"),
    Figure("blur_um", 0.0, 0.35, "µm", "σ of the blur by lens and focus, beyond that of a sharp scan", JUDGED),
    Figure("black", 0.0, 0.12, "share", "of full light that the scanner's contrast stretch maps to black", JUDGED),
    Figure("gamma", 0.85, 1.2, "exponent", "of the scanner's tone curve; it multiplies all densities",
           "Clarke & Treanor 2017"),
    Figure("white", 185.0, 248.0, "grey value", "of the background before the tone curve: a quarter of laboratories "
           "has a dim scanner, below 225", JUDGED),
    Figure("tint", 0.97, 1.03, "factor", "of each channel: white balance", "Clarke & Treanor 2017"),
    Figure("vignetting", 0.0, 0.05, "OD", "of the background at the corners of the slide; half of laboratories has "
           "none", JUDGED),
    Figure("hue", 0.0, 1.0, "share", "of the way from the stain vectors of the site `north` to those of `south`, with "
           "a normal deviation of σ 0.02 for each channel", "Ruifrok & Johnston 2001"),
    Figure("jpeg_quality", 50, 95, "", "quality of the JPEG compression", "Hamamatsu's default is 80, Helin et al. "
           "2018"),
    Figure("subsampling", 420, 444, "", "of the chroma: 4:2:0 for two thirds of laboratories, otherwise 4:4:4", JUDGED),
)  # fmt: skip
"""What differs between laboratories, with the range from which `laboratory` draws."""

_RANGES = {figure.name: (figure.low, figure.high) for figure in FIGURES}

DIM_WHITE, USUAL_WHITE = 225.0, 228.0
"""Brightest background of dim scanners, and darkest of others."""

JPEG_QUALITIES = (50, 60, 70, 75, 80, 85, 90, 95)


def laboratory(seed: int) -> Laboratory:
    """Return laboratory number `seed` (0 or more), always with the same figures."""
    rng = np.random.default_rng([0x1AB, seed])

    def uniform(name: str) -> float:
        return float(rng.uniform(*_RANGES[name]))

    def log_uniform(name: str) -> float:
        return float(np.exp(rng.uniform(*np.log(_RANGES[name]))))

    def mostly_low(name: str) -> float:
        low, high = _RANGES[name]
        return float(low + (high - low) * rng.random() ** 2)

    def sometimes(name: str, chance: float) -> float:
        value = uniform(name)
        return value if rng.random() < chance else 0.0

    white, tint = _draw_white(rng), rng.uniform(*_RANGES["tint"], 3)
    hue = uniform("hue")
    north, south = SITES["north"], SITES["south"]
    return Laboratory(
        name=f"lab-{seed}",
        haematoxylin=_draw_vector(rng, north.haematoxylin, south.haematoxylin, hue),
        dab=_draw_vector(rng, north.dab, south.dab, hue),
        white=_as_vector(np.minimum(white * tint, _RANGES["white"][1])),
        jpeg_quality=int(rng.choice(JPEG_QUALITIES)),
        dab_strength=log_uniform("dab_strength"),
        counterstain=log_uniform("counterstain"),
        thickness=uniform("thickness"),
        cytoplasm=mostly_low("cytoplasm"),
        blood=sometimes("blood", 2 / 3),
        edge=sometimes("edge", 1 / 2),
        blur_um=uniform("blur_um"),
        black=uniform("black"),
        gamma=uniform("gamma"),
        vignetting=sometimes("vignetting", 1 / 2),
        subsampling="420" if rng.random() < 2 / 3 else "444",
    )


def laboratory_of(name: str) -> Laboratory:
    """Return a laboratory by its name, `north`, `south` or `lab-NUMBER`, or by its number alone. Raises InputError."""
    if name in SITES:
        return SITES[name]
    match = re.fullmatch(r"(?:lab-)?(\d{1,9})", name)
    if match is None:
        raise InputError(f"no laboratory {name!r}", None, f"give a number, such as 7, or {' or '.join(SITES)}")
    return laboratory(int(match[1]))


def _draw_white(rng: np.random.Generator) -> float:
    """Draw the grey value of the background: dim for a quarter of laboratories."""
    darkest, brightest = _RANGES["white"]
    ends = (darkest, DIM_WHITE) if rng.random() < 1 / 4 else (USUAL_WHITE, brightest)
    return float(rng.uniform(*ends))


def _draw_vector(rng: np.random.Generator, first: Vector, second: Vector, share: float) -> Vector:
    """Draw a unit vector near the one that lies at `share` of the way from the first to the second."""
    vector = (1 - share) * np.asarray(first) + share * np.asarray(second) + rng.normal(0, 0.02, 3)
    return _as_vector(vector / np.linalg.norm(vector))


def _as_vector(values: np.typing.NDArray[np.float64]) -> Vector:
    x, y, z = values.tolist()
    return x, y, z
