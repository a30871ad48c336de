"""Roles of pieces, by place, annotation, name of the slide, and proposal."""

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from her2batch.control_settings import ControlPlace, Controls, ControlSlides
from her2batch.exchange.controls.control_file import ControlRegion
from her2batch.pipeline.pieces.roles import CONTROL, EXCLUDED, TISSUE, ControlPlan, SlidePieces, find_pieces

MPP, SHAPE = 8.0, (120, 300)
SCALE = 8  # level-0 px per px of the overview: the slide has 1 µm/px
PATIENT = (120, 10, 150, 100)
COLUMN = ((10, 5, 30, 24), (12, 46, 30, 24), (8, 88, 30, 24))


def pieces_of(
    plan: ControlPlan, *boxes: tuple[int, int, int, int], brown: tuple[int, ...] = (), name: str = "S1"
) -> SlidePieces:
    """The pieces of a slide with rectangles of tissue, x, y, width, height; brown: numbers of the brown ones."""
    mask, rgb = np.zeros(SHAPE, bool), np.full((*SHAPE, 3), 245, np.uint8)
    for k, (x, y, width, height) in enumerate(boxes):
        mask[y : y + height, x : x + width] = True
        rgb[y : y + height, x : x + width] = (150, 110, 70) if k in brown else (200, 190, 215)
    slide = name, SHAPE[1] * SCALE, SHAPE[0] * SCALE, MPP / SCALE
    return find_pieces(mask, rgb, ~mask, slide, plan, tiles_of(mask))


def tiles_of(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Tiles of 80 level-0 px on the tissue."""
    y, x = np.mgrid[0 : SHAPE[0] : 10, 0 : SHAPE[1] : 10]
    corners = np.stack([x.ravel(), y.ravel()], axis=1)
    kept = [mask[b : b + 10, a : a + 10].mean() >= 0.25 for a, b in corners]
    return np.column_stack([corners[kept] * SCALE, np.full(sum(kept), 10 * SCALE)]).astype(np.int32)


def roles(found: SlidePieces) -> list[str]:
    return [role.role for role in found.roles]


def place(**values: object) -> ControlPlan:
    return ControlPlan(Controls(places=(ControlPlace.model_validate(values),)))


def test_without_controls_every_tile_counts() -> None:
    found = pieces_of(ControlPlan(), PATIENT, COLUMN[0])
    assert roles(found) == [TISSUE, TISSUE]
    assert found.patient_tiles is None
    assert not found.suspected


def test_a_proposed_piece_is_suspected_without_the_option_and_a_control_with_auto() -> None:
    suspected = pieces_of(ControlPlan(), PATIENT, COLUMN[0], brown=(1,))
    assert [role.suspected for role in suspected.roles] == [True, False]
    assert suspected.patient_tiles is None
    taken = pieces_of(ControlPlan(Controls(auto=True)), PATIENT, COLUMN[0], brown=(1,))
    assert roles(taken) == [CONTROL, TISSUE]
    counts = taken.patient_tiles
    assert counts is not None
    assert (counts == (taken.of_tiles == 1)).all()


def test_pieces_of_a_strip_have_the_expected_classes_from_the_top() -> None:
    found = pieces_of(place(side="left", mm=0.4, expected=("0", "2+", "3+")), PATIENT, *COLUMN)
    controls = sorted((piece.y, role.expected) for piece, role in zip(found.pieces, found.roles, strict=True))
    assert [expected for y, expected in controls if expected] == ["0", "2+", "3+"]
    assert not found.missing


@pytest.mark.parametrize("present", [0, 2])
def test_a_strip_with_too_few_pieces_lacks_a_control(present: int) -> None:
    found = pieces_of(place(mm=0.4, expected=("0", "2+", "3+")), PATIENT, *COLUMN[:present])
    assert found.missing
    assert all(role.expected is None for role in found.roles)


def test_fragments_belong_to_the_nearest_control() -> None:
    speck = (44, 88, 4, 9)
    found = pieces_of(place(mm=0.5, expected=("0", "2+", "3+")), PATIENT, *COLUMN, speck)
    assert not found.missing
    parted = pieces_of(place(mm=0.6, expected=("0", "2+", "3+")), PATIENT, *COLUMN, (60, 88, 8, 9))
    assert sorted(role.expected for role in parted.roles if role.expected) == ["0", "2+", "3+", "3+"]


@pytest.mark.parametrize(
    ("side", "box"),
    [
        ("left", (0, 0.4, 0, 0.3)),
        ("right", (2.0, 2.4, 0, 0.3)),
        ("top", (0, 0.3, 0, 0.4)),
        ("bottom", (0.6, 1, 0, 0.4)),
    ],
)
def test_a_box_is_measured_from_its_side(side: str, box: tuple[float, ...]) -> None:
    found = pieces_of(place(side=side, box=box, expected=("0",)), PATIENT, *COLUMN)
    assert [piece.y for piece, role in zip(found.pieces, found.roles, strict=True) if role.role == CONTROL] == [5]


def test_a_place_that_cuts_little_of_a_piece_leaves_it_whole_and_one_that_cuts_much_divides_it() -> None:
    little = pieces_of(place(mm=1.0), PATIENT)  # 5 of 150 px
    assert roles(little) == [TISSUE]
    assert little.missing
    much = pieces_of(place(mm=1.36), PATIENT)
    assert sorted(roles(much)) == [CONTROL, TISSUE]
    assert sum(piece.area for piece in much.pieces) == PATIENT[2] * PATIENT[3]


@pytest.mark.parametrize(("role", "expected"), [(CONTROL, "3+"), (EXCLUDED, None)])
def test_an_annotated_piece_has_the_role_of_its_region(role: str, expected: str | None) -> None:
    region = ControlRegion(role, expected, shapely.box(60, 20, 340, 300))
    found = pieces_of(ControlPlan(Controls(), (region,)), PATIENT, *COLUMN[:1])
    assert roles(found) == [TISSUE, role]  # those of the patient first
    assert found.roles[1].expected == expected


@pytest.mark.parametrize(("name", "is_control"), [("CTRL-3-17", True), ("ctrl-9", True), ("S1", False)])
def test_all_tissue_of_a_control_slide_is_control(name: str, is_control: bool) -> None:
    plan = ControlPlan(Controls(slides=(ControlSlides(name="CTRL-*", expected=("3+",)),)))
    found = pieces_of(plan, PATIENT, *COLUMN, name=name)
    assert found.control_slide is is_control
    assert {role.role for role in found.roles} == {CONTROL if is_control else TISSUE}
    assert {role.expected for role in found.roles} == {"3+" if is_control else None}


def test_an_empty_slide_has_no_pieces() -> None:
    found = pieces_of(place(mm=1.0, expected=("3+",)))
    assert found.pieces == ()
    assert found.patient_tiles is None
    assert found.missing
