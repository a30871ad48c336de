"""Features of tiles as torch operations on a batch: those of `vision.membrane`, on a GPU.

`vision.membrane.measure_tiles` is the reference. Both compute in float32, but add in another order, so that a px close
to a threshold may lie on the other side of it. DIFFERENCE_BOUND is the largest difference that the tests accept.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

from her2batch.models.device_measurements.neighbourhoods import (
    box_mean,
    box_sum,
    dilate,
    gaussian_blur,
    opening,
    second_derivatives,
)
from her2batch.vision import membrane, stain
from her2batch.vision.stain import Stains, Vector

DIFFERENCE_BOUND = 5e-5
"""Largest difference of a feature from the reference: two px of a tile of 224 px on the other side of a threshold. On
the CPU, real and synthetic tiles differ by less than 5e-6."""

PX_PER_PASS = 128 * 224 * 224
"""Px that are measured at once: some thirty maps of 4 bytes a px, 0.8 GB."""


class _Densities(NamedTuple):
    """Maps (n, h, w) float32: optical density of R, G, B, and what `stain.separate_stains` returns of them."""

    red: torch.Tensor
    green: torch.Tensor
    blue: torch.Tensor
    h: torch.Tensor
    d: torch.Tensor
    residual: torch.Tensor
    mean: torch.Tensor


@torch.inference_mode()
def measure_tiles_on_device(pixels: torch.Tensor, mpp: float, stains: Stains) -> torch.Tensor:
    """Compute the features of each tile on the tiles' own device, without waiting for it.

    pixels: (n, t, t, 3) uint8 at mpp µm/px.  Returns (n, len(FEATURES)) float32.
    """
    if not len(pixels):
        return torch.zeros((0, len(membrane.FEATURES)), device=pixels.device)
    count = max(1, PX_PER_PASS // (pixels.shape[1] * pixels.shape[2]))
    return torch.cat([_measure(part, mpp, stains) for part in torch.split(pixels, count)])


@torch.inference_mode()
def grey_range(pixels: torch.Tensor) -> torch.Tensor:
    """Return the difference between the largest and the smallest value of each tile: (n, t, t, 3) → (n,) uint8."""
    flat = pixels.flatten(1)
    return flat.amax(dim=1) - flat.amin(dim=1)


def _measure(pixels: torch.Tensor, mpp: float, stains: Stains) -> torch.Tensor:
    """Return the features of tiles, in the order of FEATURES; see `membrane._tile_features`."""
    densities = _separate(pixels, stains)
    h, d, density = densities.h, densities.d, densities.mean
    pen, ink = _pen_and_ink(densities, mpp)
    smooth = gaussian_blur(_restore_dab_detail(h, d, mpp), membrane.RIDGE_UM / mpp)
    ridge = _ridge_height(smooth, mpp)
    levels = membrane.membrane_thresholds(stains)
    line = (ridge >= levels[0]) & ~pen
    least_nucleus = max(0.5 * stains.nuclei, membrane.MIN_NUCLEUS_OD)
    blue = (gaussian_blur(h, membrane.NUCLEUS_UM / mpp) >= least_nucleus) & ~pen
    lines = [line, *(line & (smooth >= stains.background + level) for level in levels[1:])]
    cover = [_neighbourhood_share(mask, membrane.CELL_UM / mpp) for mask in lines]
    nests = _neighbourhood_share(blue, membrane.NEST_UM / mpp) >= membrane.MIN_NUCLEI_COVER
    cells = (nests | (cover[0] >= 2 * membrane.MIN_INCOMPLETE_COVER)) & ~pen
    n_cells = _count(cells).clamp_(min=1)
    limits = (membrane.MIN_INCOMPLETE_COVER, membrane.MIN_COMPLETE_COVER)
    shares = [_count((values >= limit) & cells) / n_cells for limit in limits for values in cover]
    nuclei = blue | (_brown_nuclei(smooth, mpp) & ~pen)
    dab = _distribution(d)
    contrasts = _scale_contrasts(density, mpp)
    columns = [
        _area_share(cells), *shares, dab[0], _blur_ratio(contrasts[0], contrasts[2]),
        *dab[1:], *_distribution(h), *_distribution(ridge), *_distribution(density), _area_share(nuclei),
        _masked_mean(d, nuclei), _masked_mean(d, line), _masked_mean(d, cells & ~nuclei & ~line),
        _area_share(density < membrane.MAX_BACKGROUND_OD), _area_share(ink), *contrasts,
    ]  # fmt: skip
    return torch.stack(columns, dim=1)


def _separate(pixels: torch.Tensor, stains: Stains) -> _Densities:
    """Return the optical density and the stains of each px; see `stain.optical_density`, `stain.separate_stains`."""
    tables = _density_tables(stains.white, pixels.device)
    shape = pixels.shape[:3]
    red, green, blue = (
        table.index_select(0, pixels[..., channel].flatten().int()).view(shape)
        for channel, table in enumerate(tables.unbind())
    )
    mixed = [r * red + g * green + b * blue for r, g, b in stain.unmixing_matrix(stains).tolist()]
    return _Densities(red, green, blue, *mixed)


@lru_cache(maxsize=64)
def _density_tables(white: Vector, device: torch.device) -> torch.Tensor:
    """Return the optical density of each grey value in each channel: (3, 256) float32."""
    return torch.from_numpy(stain.density_tables(white).reshape(3, 256)).to(device)


def _pen_and_ink(densities: _Densities, mpp: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the px that are left out as pen, and those of them that are not black padding: (n, h, w) bool."""
    px = membrane.PEN_RIM_UM / mpp
    pen = _dilate_mask(_pen_mask(densities, mpp), px)
    return pen, pen & ~_dilate_mask(densities.mean > membrane.UNSCANNED_OD, px)


