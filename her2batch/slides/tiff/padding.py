"""Levels that are padded to whole tiles: their true scale, from the geometry and from the picture itself.

Some writers fill the last tiles of every level and store the filled size. The quotient of the sizes is then not the
scale: 6656 px, halved and padded to tiles of 512 px, become 3584 px, a quotient of 1.857. Boxes of the slide would be
looked for elsewhere in such a level, up to hundreds of px away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.slide import Box

MAX_FACTOR, OTHER_FACTORS = 4096, (3, 5, 6, 10)
"""Largest power of two by which a level may be shrunk, and the other factors."""

MAX_LEAD = 8
"""Largest factor between the true scale of a level and the quotient of the sizes that is considered."""

PATCHES, PATCH_PX = 3, 128
"""Number and edge of the patches that are compared between two levels, px of the coarser one."""

LARGE_SCALE = 8
"""Scale above which patches have half the edge, because they need many tiles of the finer level."""

TRIED_TILES, TRIED_RAW_TILES = 5, 24
"""Number of tiles among which the patches are chosen: of compressed ones, whose bytes show detail, and of others."""

FEW_TILES = 4
"""Number of tiles up to which a level is compared as a whole, if it is not larger than MAX_WHOLE_PX."""

MAX_WHOLE_PX, MAX_COMPARED_PX = 1_100_000, 20_000_000
"""Largest number of px that are compared at once, and that are read of the finer level for it."""

MIN_SHIFT = 4.0
"""Distance between the places where two scales look for a patch, px of the coarser level, from which it can tell."""

DETAIL_PX = 8.0
"""Standard deviation of the blur that is subtracted before patches are compared, px: any two gradients are alike."""

MIN_CONTRAST = 2.0
"""Standard deviation of the grey values of a patch from which it can tell."""

MIN_CORRELATION, CORRELATION_LEAD, UNLIKE_CORRELATION = 0.4, 0.08, 0.15
"""Correlation of a level with the finer one from which a scale is accepted, its lead over the next scale, and the
correlation below which a level shows something else."""

Size = tuple[int, int]
"""Width and height, px."""

ReadLevel = Callable[[int, Box], NDArray[np.uint8]]
"""Function from the number of a level and a box in it to its pixels, (h, w, 3) uint8. It may raise SlideError."""


class StoredLevel(NamedTuple):
    """A level as it is stored.

    tile_bytes: size of each compressed tile, row by row.  is_stated: the file says that it is a level of the slide.
    """

    size: Size
    tile: Size
    tile_bytes: NDArray[np.int64]
    is_stated: bool = True


class _Scale(NamedTuple):
    """A possible scale of a level. x, y: px of the finer level per px.  size: of the picture in the level."""

    x: float
    y: float
    size: Size


def padded_factors(base: Size, level: Size, tile: Size) -> list[int]:
    """Return the usual factors that shrink `base` to a size which, padded to whole tiles, is that of `level`.

    The list is empty if the level does not consist of whole tiles.
    """
    if any(size % edge for size, edge in zip(level, tile, strict=True)):
        return []
    factors = sorted({*(2**k for k in range(1, MAX_FACTOR.bit_length())), *OTHER_FACTORS})
    return [factor for factor in factors if _fits(base, level, tile, factor)]


def _fits(base: Size, level: Size, tile: Size, factor: int) -> bool:
    sizes = zip(base, level, tile, strict=True)
    return all(b >= factor and math.ceil(b // factor / edge) * edge == size for b, size, edge in sizes)


def picture_sizes(levels: Sequence[StoredLevel], read: ReadLevel) -> list[Size | None]:
    """Return the size of the picture in each level, without padding; None for a level that shows something else.

    levels: finest first.  read: returns pixels of the levels as stored. Each level is compared with the next finer
    one: where its size is explained both by the quotient of the sizes and by padding, the picture decides. A level that
    only padding explains, or that is not stated to be one, must look like the finer level: it may be a macro image.
    """
    sizes: list[Size | None] = [levels[0].size]
    fine, fine_size, usual = 0, levels[0].size, 0
    for k in range(1, len(levels)):
        chosen = _choose_scale(k, levels[k], fine, fine_size, usual, read)
        sizes.append(chosen)
        if chosen is not None:
            usual = round(fine_size[0] / chosen[0])
            fine, fine_size = k, chosen
    return sizes


def _choose_scale(
    number: int, level: StoredLevel, fine: int, fine_size: Size, usual: int, read: ReadLevel
) -> Size | None:
    """Return the size of the picture in a level; None if it is none of the slide's.

    fine, fine_size: number of the finer level, and size of its picture.  usual: scale of that level, 0 if it is first.
    """
    across, down = (f / size for f, size in zip(fine_size, level.size, strict=True))
    plain = _Scale(across, down, level.size)
    factors = [k for k in padded_factors(fine_size, level.size, level.tile) if k <= MAX_LEAD * max(across, down)]
    padded = [_Scale(k, k, (fine_size[0] // k, fine_size[1] // k)) for k in factors]
    padded = [scale for scale in padded if scale.size != level.size and min(scale.x / across, scale.y / down) > 0.99]
    rounding = 1.5 / min(level.size)
    is_even = abs(across / down - 1) < rounding
    is_whole = is_even and all(abs(ratio - round(ratio)) < ratio * rounding for ratio in (across, down))
    if not padded or (is_whole and round(across) == usual):
        unlike = not level.is_stated and _looks_unlike(_correlations(number, level, fine, fine_size, [plain], read)[0])
        return None if unlike else level.size
    scales = [plain, *padded] if is_even else padded
    scores = _correlations(number, level, fine, fine_size, scales, read)
    order = sorted(range(len(scales)), key=lambda k: -scores[k])
    lead = scores[order[0]] - (scores[order[1]] if len(order) > 1 else 0)
    if scores[order[0]] >= MIN_CORRELATION and lead >= CORRELATION_LEAD:
        return scales[order[0]].size
    if not is_even or (not level.is_stated and all(map(_looks_unlike, scores))):
        return None
    return level.size if is_whole else padded[0].size


def _looks_unlike(correlation: float) -> bool:
    """Return whether a level shows something else than the finer one. A correlation of exactly 0 says nothing."""
    return correlation != 0 and correlation < UNLIKE_CORRELATION


def _correlations(
    number: int, level: StoredLevel, fine: int, fine_size: Size, scales: Sequence[_Scale], read: ReadLevel
) -> list[float]:
    """Return the mean correlation of a level's patches with the finer level under each scale; 0 where none can tell."""
    found: list[list[float]] = [[] for _ in scales]
    try:
        for box, patch in _patches(number, level, scales, read):
            for scores, scale in zip(found, scales, strict=True):
                expected, inside = _expected_patch(box, scale, fine, fine_size, read)
                scores.append(_correlation(patch, expected, inside))
    except SlideError:  # damage is reported where the pixels are needed
        return [0.0 for _ in scales]
    return [float(np.mean(scores)) if scores else 0.0 for scores in found]


