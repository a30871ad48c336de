"""Cuts tiles from decoded pixels on a device: the counterpart of `tile_grid.cut_tiles`, which is the reference.

OpenCV interpolates in fixed point and the device in float32, so that pixels may differ by one grey value.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from her2batch.vision.tile_grid import OUTSIDE_GREY

FLAT_SQUARE_PX = 32
"""Edge of a square of one colour that makes a decoded tile suspicious: decoders fill the gaps of damaged streams so."""


def shrink(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Reduce (h, w, 3) uint8 to (height, width, 3) by the mean over the area of each px, as `slide.resample` does."""
    if pixels.shape[:2] == (height, width):
        return pixels
    values = pixels[None].float()
    if pixels.shape[0] % height or pixels.shape[1] % width:
        return _to_uint8(_area_mean(values, height, width))[0]
    return _mean_of_squares(values, (height, width))[0]


def cut_tiles_on_device(pixels: torch.Tensor, rects: list[list[int]], tile: int) -> torch.Tensor:
    """Cut tiles from a block and resample them: (h, w, 3) uint8 → (n, tile, tile, 3) uint8; white outside the slide.

    rects: x, y, width, height of each tile in the block.
    """
    out = torch.empty((len(rects), tile, tile, 3), dtype=torch.uint8, device=pixels.device)
    sizes = sorted({(height, width) for _, _, width, height in rects})
    for height, width in sizes:  # one, or a few that differ by a px
        rows = [k for k, rect in enumerate(rects) if (rect[3], rect[2]) == (height, width)]
        parts = torch.stack([_part(pixels, *rects[k]) for k in rows])
        resampled = _resample(parts, tile)
        if len(rows) == len(rects):
            return resampled
        for k, each in zip(rows, resampled.unbind(), strict=True):
            out[k] = each
    return out


def has_flat_square(chunks: torch.Tensor) -> torch.Tensor:
    """Return which chunks, (n, h, w, 3) uint8, have a square of FLAT_SQUARE_PX of one colour: (n,) bool."""
    edge = min(FLAT_SQUARE_PX, chunks.shape[1], chunks.shape[2])
    down, across = chunks.shape[1] // edge, chunks.shape[2] // edge
    squares = chunks[:, : down * edge, : across * edge].reshape(len(chunks), down, edge, across, edge, 3)
    flat = squares.amax(dim=(2, 4)) == squares.amin(dim=(2, 4))
    return flat.all(dim=-1).flatten(1).any(dim=1)


def _part(pixels: torch.Tensor, x: int, y: int, width: int, height: int) -> torch.Tensor:
    """Return a rectangle, white where it leaves the block."""
    part = pixels[y : y + height, x : x + width]
    if part.shape[:2] == (height, width):
        return part
    sides = (0, 0, 0, width - part.shape[1], 0, height - part.shape[0])
    return torch.nn.functional.pad(part, sides, value=OUTSIDE_GREY)


def _resample(parts: torch.Tensor, tile: int) -> torch.Tensor:
    """Resample (n, h, w, 3) uint8 to (n, tile, tile, 3), in the steps of `tile_grid._resample`."""
    size = parts.shape[1:3]
    if size == (tile, tile):
        return parts
    values = parts.float()
    if min(size) < tile:
        return _to_uint8(_interpolate(values, tile))
    factor = math.floor(min(size) / tile + 0.5)
    if factor <= 1:
        return _to_uint8(_area_mean(values, tile, tile))
    if size != (factor * tile, factor * tile):
        values = _to_uint8(_interpolate(values, factor * tile)).float()
    return _mean_of_squares(values, (tile, tile))


def _area_mean(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Reduce (n, h, w, 3) float32 to (n, height, width, 3) by the mean over the area of each px, in parts of px."""
    down = _area_weights(values.shape[1], height, values.device)
    across = _area_weights(values.shape[2], width, values.device)
    rows = torch.einsum("yh,nhwc->nywc", down, values)
    return torch.einsum("xw,nywc->nyxc", across, rows)


@lru_cache(maxsize=64)
def _area_weights(length: int, edge: int, device: torch.device) -> torch.Tensor:
    """Return the share of each of `length` px in each of `edge` larger px: (edge, length) float32."""
    ends = np.arange(edge + 1) * (length / edge)
    at = np.arange(length)
    covered = np.minimum(ends[1:, None], at + 1) - np.maximum(ends[:-1, None], at)
    return torch.from_numpy((np.maximum(covered, 0) * edge / length).astype(np.float32)).to(device)


def _interpolate(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Resize (n, h, w, 3) float32 to (n, edge, edge, 3) by linear interpolation."""
    planes = values.permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, (edge, edge), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _mean_of_squares(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average squares of px: (n, h, w, 3) float32 → (n, *size, 3) uint8."""
    height, width = size
    squares = values.reshape(len(values), height, values.shape[1] // height, width, values.shape[2] // width, 3)
    return _to_uint8(squares.mean(dim=(2, 4)))


def _to_uint8(values: torch.Tensor) -> torch.Tensor:
    """Round 0–255, halves upwards as OpenCV does for whole factors."""
    return (values + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
