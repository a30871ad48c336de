"""A grid of tiles of one slide, as the stages, the feed and the patches share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COARSEST = 1.25
"""A slide may be this much coarser than the target mpp; beyond, details would be made up by resampling."""


@dataclass(frozen=True)
class Grid:
    """Tiles of one resolution: (n, 3) int32 x, y, size in level-0 px, cut at `mpp` to `edge` px."""

    mpp: float
    edge: int
    tiles: NDArray[np.int32]
