"""Roles of a slide's pieces of tissue: patient's tissue, control, or excluded, by the plan and the overview alone.

They are known before a tile is read, so that neither the stain vectors of a slide nor its score depend on its controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.control_settings import ControlPlace, Controls, ControlSlides
from her2batch.exchange.controls.control_file import ControlRegion
from her2batch.vision.pieces.connected import Labels, Piece, label_joined, measure_pieces, propose_controls, tile_pieces
from her2batch.vision.regions import region_mask
from her2batch.vision.stain import white_point
from her2batch.vision.tissue import label_components

TISSUE, CONTROL, EXCLUDED = "tissue", "control", "excluded"
"""Roles of a piece."""

WHOLE_SHARE: Final = 0.9
"""A part of the tissue with at least this share inside the area of a control belongs to it entirely, and one with at
most the rest does not belong to it at all: people draw loosely. A part in between is cut."""

MAIN_SHARE: Final = 1 / 3
"""Pieces of a control with at least this share of its largest piece are counted against the expected classes; smaller
ones are fragments, which belong to the nearest of them."""


class Role(NamedTuple):
    """The role of a piece.  expected: class of a control, if it is known.  suspected: it may be a control."""

    role: str = TISSUE
    expected: str | None = None
    suspected: bool = False


@dataclass(frozen=True)
class SlidePieces:
    """The pieces of a slide's tissue.

    pieces: in px of the overview, of which one is `scale` (x, y) level-0 px.  of_tiles: (n,) int16, piece of each tile.
    missing: a control that the plan names was not found, or in another number of pieces.  control_slide: the whole
    slide is a control.
    """

    pieces: tuple[Piece, ...] = ()
    roles: tuple[Role, ...] = ()
    of_tiles: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))
    scale: tuple[float, float] = (1.0, 1.0)
    missing: bool = False
    control_slide: bool = False

    @property
    def patient_tiles(self) -> NDArray[np.bool_] | None:
        """The tiles that count towards the slide's score, (n,) bool; None: all do."""
        counts = np.array([role.role == TISSUE for role in self.roles], bool)
        return None if counts.all() else np.append(counts, True)[self.of_tiles]  # −1: on no piece

    @property
    def suspected(self) -> bool:
        """Whether a piece may be a control that counts."""
        return any(role.suspected for role in self.roles)


class ControlPlan(NamedTuple):
    """What is known of the controls of one slide.  regions: annotated, level-0 px."""

    controls: Controls | None = None
    regions: Sequence[ControlRegion] = ()


class _Area(NamedTuple):
    """Px of the overview that a rule of the plan speaks of. along: axis along which its pieces are ordered."""

    mask: NDArray[np.bool_]
    role: str
    expected: tuple[str, ...]
    along: int
    needed: bool


def find_pieces(
    mask: NDArray[np.bool_],
    rgb: NDArray[np.uint8],
    background: NDArray[np.bool_],
    slide: tuple[str, int, int, float],
    plan: ControlPlan,
    tiles: NDArray[np.int32],
) -> SlidePieces:
    """Find the pieces of a slide's tissue, their roles, and the piece of each tile.

    mask, background: (H, W) bool over the overview `rgb`.  slide: slide_id, width and height in level-0 px, and µm/px.
    tiles: (n, 3) x, y, size, level-0 px.
    """
    slide_id, width, height, mpp = slide
    scale = width / mask.shape[1], height / mask.shape[0]
    rule = _control_slide(plan.controls, slide_id)
    areas = [] if rule is not None else _areas(plan, mask.shape, (width, height, mpp))
    labels, owners = _label_areas(mask, areas, mpp * scale[0])
    needs_stains = owners.count(0) > 1
    pieces = measure_pieces(labels, rgb, white_point(rgb, background) if needs_stains else None)
    of_tiles = tile_pieces(labels, width, height, tiles)
    if rule is not None:
        roles = [Role(CONTROL, next(iter(rule.expected), None)) for _ in pieces]
        return SlidePieces(tuple(pieces), tuple(roles), of_tiles, scale, control_slide=True)
    roles, missing = _roles_of_areas(pieces, owners, areas)
    own = [k for k, owner in enumerate(owners) if owner == 0]
    automatic = plan.controls is not None and plan.controls.auto
    for k in propose_controls([pieces[k] for k in own], mask.shape[1], mask.shape[0]):
        roles[own[k]] = Role(CONTROL) if automatic else Role(suspected=True)
    return SlidePieces(tuple(pieces), tuple(roles), of_tiles, scale, missing)


