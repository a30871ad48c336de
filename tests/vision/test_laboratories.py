"""The area rule on slides of different laboratories: strong DAB, dim scanners, pale tissue, and every encoding.

Only laboratories for development (`synthetic.laboratory`): nothing is measured on those that are held out.
"""

from dataclasses import fields, replace
from functools import cache
from itertools import product

import numpy as np
import pytest

from her2batch.models.guideline.cell_rule import score_cells
from her2batch.models.guideline.scorable import scorability
from her2batch.synthetic.cohort import PaintedSlide, paint_truth
from her2batch.synthetic.laboratory import SITES, Laboratory, laboratory
from her2batch.synthetic.outlines import Artefact
from her2batch.synthetic.specimen import TYPICAL_MIXES, CellMix, SlideTruth
from her2batch.vision.cells.detection import Cells, detect_cells, fit_cell_reference
from her2batch.vision.tissue import segment_tissue
from tests.vision.area_rule import TILE_MPP, Scored, encode_again, score_picture, shrink_to

NORTH = SITES["north"]
DARK = replace(NORTH, name="dark", dab_strength=1.4, thickness=1.25)
CONTRASTY = replace(DARK, name="contrasty", black=0.12, gamma=1.2, edge=0.6)
PALE = replace(NORTH, name="pale", counterstain=0.28, thickness=0.85)
DIM = replace(NORTH, name="dim", white=(186.0, 190.0, 184.0), vignetting=0.04)
JPEGS = tuple(product((40, 60, 80, 95), ("420", "444")))
EXTREMES = tuple(product((40, 95), ("420", "444")))
"""The encodings that differ most. The slow test has all."""


@cache
def painted(score: str, lab: Laboratory, stain: str = "her2", kind: str = "usual") -> PaintedSlide:
    mix = TYPICAL_MIXES[score] if stain == "her2" else CellMix(0.25, 0.25, 0.25, 0.25)
    return paint_truth(SlideTruth(f"slide-{score}", mix, stain, kind=kind), laboratory=lab)


@cache
def scored(score: str, lab: Laboratory) -> Scored:
    return score_picture(painted(score, lab).rgb, 0.25)


