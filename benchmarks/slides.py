"""Make large slides of real tissue for the benchmarks, in the layouts that scanners write, by mirroring tissue cores.

usage: slides.py CORES OUT [--kind KIND ...] [--count N] [--edge PX]

CORES: a folder of JPEG pictures of HER2 tissue cores, 0.25 µm/px or so. Existing slides are not written again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

MPP = 0.25
QUALITY = 80
J2K_LEVEL = 35
"""PSNR of JPEG 2000 tiles, dB: about a tenth of a byte per px, like Aperio's."""

CORE_PX = 5376
"""Edge of the square that is cut from a core: a multiple of 256, 240 and 224 px."""


@dataclass(frozen=True)
class SlideLayout:
    """A file layout. tile: edge, px.  options: arguments of tifffile for the compression.  levels: downsamples."""

    tile: int
    options: dict[str, Any]
    levels: tuple[int, ...] = (1, 4, 16)
    description: str | None = None


def _jpeg(subsampling: tuple[int, int]) -> dict[str, Any]:
    return {"compression": "jpeg", "compressionargs": {"level": QUALITY}, "subsampling": subsampling}


LAYOUTS = {
    "jpeg420": SlideLayout(256, _jpeg((2, 2))),
    "jpeg444": SlideLayout(256, _jpeg((1, 1))),
    "tiles240": SlideLayout(240, _jpeg((2, 2))),
    "one-level": SlideLayout(256, _jpeg((2, 2)), (1,)),
    "jpeg2000": SlideLayout(  # OpenSlide and cuCIM read JPEG 2000 only as Aperio writes it
        256,
        {"compression": "APERIO_JP2000_RGB", "compressionargs": {"level": J2K_LEVEL, "codecformat": "j2k"}},
        description="Aperio Image Library v12.0\r\nJ2K/BIC|AppMag = 40|MPP = 0.25",
    ),
}


def make_slide(cores: Path, out: Path, kind: str, number: int = 0, edge: int = 4 * CORE_PX) -> Path:
    """Make a slide of edge × edge px of the number-th core, unless it exists; return its path."""
    path = out / f"{kind}-{edge}-{number}.tiff"
    if path.exists():
        return path
    out.mkdir(parents=True, exist_ok=True)
    pictures = sorted(cores.glob("*.jpg"))
    core = cv2.cvtColor(cv2.imread(str(pictures[number % len(pictures)])), cv2.COLOR_BGR2RGB)[:CORE_PX, :CORE_PX]
    core = np.rot90(core, number // len(pictures))  # so that no two slides are duplicates
    layout = LAYOUTS[kind]
    part = path.with_suffix(".part")
    with tifffile.TiffWriter(part, bigtiff=True) as tiff:
        for downsample in layout.levels:
            small = cv2.resize(core, None, fx=1 / downsample, fy=1 / downsample, interpolation=cv2.INTER_AREA)
            side = edge // downsample
            per_cm = 1e4 / (MPP * downsample)
            tiff.write(
                _mirrored_tiles(small, side, layout.tile),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(layout.tile, layout.tile),
                photometric="rgb",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),
                metadata=None,
                description=layout.description,
                **layout.options,
            )
    part.replace(path)
    return path


def _mirrored_tiles(core: np.ndarray, side: int, tile: int) -> Iterator[np.ndarray]:
    """Yield the tiles of a plane covered by the core and its mirror images, without the whole plane in memory."""
    mirrored = np.concatenate([core, core[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[::-1]], axis=0)
    rows = [np.arange(top, top + tile) % len(mirrored) for top in range(0, side, tile)]
    for row in rows:
        strip = mirrored[row]
        for left in range(0, side, tile):
            yield np.ascontiguousarray(strip[:, np.arange(left, left + tile) % mirrored.shape[1]])


def main() -> None:
    """Make slides and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cores", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", nargs="+", choices=sorted(LAYOUTS), default=["jpeg420"])
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--edge", type=int, default=4 * CORE_PX)
    args = parser.parse_args()
    for kind in args.kind:
        for number in range(args.count):
            print(make_slide(args.cores, args.out, kind, number, args.edge))


if __name__ == "__main__":
    main()