def _pen_mask(densities: _Densities, mpp: float) -> torch.Tensor:
    """Return the px where pen absorbs the light: (n, h, w) bool; see `stain.pen_mask`."""
    red, green, blue, residual = densities.red, densities.green, densities.blue, densities.residual
    pen = (residual.abs() > stain.PEN_RESIDUAL_OD) | (red > stain.PEN_RED_OD)
    largest = torch.maximum(torch.maximum(red, green), blue)
    spread = largest - torch.minimum(torch.minimum(red, green), blue)
    neutral = spread <= stain.BLACK_SPREAD * largest
    brownish = red >= stain.BROWN_RED_SHARE * green
    brown = brownish | ((green >= stain.CLIPPED_GREEN_OD) & (red >= stain.CLIPPED_RED_OD))
    brown &= (red < green) & (blue >= stain.BROWN_BLUE_SHARE * green)
    narrow = neutral | (brownish & (red < green) & ~brown)
    edge = 2 * round(stain.MIN_BLACK_UM / mpp / 2) + 1
    stroke = box_sum((pen & narrow).float(), edge) >= stain.MIN_BLACK_COVER * edge * edge
    wide = dilate(stroke.to(torch.uint8), edge).bool()
    return pen & (wide | (~narrow & ~brown))


def _restore_dab_detail(h: torch.Tensor, d: torch.Tensor, mpp: float) -> torch.Tensor:
    """Return DAB density at the resolution of luminance: (n, h, w); see `membrane.restore_dab_detail`."""
    edge = 2 * round(membrane.CHROMA_UM / mpp) + 1
    coarse_h, coarse_d = box_mean(h, edge).clamp_(min=0), box_mean(d, edge).clamp_(min=0)
    both = (h + d).clamp_(min=0).mul_(coarse_d)
    return both.div_(coarse_h.add_(coarse_d).add_(membrane.ACHROMATIC_OD))


def _ridge_height(smooth: torch.Tensor, mpp: float) -> torch.Tensor:
    """Return the height of ridges over their sides, OD: (n, h, w); see `membrane.ridge_height`."""
    xx, yy, xy = second_derivatives(smooth)
    across = xx - yy
    curvature = (across.square_() + xy.square_()).sqrt_() - xx - yy
    return curvature.mul_(2**1.5 * (membrane.RIDGE_UM / mpp) ** 2).clamp_(min=0)


def _brown_nuclei(smooth: torch.Tensor, mpp: float) -> torch.Tensor:
    """Return the px of nuclei that are stained with DAB: (n, h, w) bool; see `membrane.brown_nuclei`."""
    narrow, wide = membrane.NUCLEAR_WIDTHS_UM
    small, large = (2 * round(px / 2) + 1 for px in (narrow / mpp, wide / mpp / 2))
    solid = opening(smooth, small)
    around = opening(solid[:, ::2, ::2], large)
    around = around.repeat_interleave(2, dim=1)[:, : smooth.shape[1]]
    around = around.repeat_interleave(2, dim=2)[..., : smooth.shape[2]]
    height, nearby = solid - around, dilate(smooth - around, small)
    present = solid.amax(dim=(1, 2), keepdim=True) >= membrane.NUCLEAR_DAB_OD
    return present & (height >= membrane.NUCLEAR_DAB_OD) & (height >= membrane.SOLID_SHARE * nearby)


def _dilate_mask(mask: torch.Tensor, px: float) -> torch.Tensor:
    """Return masks (n, h, w) dilated by `px` pixels."""
    return dilate(mask.to(torch.uint8), 2 * round(px) + 1).bool()


def _neighbourhood_share(mask: torch.Tensor, px: float) -> torch.Tensor:
    """Return the share of masks in the square neighbourhood of each px: (n, h, w) float32."""
    return box_mean(mask.float(), 2 * round((px - 1) / 2) + 1)


def _count(mask: torch.Tensor) -> torch.Tensor:
    """Return the number of px of each mask: (n,) float32, exact up to 16 million."""
    return mask.sum(dim=(1, 2)).float()


def _area_share(mask: torch.Tensor) -> torch.Tensor:
    return _count(mask) / (mask.shape[1] * mask.shape[2])


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean inside each mask, 0 for an empty one: (n,)."""
    return (values * mask).sum(dim=(1, 2)) / _count(mask).clamp_(min=1)


def _distribution(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean, standard deviation and 90th percentile (of every third row and column) of each map: (n,) each.

    The percentile comes from a sort, because torch has no repeatable selection on GPUs.
    """
    mean = values.mean(dim=(1, 2))
    std = (values - mean[:, None, None]).square_().mean(dim=(1, 2)).sqrt_()
    sample = values[:, ::3, ::3].flatten(1)
    return mean, std, sample.sort(dim=1).values[:, int(0.9 * (sample.shape[1] - 1))]


def _scale_contrasts(density: torch.Tensor, mpp: float) -> list[torch.Tensor]:
    """Return the mean difference between neighbouring scales (OD), (n,) each; see `membrane._scale_contrasts`."""
    blurred = [box_mean(density, 2 * round(um / mpp / 2) + 1) for um in (1, 2, 4, 8)]
    return [(fine - coarse).abs_().mean(dim=(1, 2)) for fine, coarse in pairwise(blurred)]


def _blur_ratio(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Return the share of coarse structure in all structure: (n,); see `quality.blur_ratio`."""
    return torch.where(fine > 1e-6, coarse / (fine + coarse), 0.0)
