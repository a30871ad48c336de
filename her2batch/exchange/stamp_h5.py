"""Features files of STAMP: `feats` (N, D) and `coords` (N, 2) in µm or in px of its own grid.

Layouts, by version (github.com/KatherLab/STAMP, `get_coords` in modeling/data.py): from 2.1 on the file has the
attribute `tile_size_um`; 2.0 has `tile_size` with `unit` "um"; files of 1.x and of marugoto have coordinates in px of
tiles of 224 px that are 256 µm wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from her2batch.errors import InputError

FEATURES: Final = "feats"
"""Name of the dataset, by which a file of STAMP is recognized."""

HISTORIC_TILE_PX, HISTORIC_TILE_UM = 224.0, 256.0
"""Tile of STAMP 1.x and marugoto, in px of its coordinates and in µm."""

SNAP_SHARE: Final = 0.02
"""Largest distance between a tile of STAMP and one of the slide that counts as rounding, as a share of the tile."""

REMEDY: Final = "extract the features again with STAMP 2.1 or later"

REJECTED_REMEDY: Final = (
    "STAMP leaves out tiles without tissue: extract them again with brightness_cutoff: 255 and canny_cutoff: 0"
)


def tile_um_and_scale(path: Path, attributes: Mapping[str, Any], coords: NDArray[Any]) -> tuple[float, float]:
    """Return the width of a tile (µm), and the factor that converts the file's coordinates to µm.

    attributes: of the file.  Raises InputError when the file does not state its unit, or has slide-level features.
    """
    kind = attributes.get("feat_type", "tile")
    if kind != "tile":
        raise InputError(f"its features are of a {kind}, not of tiles", path, "give the tile features of STAMP")
    size, unit = _number(attributes.get("tile_size")), attributes.get("unit")
    if (size_um := _number(attributes.get("tile_size_um"))) is not None:
        return size_um, 1.0
    if size is not None and unit == "um":
        return size, 1.0
    if round(size if size is not None else _stride(coords)) == HISTORIC_TILE_PX:
        return HISTORIC_TILE_UM, HISTORIC_TILE_UM / HISTORIC_TILE_PX
    raise InputError("the file does not state the unit of its coordinates", path, REMEDY)


def check_tile_size(path: Path, tile_um: float, size: int, mpp: float) -> None:
    """Refuse a file whose tiles are not as wide as those of the slide.  Raises InputError.

    size: of the slide's tiles, level-0 px.  mpp: of the slide.
    """
    own = size * mpp
    if size and abs(tile_um - own) > SNAP_SHARE * own:
        what = f"its tiles are {tile_um:g} µm wide, those of the slide {own:g} µm"
        raise InputError(
            what, path, f"extract them with tile_size_um = {own:g}, or ingest with tiles of {tile_um:g} µm"
        )


def nearest_rows(
    path: Path, coords_um: NDArray[Any], corners: NDArray[np.int32], size: int, mpp: float
) -> tuple[NDArray[np.int64], int]:
    """Return the row of the file for each tile, (n,), and how many tiles differ from their row's by more than rounding.

    STAMP rounds the width of a group of tiles up to whole px, so that its grid drifts against the slide's where a tile
    is no whole number of px wide. A tile gets the row of the nearest of STAMP's tiles, at most half a tile away.
    coords_um: (m, 2).  corners: (n, 2) of the tiles, level-0 px.  size: of the tiles, level-0 px.  mpp: of the slide.
    Raises InputError when a tile has no such row, when two rows have the same place, or a place is not finite.
    """
    if not np.isfinite(coords_um).all():
        raise InputError("a coordinate is not a finite number", path, REMEDY)
    px = coords_um.astype(np.float64) / mpp
    if len(np.unique(px, axis=0)) < len(px):
        raise InputError("two rows have the same coordinates", path, REMEDY)
    if not len(corners):
        return np.empty(0, np.int64), 0
    distances, rows = cKDTree(px).query(corners, p=np.inf) if len(px) else (np.full(len(corners), np.inf), None)
    missing = distances > size / 2
    if missing.any():
        x, y = corners[missing][0]
        what = (
            f"there is no row for {int(missing.sum())} of the slide's {len(corners)} tiles, the first at x {x}, y {y}"
        )
        raise InputError(what, path, REJECTED_REMEDY)
    return np.asarray(rows, np.int64), int((distances > max(1.0, SNAP_SHARE * size)).sum())


def _number(value: Any) -> float | None:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return number if number is not None and 0 < number < 1e6 else None


def _stride(coords: NDArray[Any]) -> float:
    """Return the smallest step between two coordinates; 0 without one."""
    steps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    positive = np.concatenate(steps) if len(coords) else np.empty(0)
    positive = positive[np.isfinite(positive) & (positive > 0)]
    return float(positive.min()) if len(positive) else 0.0
