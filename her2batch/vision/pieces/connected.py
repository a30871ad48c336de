"""Pieces of tissue: which parts of the tissue belong together, which tiles lie on them, and which may be controls.

A laboratory mounts control tissue of known class beside the patient's, as a strip or a few cores at the label's end of
the slide. Such a piece must not count towards the patient's score. All functions are pure functions of the overview.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.stain import Stains, Vector, optical_density, unmix

Labels = NDArray[np.int16]
"""(H, W) over the overview: number of the piece of each px, −1 outside tissue."""

OUTSIDE = -1

JOIN_MM = 0.1
"""Parts of the tissue that are nearer than this are one piece. A tile of the default plan is 0.112 mm wide, so that
nearer parts share tiles. On 40 synthetic slides with three controls each (benchmarks/controls.py), every control was a
piece of its own."""

MAX_CONTROL_SHARE, MAX_LARGEST_SHARE = 0.25, 0.5
"""Largest area of a proposed control, as a share of all larger pieces together, and of the largest piece. On-slide
controls take about a tenth of the tissue; the pieces of a needle biopsy are of one size."""

MIN_DAB_DIFFERENCE, MIN_DAB_RATIO = 0.03, 1.5
"""Least difference (optical density) and least ratio of the DAB of two pieces that are unlike. Pieces of one synthetic
tumour (12 slides) differ by at most 0.02 where they are pale, and by a factor of 1.25 where they are dark; controls of
0, 2+ and 3+ of one laboratory differ by 0.03 to 0.2."""

MAX_GROUP_RATIO = 3.0
"""Largest ratio of the areas of the controls of one group."""

ELONGATED = 1.5
"""A slide at least this many times as long as wide has its label at an end of its longer side. Scanners may turn the
slide by 180°, and store that the label's end is left or right in private fields only; both ends are therefore possible.
Of a scan that is not elongated, all four sides are."""


class Piece(NamedTuple):
    """A piece of tissue.

    x, y, width, height: of its bounding box, px of the overview.  area: px.  haematoxylin: mean optical density.  dab:
    90th percentile of the optical density of DAB, which a few stained nests change, and stroma around them does not.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    haematoxylin: float = 0.0
    dab: float = 0.0


def label_joined(mask: NDArray[np.bool_], mpp: float, join_mm: float = JOIN_MM) -> Labels:
    """Number the pieces of a tissue mask (H, W) bool at `mpp` µm/px: (H, W) int16, from 0 in raster order.

    Parts whose gap is smaller than `join_mm` have the same number.
    """
    labels = np.full(mask.shape, OUTSIDE, np.int16)
    if not mask.any():
        return labels
    if mask.all():
        return np.zeros(mask.shape, np.int16)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = (distance < join_mm * 1000 / mpp / 2).astype(np.uint8)
    parts = cv2.connectedComponents(near, connectivity=8)[1]
    _, first, numbers = np.unique(parts[mask], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int16)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    labels[mask] = rank[numbers]
    return labels


def measure_pieces(labels: Labels, rgb: NDArray[np.uint8], white: Vector | None) -> list[Piece]:
    """Return the pieces of a labelled overview, in the order of their numbers.

    rgb: (H, W, 3) uint8.  white: R, G, B of the background; None: leave out the stains, which take most of the time.
    The stain vectors are the published ones, as those of the slide are fitted later, and without controls.
    """
    count = int(labels.max(initial=OUTSIDE)) + 1
    pieces = []
    for number, (x, y, width, height) in enumerate(_bounding_boxes(labels, count)):
        own = labels[y : y + height, x : x + width] == number
        haematoxylin = dab = 0.0
        if white is not None:
            h, d = unmix(optical_density(np.ascontiguousarray(rgb[y : y + height, x : x + width]), white), Stains())
            haematoxylin, dab = float(h[own].mean()), float(np.percentile(d[own], 90))
        pieces.append(Piece(x, y, width, height, int(own.sum()), haematoxylin, dab))
    return pieces


