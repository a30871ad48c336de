"""A simple, slow reference implementation of the tile features with NumPy, SciPy and scikit-image in double precision.

`vision.membrane.measure_tiles` must give the same values.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import footprint_rectangle

from her2batch.vision import membrane, stain
from her2batch.vision.stain import Stains

Map = NDArray[np.float64]


def reference_pen(od: Map, residual: Map, mpp: float) -> NDArray[np.bool_]:
    """Return the px under pen: od (t, t, 3), residual (t, t)."""
    red, green, blue = np.moveaxis(od, -1, 0)
    strong = (np.abs(residual) > stain.PEN_RESIDUAL_OD) | (red > stain.PEN_RED_OD)
    neutral = np.ptp(od, axis=2) <= stain.BLACK_SPREAD * od.max(axis=2)
    clipped = (green >= stain.CLIPPED_GREEN_OD) & (red >= stain.CLIPPED_RED_OD)
    reddish = (red >= stain.BROWN_RED_SHARE * green) | clipped
    brown = reddish & (red < green) & (blue >= stain.BROWN_BLUE_SHARE * green)
    narrow = neutral | ((red >= stain.BROWN_RED_SHARE * green) & (red < green) & ~brown)
    edge = 2 * round(stain.MIN_BLACK_UM / mpp / 2) + 1
    count = np.round(box((strong & narrow).astype(float), edge) * edge**2)
    black = ndimage.maximum_filter(count >= stain.MIN_BLACK_COVER * edge**2, edge, mode="constant", cval=0)
    return np.asarray(strong & (black | (~narrow & ~brown)), bool)


def reference_features(tile: NDArray[np.uint8], mpp: float, stains: Stains) -> dict[str, float]:
    """Return feature → value of one tile (t, t, 3)."""
    od = -np.log10(np.maximum(tile, 1) / np.asarray(stains.white))
    h, d, residual = np.moveaxis(deconvolved(od, stains), -1, 0)
    density = od.mean(axis=2)
    pen = reference_pen(od, residual, mpp)
    rim = 2 * round(membrane.PEN_RIM_UM / mpp) + 1
    pen = ndimage.binary_dilation(pen, footprint_rectangle((rim, rim)))
    coarse_h, coarse_d = (np.maximum(box(one, 2 * round(membrane.CHROMA_UM / mpp) + 1), 0) for one in (h, d))
    share = coarse_d / (coarse_h + coarse_d + membrane.ACHROMATIC_OD)
    smooth = gaussian(np.maximum(h + d, 0) * share, membrane.RIDGE_UM / mpp)
    ridge = ridge_height(smooth, membrane.RIDGE_UM / mpp)
    nucleus = max(stains.nuclei / 2, membrane.MIN_NUCLEUS_OD)
    blue = (gaussian(h, membrane.NUCLEUS_UM / mpp) >= nucleus) & ~pen
    faint, moderate, intense = membrane.membrane_thresholds(stains)
    line = (ridge >= faint) & ~pen
    lines = {
        "faint": line,
        "moderate": line & (smooth >= stains.background + moderate),
        "intense": line & (smooth >= stains.background + intense),
    }
    cover = {name: neighbourhood_share(one, membrane.CELL_UM / mpp) for name, one in lines.items()}
    nests = neighbourhood_share(blue, membrane.NEST_UM / mpp) >= membrane.MIN_NUCLEI_COVER
    cells = (nests | (cover["faint"] >= 2 * membrane.MIN_INCOMPLETE_COVER)) & ~pen
    nuclei = blue | (brown_nuclei(smooth, mpp) & ~pen)
    features = {"cells": cells.mean()}
    for name, share in cover.items():
        features[name] = (share >= membrane.MIN_INCOMPLETE_COVER)[cells].mean() if cells.any() else 0.0
        features[f"{name}_complete"] = (share >= membrane.MIN_COMPLETE_COVER)[cells].mean() if cells.any() else 0.0
    features["dab"] = d.mean()
    for name, values in {"dab": d, "haematoxylin": h, "ridge": ridge, "density": density}.items():
        some = np.sort(values[::3, ::3].ravel())
        features |= {f"{name}_mean": values.mean(), f"{name}_std": values.std()}
        features[f"{name}_p90"] = some[int(0.9 * (len(some) - 1))]
    features |= {"nuclei": nuclei.mean(), "white": (density < membrane.MAX_BACKGROUND_OD).mean(), "ink": pen.mean()}
    areas = {"nuclear_dab": nuclei, "membrane_dab": line, "cytoplasm_dab": cells & ~nuclei & ~line}
    features |= {name: d[area].mean() if area.any() else 0.0 for name, area in areas.items()}
    scales = {um: box(density, 2 * round(um / mpp / 2) + 1) for um in (1, 2, 4, 8)}
    for um in (1, 2, 4):
        features[f"contrast_{um}um"] = np.abs(scales[um] - scales[2 * um]).mean()
    fine, coarse = features["contrast_1um"], features["contrast_4um"]
    features["blur"] = coarse / (fine + coarse) if fine > 1e-6 else 0.0
    return features


def deconvolved(od: Map, stains: Stains) -> Map:
    """Solve od = h · H + d · D + residual · (H × D) for each px: (H, W, 3)."""
    h, d = (np.asarray(one) / np.linalg.norm(one) for one in (stains.haematoxylin, stains.dab))
    across = np.cross(h, d)
    basis = np.stack([h, d, across / np.linalg.norm(across)], axis=1)
    return np.linalg.solve(basis, od.reshape(-1, 3).T).T.reshape(od.shape)


def ridge_height(smooth: Map, s: float) -> Map:
    """Return the largest curvature, from the eigenvalues of each px's Hessian."""
    second, across, first = np.array([1, -2, 1.0]), np.array([1, 2, 1.0]) / 4, np.array([-1, 0, 1.0]) / 2
    xx = correlate(correlate(smooth, second, 1), across, 0)
    yy = correlate(correlate(smooth, second, 0), across, 1)
    xy = correlate(correlate(smooth, first, 1), first, 0)
    hessian = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -1)
    return np.maximum(-np.linalg.eigvalsh(hessian)[..., 0], 0) * 2**1.5 * s**2