def _control_slide(controls: Controls | None, slide_id: str) -> ControlSlides | None:
    """Return the rule for a slide that is a control as a whole; None for other slides."""
    rules = controls.slides if controls is not None else ()
    return next((rule for rule in rules if fnmatchcase(slide_id.casefold(), rule.name.casefold())), None)


def _areas(plan: ControlPlan, shape: tuple[int, int], slide: tuple[int, int, float]) -> list[_Area]:
    """Return the areas of a slide that the plan names. slide: width and height in level-0 px, and µm/px."""
    width, height, mpp = slide
    places = plan.controls.places if plan.controls is not None else ()
    areas = [_place_area(place, shape, (width * mpp / 1000, height * mpp / 1000)) for place in places]
    for region in plan.regions:
        expected = (region.expected,) if region.expected is not None else ()
        areas.append(_Area(region_mask(region.shape, shape, width, height), region.role, expected, 0, False))
    return areas


def _place_area(place: ControlPlace, shape: tuple[int, int], size_mm: tuple[float, float]) -> _Area:
    """Return the area of a place. size_mm: width and height of the slide's image."""
    horizontal = place.side in ("left", "right")
    near, far, first, last = place.box or (0.0, place.mm or 0.0, 0.0, float("inf"))
    centres = [(np.arange(n) + 0.5) / n * length for n, length in zip(shape[::-1], size_mm, strict=True)]
    distance, position = centres if horizontal else centres[::-1]
    if place.side in ("right", "bottom"):
        distance = size_mm[0 if horizontal else 1] - distance
    inside, along = (distance >= near) & (distance < far), (position >= first) & (position < last)
    mask = np.outer(along, inside) if horizontal else np.outer(inside, along)
    return _Area(mask, CONTROL, place.expected, 1 if horizontal else 0, True)


def _label_areas(mask: NDArray[np.bool_], areas: Sequence[_Area], mpp: float) -> tuple[Labels, list[int]]:
    """Number the pieces of the tissue, none of which is in two areas: labels, and each piece's area, 0 for none."""
    owner = np.zeros(mask.shape, np.int32)
    parts = label_components(mask) if areas else np.zeros((0, 0), np.int32)
    sizes = np.bincount(parts.ravel())
    for number, area in enumerate(areas, start=1):
        shares = np.bincount(parts[area.mask], minlength=len(sizes)) / np.maximum(sizes, 1)
        whole, none = shares >= WHOLE_SHARE, shares <= 1 - WHOLE_SHARE
        owner[(whole[parts] | (area.mask & ~none[parts])) & mask] = number
    labels = np.full(mask.shape, -1, np.int16)
    owners: list[int] = []
    for number in range(len(areas) + 1):
        own = label_joined(mask & (owner == number), mpp)
        labels[own >= 0] = own[own >= 0] + len(owners)
        owners += [number] * (int(own.max(initial=-1)) + 1)
    return labels, owners


def _roles_of_areas(pieces: Sequence[Piece], owners: Sequence[int], areas: Sequence[_Area]) -> tuple[list[Role], bool]:
    """Return the role of each piece by its area, and whether a control is missing."""
    roles, missing = [Role()] * len(pieces), False
    for number, area in enumerate(areas, start=1):
        own = [k for k, owner in enumerate(owners) if owner == number]
        missing |= area.needed and not own
        expected: dict[int, str] = dict.fromkeys(own, area.expected[0]) if len(area.expected) == 1 else {}
        if len(area.expected) > 1 and own:
            expected = _expected_in_order(pieces, own, area)
            missing |= not expected
        for k in own:
            roles[k] = Role(area.role, expected.get(k))
    return roles, missing


def _expected_in_order(pieces: Sequence[Piece], own: Sequence[int], area: _Area) -> dict[int, str]:
    """Return the expected class of each piece of an area; empty if there are more or fewer pieces than classes."""

    def position(k: int) -> float:
        piece = pieces[k]
        return piece.y + piece.height / 2 if area.along == 1 else piece.x + piece.width / 2

    largest = max(pieces[k].area for k in own)
    main = sorted((k for k in own if pieces[k].area >= MAIN_SHARE * largest), key=position)
    if len(main) != len(area.expected):
        return {}
    of_main = dict(zip(main, area.expected, strict=True))
    return {k: of_main[min(main, key=lambda one: abs(position(one) - position(k)))] for k in own}
