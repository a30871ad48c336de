"""How many tiles per second do the stain encoder and the HER2 rule measure on one core, with real tissue in memory?

usage: encoder.py CORES [--rounds N]

The comparison is the NumPy reference of the tests (tests/vision/reference.py) on the same tiles. Prints the largest
difference of the values.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from rounds import median_seconds

from her2batch.models.membrane_rule import apply_rule
from her2batch.vision.membrane import FEATURES, MEMBRANE_COLUMNS, measure_tiles
from her2batch.vision.stain import fit_stain_vectors

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.vision.reference import reference_features

EDGE, SAMPLE_TILES = 224, 40


def core_tiles(core: Path) -> np.ndarray:
    """Return the tiles of a core at 0.5 µm/px: (n, 224, 224, 3) uint8."""
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
    tiles = np.concatenate([core_tiles(core) for core in sorted(args.cores.glob("*.jpg"))])
    stains = fit_stain_vectors(tiles[:: len(tiles) // 32], (240.0, 240.0, 240.0), 0.5)
    sample = tiles[np.random.default_rng(0).choice(len(tiles), SAMPLE_TILES, replace=False)]

    def ours() -> float:
        started = time.perf_counter()
        features = measure_tiles(tiles, 0.5, stains)
        apply_rule({name: features[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)})
        return time.perf_counter() - started

    def plain() -> float:
        started = time.perf_counter()
        for tile in sample:
            reference_features(tile, 0.5, stains)
        return time.perf_counter() - started

    seconds = median_seconds({"ours": ours, "plain": plain}, args.rounds)
    a, b = len(tiles) / seconds["ours"], len(sample) / seconds["plain"]
    features = measure_tiles(sample, 0.5, stains)
    expected = np.array([[reference_features(tile, 0.5, stains)[one.name] for one in FEATURES] for tile in sample])
    gaps = np.abs(features - expected)
    print(
        f"{len(tiles)} tiles, one core: stain encoder and rule {a:,.0f} tiles/s · plain NumPy {b:.0f} ({a / b:.0f}×) · "
        f"largest difference {gaps.max():.1e}; {(gaps > 1e-5).sum()} of {gaps.size} values differ by more than 1e-5"
    )


if __name__ == "__main__":
    main()