def brown_nuclei(smooth: Map, mpp: float) -> NDArray[np.bool_]:
    """Return the px of brown areas that are wider than membranes and narrower than cells."""
    small, large = (2 * round(px / 2) + 1 for px in np.array(membrane.NUCLEAR_WIDTHS_UM) / mpp / (1, 2))
    solid = opening(smooth, small)
    around = np.kron(opening(solid[::2, ::2], large), np.ones((2, 2)))[: len(smooth), : len(smooth)]
    nearby = ndimage.maximum_filter(smooth - around, small, mode="constant", cval=-np.inf)
    height = solid - around
    return np.asarray((height >= membrane.NUCLEAR_DAB_OD) & (height >= membrane.SOLID_SHARE * nearby))


def opening(values: Map, edge: int) -> Map:
    eroded = ndimage.minimum_filter(values, edge, mode="constant", cval=np.inf)
    return ndimage.maximum_filter(eroded, edge, mode="constant", cval=-np.inf)


def gaussian(values: Map, sigma: float) -> Map:
    half = round(sigma * 8 + 1) // 2
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    return correlate(correlate(values, kernel, 0), kernel, 1)


def neighbourhood_share(mask: NDArray[np.bool_], px: float) -> Map:
    """Return the share of a mask in the square around each px."""
    return box(mask.astype(float), 2 * round((px - 1) / 2) + 1) + 1e-12  # a value equal to a limit reaches it


def box(values: Map, edge: int) -> Map:
    return correlate(correlate(values, np.full(edge, 1 / edge), 0), np.full(edge, 1 / edge), 1)


def correlate(values: Map, kernel: Map, axis: int) -> Map:
    return ndimage.correlate1d(values, kernel, axis=axis, mode="mirror")