def views(rgb: np.ndarray, jpegs: tuple[tuple[int, str], ...] = EXTREMES) -> dict[str, Scored]:
    """Return the slide as other laboratories and readers see it: encoded again, another level, other resolutions.

    jpegs: quality and chroma subsampling of each encoding.
    """
    height, width = rgb.shape[:2]
    found = {
        f"{quality}/{chroma}": score_picture(encode_again(rgb, quality, chroma), 0.25) for quality, chroma in jpegs
    }
    found["level 1"] = score_picture(shrink_to(rgb, width // 2, height // 2), 0.5)
    return found | {f"{mpp} µm/px": score_picture(rgb, mpp) for mpp in (0.2, 0.3)}


def contradictions(base: Scored, others: dict[str, Scored]) -> dict[str, str]:
    """Return the views with another class, where no view asks for a review."""
    return {
        name: one.result.category
        for name, one in others.items()
        if one.result.category != base.result.category and not (one.review or base.review)
    }


@pytest.mark.slow
@pytest.mark.parametrize("lab", [DARK, CONTRASTY, laboratory(8), laboratory(13)], ids=lambda lab: lab.name)
def test_strong_dab_is_tissue_and_not_pen(lab: Laboratory) -> None:
    """Dark brown reaches densities at which scanners clip green and blue to black."""
    found = scored("3+", lab)
    assert (found.tiles.min(axis=3) <= 2).mean() > 0.0005
    assert found.mean("ink") < 0.001
    assert found.tissue.pen.mean() == 0
    assert "pen" not in found.quality.flags
    assert found.result.category == "3+"
    truth = shrink_to(painted("3+", lab).specimen.masks["tissue"].astype(np.uint8), *found.tissue.mask.shape[::-1]) > 0
    assert found.tissue.mask[truth].mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cytoplasmic", "nuclear"])
def test_brown_cytoplasm_and_nuclei_are_not_pen_either(kind: str) -> None:
    found = score_picture(painted("3+", CONTRASTY, kind=kind).rgb, 0.25)
    assert found.mean("ink") < 0.01
    assert found.tissue.pen.mean() == 0


@pytest.mark.slow
@pytest.mark.parametrize("colour", [(20, 130, 60), (25, 55, 170), (20, 20, 25), (190, 25, 40)])
def test_what_pen_takes_of_the_tissue_is_reported_and_for_review_above_five_percent(colour: tuple) -> None:
    slide = painted("3+", DARK)
    rgb, tissue = slide.rgb.copy(), slide.specimen.masks["tissue"]
    row = int(np.flatnonzero(tissue.any(axis=1)).mean()) * slide.specimen.fields.px
    rgb[row - 60 : row + 60] = np.uint8(np.multiply(colour, rgb[row - 60 : row + 60]) / 240)  # a stroke of 30 µm
    found = score_picture(rgb, 0.25)
    covered = 120 / (tissue.any(axis=1).sum() * slide.specimen.fields.px)
    assert found.quality.pen > 0.7 * covered > 0.05
    assert "pen" in found.quality.flags
    assert found.review


@pytest.mark.slow
@pytest.mark.parametrize(
    "lab",
    [DIM, replace(DIM, white=(150.0, 150.0, 150.0)), replace(NORTH, vignetting=0.05)],
    ids=["dim", "grey", "corners"],
)
def test_grey_glass_and_dark_corners_are_not_tissue(lab: Laboratory) -> None:
    """A slide of 1.5 mm at 1 µm/px: the illumination of a slide varies slowly."""
    slide = paint_truth(SlideTruth("wide", TYPICAL_MIXES["0"], mpp=1.0), laboratory=lab)
    found = segment_tissue(shrink_to(slide.rgb, 1500 // 8, 1200 // 8), 8.0).mask
    truth = shrink_to(slide.specimen.masks["tissue"].astype(np.uint8), *found.shape[::-1]) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97


@pytest.mark.slow
def test_a_pale_core_keeps_its_area_in_every_encoding() -> None:
    base, others = scored("0", PALE), views(painted("0", PALE).rgb)
    for name, one in others.items():
        mpp = float(name.split()[0]) if name.endswith("px") else 0.25
        expected = base.tissue.mask.sum() * (mpp / 0.25) ** 2
        assert (
            one.tissue.mask.sum() == pytest.approx(expected, rel=0.12) or "tissue-methods-disagree" in one.quality.flags
        )


@pytest.mark.slow
@pytest.mark.parametrize("lab", [NORTH, DARK, laboratory(2), laboratory(7)], ids=lambda lab: lab.name)
def test_stained_nuclei_are_nuclei(lab: Laboratory) -> None:
    """Dark nuclear DAB leaves no haematoxylin to be found by."""
    found, plain = score_picture(painted("2+", lab, "er").rgb, 0.25), scored("0", lab)
    cells = painted("2+", lab, "er").cells.to_pandas().query("tumour")
    strong = float(cells[cells.category == 3].nuclear_dab.mean())
    assert found.mean("nuclei") > 0.6 * cells.area.sum() / (len(found.tiles) * (224 * 0.5) ** 2)
    assert found.mean("nuclear_dab") > 0.2 * strong
    assert found.mean("nuclear_dab") > 4 * max(plain.mean("nuclear_dab"), 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "lab"),
    [("0", NORTH), ("1+", laboratory(4)), ("2+", laboratory(5)), ("3+", CONTRASTY)],
    ids=["0", "1+", "2+", "3+"],
)
def test_the_class_does_not_depend_on_encoding_level_or_resolution(score: str, lab: Laboratory) -> None:
    assert contradictions(scored(score, lab), views(painted(score, lab).rgb)) == {}


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, 21))
@pytest.mark.parametrize("score", TYPICAL_MIXES)
def test_no_laboratory_has_a_class_that_depends_on_the_encoding(score: str, number: int) -> None:
    truth = SlideTruth(f"slide-{score}", TYPICAL_MIXES[score], width=2200, height=1800)  # above 0.05 mm² at 0.2 µm/px
    rgb = paint_truth(truth, laboratory=laboratory(number)).rgb
    assert contradictions(score_picture(rgb, 0.25), views(rgb, JPEGS)) == {}


def cells_of(found: Scored) -> dict[str, np.ndarray]:
    """Return the columns of the cells in the tiles of a scored picture, and whether the slide is refused."""
    reference = fit_cell_reference(found.tiles, TILE_MPP, found.stains)
    parts = [detect_cells(tile, TILE_MPP, found.stains, reference, "membrane") for tile in found.tiles]
    columns = {one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Cells)}
    assert scorability(columns, hue_spread=reference.hue_spread, foreign=reference.foreign) is None
    return columns


@pytest.mark.slow
@pytest.mark.parametrize(("artefact", "number", "score"), [("pen", 3, "3+"), ("pen", 5, "0"), ("bubble", 8, "3+")])
def test_pen_and_bubbles_over_the_tissue_do_not_hide_its_cells(artefact: Artefact, number: int, score: str) -> None:
    found = []
    for artefacts in ((), (artefact,)):
        truth = SlideTruth(f"slide-{score}", TYPICAL_MIXES[score], artefacts=artefacts, width=2400, height=2000)
        found.append(cells_of(score_picture(paint_truth(truth, laboratory=laboratory(number)).rgb, 0.25)))
    plain, marked = (score_cells(one["category"], one["tumour"]) for one in found)
    assert marked.category == plain.category == score
    assert len(found[1]["x"]) > 0.4 * len(found[0]["x"])  # pen covers up to half of the tissue
