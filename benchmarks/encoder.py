"""How many tiles a second does a core measure: stain encoder and HER2 rule, real tissue in memory?

usage: encoder.py CORES [--rounds N]

Compared with the NumPy reference of the tests (tests/vision/reference.py) on the same tiles;
prints the largest difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from rounds import medians

from her2batch.models.membrane_rule import apply_rule
from her2batch.vision.membrane import FEATURES, MEMBRANE_COLUMNS, measure_tiles
from her2batch.vision.stain import fit_stain_vectors

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.vision.reference import reference_features

EDGE, FEW = 224, 40


def tiles_of(core: Path) -> np.ndarray:
    """The tiles of a core at 0.5 µm/px: (n, 224, 224, 3) uint8."""
    rgb = cv2.cvtColor(cv2.imread(str(core)), cv2.COLOR_BGR2RGB)
    rgb = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    n = min(rgb.shape[:2]) // EDGE
    grid = rgb[: n * EDGE, : n * EDGE].reshape(n, EDGE, n, EDGE, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(-1, EDGE, EDGE, 3))


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cores", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    tiles = np.concatenate([tiles_of(core) for core in sorted(args.cores.glob("*.jpg"))])
    stains = fit_stain_vectors(tiles[:: len(tiles) // 32], (240.0, 240.0, 240.0))
    few = tiles[np.random.default_rng(0).choice(len(tiles), FEW, replace=False)]

    def ours() -> float:
        started = time.perf_counter()
        figures = measure_tiles(tiles, 0.5, stains)
        apply_rule({name: figures[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)})
        return time.perf_counter() - started

    def plain() -> float:
        started = time.perf_counter()
        for tile in few:
            reference_features(tile, 0.5, stains)
        return time.perf_counter() - started

    seconds = medians({"ours": ours, "plain": plain}, args.rounds)
    a, b = len(tiles) / seconds["ours"], len(few) / seconds["plain"]
    found = measure_tiles(few, 0.5, stains)
    expected = np.array([[reference_features(tile, 0.5, stains)[one.name] for one in FEATURES] for tile in few])
    gaps = np.abs(found - expected)
    print(
        f"{len(tiles)} tiles, one core: stain encoder and rule {a:,.0f} tiles/s · plain NumPy {b:.0f} ({a / b:.0f}×) · "
        f"largest difference {gaps.max():.1e}; {(gaps > 1e-5).sum()} of {gaps.size} figures differ by more than 1e-5"
    )


if __name__ == "__main__":
    main()