def _patches(
    number: int, level: StoredLevel, scales: Sequence[_Scale], read: ReadLevel
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """Yield patches of a level that can tell its scales apart: the box, and its grey values (h, w) float32."""
    width, height = level.size
    if len(level.tile_bytes) <= FEW_TILES and width * height <= MAX_WHOLE_PX:
        whole = Box(0, 0, width, height)
        yield whole, _grey(read(number, whole))
        return
    edge = PATCH_PX if max(scale.x for scale in scales) <= LARGE_SCALE else PATCH_PX // 2
    boxes = [box for box in _patch_boxes(level, scales, edge) if _shift(box, scales) >= MIN_SHIFT]
    patches = [(box, _grey(read(number, box))) for box in boxes]
    patches.sort(key=lambda item: -float(item[1].std()))
    yield from (item for item in patches[:PATCHES] if item[1].std() >= MIN_CONTRAST)


def _patch_boxes(level: StoredLevel, scales: Sequence[_Scale], edge: int) -> Iterator[Box]:
    """Yield a patch in the middle of each of a level's tiles with most bytes, inside the picture under every scale.

    Tiles with most bytes show most detail. Uncompressed tiles have equal bytes; then they are spread over the level.
    """
    width, height = (min(scale.size[axis] for scale in scales) for axis in (0, 1))
    across = -(-level.size[0] // level.tile[0])
    order, tried = np.argsort(-level.tile_bytes, kind="stable"), TRIED_TILES
    if level.tile_bytes.max() == level.tile_bytes.min():
        tried = TRIED_RAW_TILES
        order = order[np.unique(np.linspace(0, len(order) - 1, 2 * tried).astype(int))]
    found = 0
    for index in order.tolist():
        row, column = divmod(index, across)
        x, y = column * level.tile[0], row * level.tile[1]
        w, h = (min(edge, length) for length in (min(level.tile[0], width - x), min(level.tile[1], height - y)))
        if min(w, h) >= edge // 4 and found < tried:
            found += 1
            middle = (min(level.tile[0], width - x) - w) // 2, (min(level.tile[1], height - y) - h) // 2
            yield Box(x + middle[0], y + middle[1], w, h)


def _shift(box: Box, scales: Sequence[_Scale]) -> float:
    """Return how far apart two of the scales look for a patch at least, px of the coarser level."""
    places = sorted((box.x * scale.x, box.y * scale.y, scale.x) for scale in scales)
    pairs = itertools.pairwise(places)
    return min((max(b[0] - a[0], abs(b[1] - a[1])) / b[2] for a, b in pairs), default=math.inf)


def _expected_patch(
    box: Box, scale: _Scale, fine: int, fine_size: Size, read: ReadLevel
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return what a scale lets expect in a box of the coarser level: grey values, and where the picture is.

    Both are (h, w). Where it reads too much, nothing is expected.
    """
    expected, inside = np.zeros((box.height, box.width), np.float32), np.zeros((box.height, box.width), np.bool_)
    width, height = (max(1, min(end, size) - start) for start, end, size in _spans(box, scale))
    if min(scale.size[0] - box.x, scale.size[1] - box.y) < 1:
        return expected, inside
    x, y = (
        min(int(start * s), edge - 1) for start, s, edge in zip(box[:2], (scale.x, scale.y), fine_size, strict=True)
    )
    right, bottom = (
        max(low + 1, min(edge, round((start + count) * s)))
        for low, start, count, s, edge in zip(
            (x, y), box[:2], (width, height), (scale.x, scale.y), fine_size, strict=True
        )
    )
    if (right - x) * (bottom - y) <= MAX_COMPARED_PX:
        pixels = _grey(read(fine, Box(x, y, right - x, bottom - y)))
        expected[:height, :width] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        inside[:height, :width] = True
    return expected, inside


def _spans(box: Box, scale: _Scale) -> list[tuple[int, int, int]]:
    return [(box.x, box.right, scale.size[0]), (box.y, box.bottom, scale.size[1])]


def _correlation(patch: NDArray[np.float32], expected: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Return the correlation of a patch with what is expected: padding of one grey value outside the picture."""
    if not inside.any():
        return 0.0
    target = expected.copy()
    target[~inside] = patch[~inside].mean() if not inside.all() else 0.0
    a, b = (image - cv2.GaussianBlur(image, (0, 0), DETAIL_PX) for image in (patch, target))
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(rgb.mean(axis=2, dtype=np.float32), np.float32)