def _bounding_boxes(labels: Labels, count: int) -> list[tuple[int, int, int, int]]:
    """Return x, y, width, height of each label from 0 to count − 1."""
    rows, columns = np.nonzero(labels >= 0)
    numbers = labels[rows, columns]
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.full((count, 2), -1)
    for axis, positions in enumerate((columns, rows)):
        np.minimum.at(low[:, axis], numbers, positions)
        np.maximum.at(high[:, axis], numbers, positions)
    return [
        (int(x), int(y), int(right - x + 1), int(low_y - y + 1))
        for (x, y), (right, low_y) in zip(low, high, strict=True)
    ]


def propose_controls(pieces: Sequence[Piece], width: int, height: int) -> list[int]:
    """Return the numbers of the pieces that may be controls: small, apart, unlike the others, at an end of the slide.

    width, height: of the overview, px.  A piece is a candidate if it is small (MAX_CONTROL_SHARE, MAX_LARGEST_SHARE)
    and lies entirely beyond all larger pieces, towards an end (see ELONGATED). A candidate whose DAB is unlike that of
    the larger pieces is proposed, and with it the candidates at the same end that are about as large: a group of
    controls usually includes one of the patient's class.
    """
    if len(pieces) < 2:
        return []
    largest = max(piece.area for piece in pieces)
    others = [piece for piece in pieces if piece.area > MAX_LARGEST_SHARE * largest]
    limit = min(MAX_LARGEST_SHARE * largest, MAX_CONTROL_SHARE * sum(piece.area for piece in others))
    small = [k for k, piece in enumerate(pieces) if piece.area <= limit]
    weights = np.array([piece.area for piece in others], np.float64)
    dab = float(np.average([piece.dab for piece in others], weights=weights))
    proposed: set[int] = set()
    for is_beyond in _ends(others, width, height):
        group = [k for k in small if is_beyond(pieces[k])]
        areas = [pieces[k].area for k in group if is_unlike(pieces[k].dab, dab)]
        if areas:
            low, high = min(areas) / MAX_GROUP_RATIO, max(areas) * MAX_GROUP_RATIO
            proposed |= {k for k in group if low <= pieces[k].area <= high}
    return sorted(proposed)


def is_unlike(dab: float, other: float) -> bool:
    """Return whether two densities of DAB are those of different tissues."""
    low, high = sorted((max(dab, 0.0), max(other, 0.0)))
    return high - low >= MIN_DAB_DIFFERENCE and high >= MIN_DAB_RATIO * low


def _ends(others: Sequence[Piece], width: int, height: int) -> list[Callable[[Piece], bool]]:
    """Return, for each end of the slide, a function that says whether a piece lies beyond the other pieces there."""
    left, top = min(piece.x for piece in others), min(piece.y for piece in others)
    right = max(piece.x + piece.width for piece in others)
    bottom = max(piece.y + piece.height for piece in others)
    across = [lambda piece: piece.x + piece.width <= left, lambda piece: piece.x >= right]
    along = [lambda piece: piece.y + piece.height <= top, lambda piece: piece.y >= bottom]
    if width >= ELONGATED * height:
        return across
    return along if height >= ELONGATED * width else [*across, *along]


def tile_pieces(labels: Labels, width: float, height: float, tiles: NDArray[np.int32]) -> NDArray[np.int16]:
    """Return the piece of each tile: (n,) int16, the one with the most px in it; −1 for a tile without tissue.

    labels: (h, w) over the whole slide.  width, height: of level 0, px.  tiles: (n, 3) x, y, size in level-0 px.
    """
    found = np.full(len(tiles), OUTSIDE, np.int16)
    if not len(tiles):
        return found
    scale = np.array([labels.shape[1] / width, labels.shape[0] / height])
    low = np.floor(tiles[:, :2] * scale).astype(np.int64)
    high = np.maximum(np.ceil((tiles[:, :2] + tiles[:, 2:]) * scale).astype(np.int64), low + 1)
    for k, ((x, y), (right, bottom)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        own = labels[y:bottom, x:right]
        own = own[own >= 0]
        if own.size:
            found[k] = own[0] if (own == own[0]).all() else np.bincount(own).argmax()
    return found
